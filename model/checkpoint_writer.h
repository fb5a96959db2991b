// CheckpointWriter: a checkpoint folder written front to back, never more than a part of a tensor
// in memory: shards of about one size, their index, and the files beside them. Everything goes to
// FOLDER.partial, which takes the folder's name when it is complete; a writer that is destroyed
// before takes its partial folder away.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/bytes.h"
#include "base/result.h"
#include "model/checkpoint.h"

namespace model {

struct PlannedTensor {
  std::string name;
  Dtype dtype = Dtype::kF32;
  std::vector<uint64_t> shape;
  uint64_t bytes() const;
};

inline constexpr uint64_t kShardBytes = uint64_t{4} << 30;

class CheckpointWriter {
 public:
  // `plan`: all tensors in the order in which they will be written. One shard when they fit in one,
  // named model.safetensors. kInvalidArgument: the folder or its .partial exists, or the disk has
  // too little room; kIo. `sync`: what finish() leaves has reached the disk; without, a crash of
  // the machine may lose it.
  static base::Result<CheckpointWriter> create(const std::string& folder,
                                               std::vector<PlannedTensor> plan,
                                               uint64_t shard_bytes = kShardBytes,
                                               bool sync = true);
  CheckpointWriter(CheckpointWriter&& other) noexcept;
  CheckpointWriter& operator=(CheckpointWriter&&) = delete;
  ~CheckpointWriter();

  // The next bytes of the planned tensors; a call stays inside one tensor, `name` says which.
  base::Status write(std::string_view name, base::ByteView bytes);
  // A small file of its own: config.json, a tokenizer.
  base::Status add_file(const std::string& name, std::string_view content);
  base::Status copy_file(const std::string& from, const std::string& name);
  // REQUIRES: every planned byte was written. Writes the index, renames.
  base::Status finish();

  uint64_t total_bytes() const { return total_bytes_; }
  uint64_t written_bytes() const { return written_bytes_; }

 private:
  CheckpointWriter() = default;
  std::string shard_name(uint32_t shard) const;
  base::Status open_shard();
  base::Status close_shard();
  base::Status flush();

  std::string folder_, partial_;
  std::vector<PlannedTensor> plan_;
  std::vector<uint32_t> shard_of_;  // [plan], ascending
  uint32_t shards_ = 0;
  uint64_t total_bytes_ = 0, written_bytes_ = 0;
  size_t next_ = 0;         // the tensor being written
  uint64_t tensor_at_ = 0;  // its bytes written so far
  int fd_ = -1;
  bool sync_ = true;
  std::vector<std::byte> buffer_;
};

// The JSON of a config.json as it was, with quantization_config replaced by `value` (JSON text), or
// taken out when that is empty. kCorrupt: no JSON object.
base::Result<std::string> with_quantization_config(const std::string& config,
                                                   const std::string& value);

}  // namespace model
