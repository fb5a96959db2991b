// A checkpoint folder: config.json and safetensors shards, mapped read-only. Every shape, offset,
// dtype and count is checked against the config before the first byte is used; an error names file
// and tensor. Nothing is copied: a Tensor points into the map, so only what a node touches is read
// from disk.
#pragma once
#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/bytes.h"
#include "base/hash.h"
#include "base/result.h"
#include "model/config.h"

namespace model {

enum class Dtype : uint8_t { kF32, kBf16, kF16, kF8E4M3, kI8, kI32, kI64, kU8 };
size_t bytes_of(Dtype dtype);
const char* name_of(Dtype dtype);

struct Tensor {
  Dtype dtype = Dtype::kF32;
  std::vector<uint64_t> shape;
  base::ByteView bytes;  // in the mapping; unaligned
  std::string file;
  uint64_t elements() const;
};

// One safetensors file. Header at most 100 MB, offsets inside the file, no overlap, no hole, sum =
// file size.
class Safetensors {
 public:
  static base::Result<Safetensors> open(const std::string& path);
  Safetensors(Safetensors&&) noexcept;
  Safetensors& operator=(Safetensors&&) noexcept;
  ~Safetensors();
  const std::unordered_map<std::string, Tensor>& tensors() const { return tensors_; }
  base::ByteView header() const;

 private:
  Safetensors() = default;
  struct Mapping;
  std::unique_ptr<Mapping> mapping_;
  std::unordered_map<std::string, Tensor> tensors_;
};

class Checkpoint {
 public:
  // kNotFound (no folder or file), kCorrupt (file and tensor named). Reads model.safetensors or
  // model.safetensors.index.json with its shards; index entries may not leave the folder.
  static base::Result<Checkpoint> open(const std::string& folder);

  const ModelConfig& config() const { return config_; }
  const std::string& folder() const { return folder_; }
  // Null when absent. All required names were checked by open().
  const Tensor* find(const std::string& name) const;
  const std::unordered_map<std::string, const Tensor*>& tensors() const { return tensors_; }
  // Config, headers and sampled bytes of every tensor: equal digests, equal model.
  base::Hash128 digest() const { return digest_; }
  uint64_t total_bytes() const { return total_bytes_; }
  // Tensors in the files that the model does not use (unused copies, buffers).
  uint64_t ignored_tensors() const { return ignored_tensors_; }
  // Bytes that read_rows() and read_codes() have read so far, by any thread: what a load has
  // touched, for its log.
  uint64_t bytes_read() const { return bytes_read_->load(std::memory_order_relaxed); }
  void count_read(uint64_t bytes) const {
    bytes_read_->fetch_add(bytes, std::memory_order_relaxed);
  }

 private:
  Checkpoint() = default;
  base::Status map_files();
  base::Status verify();
  void take_digest(std::string_view config_text);
  std::string folder_;
  ModelConfig config_;
  std::vector<Safetensors> files_;
  std::unordered_map<std::string, const Tensor*> tensors_;
  base::Hash128 digest_;
  uint64_t total_bytes_ = 0, ignored_tensors_ = 0;
  // Behind a pointer so that a checkpoint can be moved.
  std::unique_ptr<std::atomic<uint64_t>> bytes_read_ = std::make_unique<std::atomic<uint64_t>>(0);
};

// Tells the kernel that a tensor's bytes are about to be read in order, and that they will not be
// read again soon: for who streams a checkpoint larger than memory.
void will_read(const Tensor& tensor);
void done_reading(const Tensor& tensor);

// A tensor's values as f32, whatever its dtype (bf16, f16, f32, fp8 with its block scales, int8
// with its channel scales, int4 with its group scales; each product rounded once): rows [row_begin,
// row_begin + rows) of the matrix `name`, row-major. A vector is a matrix of one row. kNotFound,
// kInvalidArgument.  out: [rows, columns]
base::Status read_rows(const Checkpoint& checkpoint, const std::string& name, uint64_t row_begin,
                       uint64_t rows, float* out);

}  // namespace model
