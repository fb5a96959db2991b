// convert(): a checkpoint with its matrices quantised, written tensor by tensor, in the layout and
// with the names of the source.
#pragma once
#include <cstdint>
#include <functional>
#include <string>

#include "base/result.h"
#include "model/quantise.h"

namespace model {

struct ConvertOptions {
  WeightChoice weights = WeightChoice::kInt8;  // kInt8 or kInt4
  uint32_t group = kInt4Group;                 // int4
  uint64_t shard_bytes = uint64_t{4} << 30;
  // Bytes of the source read and to be read; called often.
  std::function<void(uint64_t done, uint64_t all)> progress = nullptr;
};
struct Converted {
  uint64_t tensors = 0;         // of the model
  uint64_t int8 = 0, int4 = 0;  // how many of them became integers
  uint64_t bytes_before = 0, bytes_after = 0;
};
// Matrices by quantised_format(); other tensors byte for byte, but what is fp8 or integer there is
// widened to f32. Tensors that the model does not use are left out. config.json with its
// quantization_config and the tokenizer's files go along.
// kInvalidArgument: `out` exists, the group is none, the source is int4 or is already int8, the
// disk is too small; kNotFound, kCorrupt: the source; kIo.
base::Result<Converted> convert(const std::string& source, const std::string& out,
                                const ConvertOptions& options);

}  // namespace model
