#include "coordinator/load_choice.h"

#include <algorithm>

namespace coordinator {

uint32_t worth_loading(uint32_t blocks, std::span<const LoadCosts> stages) {
  double load = 0, compute = 0;  // seconds for a token
  for (const LoadCosts& stage : stages) {
    if (stage.load_rate <= 0 || stage.prefill_rate <= 0) return blocks;
    load = std::max(load, static_cast<double>(stage.bytes_of_token) / stage.load_rate);
    compute = std::max(compute, 1 / stage.prefill_rate);
  }
  return load <= kPatience * compute ? blocks : 0;
}

}  // namespace coordinator
