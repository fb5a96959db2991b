#include "model/engine.h"

#include <algorithm>
#include <cmath>

namespace model {

void Engine::final_norm(const Pass& pass, std::span<const uint32_t> rows,
                        std::vector<float>& out) {
  std::vector<float> logits(rows.size() * shape().vocab);
  head(pass, rows, logits, &out);
}

bool all_finite(std::span<const float> values) {
  return std::all_of(values.begin(), values.end(), [](float v) { return std::isfinite(v); });
}

}  // namespace model
