// Digests of a checkpoint's tensors, kept beside its shards so that a bit which flips on disk or on
// the way is found when the tensor is loaded. The file `tensors.xxh128` has a line for each tensor,
// sorted by name: 32 hexadecimal digits of the XXH3-128 of its bytes, two spaces, the name.
// Optional: a folder without it is loaded unchecked.
#pragma once
#include <string>
#include <unordered_map>

#include "base/result.h"
#include "model/checkpoint.h"
#include "model/engine.h"

namespace model {

inline constexpr const char* kTensorDigestFile = "tensors.xxh128";

class TensorDigests {
 public:
  // Empty when the folder has no such file. kCorrupt: a line is no digest.
  static base::Result<TensorDigests> load(const std::string& folder);
  // Writes the file of a checkpoint as it stands.
  static base::Status write(const Checkpoint& checkpoint);

  bool empty() const { return digests_.empty(); }
  // Reads the whole tensor. kCorrupt, naming file and tensor, when its bytes are not those of the
  // digest; success when there is no digest of it.
  base::Status check(const Checkpoint& checkpoint, const std::string& name) const;
  // The same for all that an engine with these options reads at once; experts are checked as they
  // are packed. N-gram tables are looked up in place and never checked.
  base::Status check_loaded(const Checkpoint& checkpoint, const EngineOptions& options) const;

 private:
  std::unordered_map<std::string, std::string> digests_;  // of each name, in hex
};

}  // namespace model
