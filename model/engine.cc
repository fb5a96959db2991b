#include "model/engine.h"

#include <algorithm>
#include <cmath>

namespace model {

bool all_finite(std::span<const float> values) {
  return std::all_of(values.begin(), values.end(), [](float v) { return std::isfinite(v); });
}

}  // namespace model
