// make_checkpoint(): random weights for a config: every tensor it asks for, the indexer, n-gram
// tables and the MTP block included. For benchmarks and tests of shapes that nobody publishes.
//
// Element i of a tensor depends on the seed, the tensor's name and i alone, so the same config and
// seed give the same file on every machine.
#pragma once
#include <cstdint>
#include <functional>
#include <string>

#include "base/result.h"
#include "model/checkpoint_writer.h"
#include "model/config.h"

namespace model {

struct MakeOptions {
  uint64_t seed = 1;
  Dtype dtype = Dtype::kBf16;  // or kF32. Router and the indexer's weights_proj are F32 either way
  uint64_t shard_bytes = kShardBytes;
  std::function<void(uint64_t done, uint64_t all)> progress = nullptr;  // bytes
};
// Matrices ~ N(0, 1 / inputs), so that a normalised row stays of unit size; tables ~ N(0, 1); norms
// around 1; the router like a matrix, so that experts are chosen about equally often.
// Returns elements and tensors. kInvalidArgument: the folder exists, the disk is too small;
// kUnsupported: a config that says it is quantised.
base::Result<CheckpointSize> make_checkpoint(const std::string& config_file,
                                             const std::string& folder, const MakeOptions& options);

// What one token's pass multiplies with: elements of all matrices without word and n-gram tables,
// of `topk` experts (identity experts counted as routed), lm_head included, MTP left out.
uint64_t active_elements(const ModelConfig& config);

}  // namespace model
