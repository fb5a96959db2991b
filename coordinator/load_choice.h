// Whether cached KV is worth its loading: it is not where computing it again takes less time. Pure.
#pragma once
#include <cstdint>
#include <span>

namespace coordinator {

// Of one prefill stage, as it was measured lately; a rate of 0 is not known.
struct LoadCosts {
  uint64_t bytes_of_token = 0;  // KV in the stage's layers
  double load_rate = 0;         // bytes a second of the stores' answers
  double prefill_rate = 0;      // tokens a second through the stage's layers
};

// All of the blocks or none. The stages load at the same time and compute as a pipeline, so the
// slowest of them decides on both sides. While nothing is known, and while it takes up to kPatience
// times as long, blocks are loaded: that leaves the stages' cores to other requests.
inline constexpr double kPatience = 1.5;
uint32_t worth_loading(uint32_t blocks, std::span<const LoadCosts> stages);

}  // namespace coordinator
