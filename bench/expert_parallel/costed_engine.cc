#include "bench/expert_parallel/costed_engine.h"

#include <algorithm>
#include <map>
#include <utility>

namespace bench {

void CostedEngine::use(uint64_t elements, uint64_t rows, double times) {
  if (rows == 0) return;
  const auto n = static_cast<double>(elements);
  seconds_ += times * std::max(n / host_.bytes_per_second,
                               n * static_cast<double>(rows) / host_.madds_per_second);
}

base::Duration CostedEngine::take_cost() {
  return base::Duration(static_cast<int64_t>(std::exchange(seconds_, 0.0) * 1e9));
}

void CostedEngine::experts(uint32_t layer, std::span<const float> x, std::span<const uint16_t> rows,
                           std::span<const uint16_t> experts, std::span<float> out) {
  std::map<uint16_t, uint64_t> rows_of;
  for (const uint16_t expert : experts) ++rows_of[expert];
  for (const auto& [expert, count] : rows_of) use(model_.expert, count, 1);
  pairs_ += experts.size();
  of_.experts(layer, x, rows, experts, out);
}

}  // namespace bench
