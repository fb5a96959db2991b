// Faults that a node can be told to cause in itself, by the [faults] section of the cluster file:
// the named points of fault-injection tests. None is set in service.
#pragma once
#include <cstdint>
#include <string>

namespace base {

enum class FaultPoint : uint8_t {
  kWeightBit,  // "weight": an exponent bit of one weight in memory, from now on
  // "weight_low": the lowest bit of one weight in memory, from now on: too small for a checksum.
  kWeightLowBit,
  kProductBit,  // "product": an exponent bit of one output of the next product, once
  kHiddenNan    // "hidden_nan": the first row of the next pass that embeds becomes NaN, once
};

struct NodeFault {
  std::string node;  // its name, such as decode-1
  FaultPoint point = FaultPoint::kWeightBit;
  uint64_t after = 0;  // passes since the process started (decode: steps; prefill: chunks)
};

}  // namespace base
