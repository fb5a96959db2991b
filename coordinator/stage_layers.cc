#include "coordinator/stage_layers.h"

#include <algorithm>
#include <limits>
#include <tuple>

#include "base/check.h"

namespace coordinator {

namespace {

constexpr uint32_t kPrompt = 8192;

// A division of the first layers among some stages, as good as it gets.
struct Best {
  double most = std::numeric_limits<double>::infinity();     // cost of the largest stage
  double squares = std::numeric_limits<double>::infinity();  // least where it is evenest
  uint32_t begin = 0;                                        // of the last stage in it
};

}  // namespace

StageCosts stage_costs(const model::Shape& shape) {
  const uint32_t prompt = std::clamp(shape.max_context / 2, 1u, kPrompt);
  StageCosts costs;
  costs.layers.assign(shape.layers, shape.cost.tokens(0, prompt));
  costs.first = shape.cost.embed * prompt;
  costs.last = shape.cost.head;
  return costs;
}

StageDivision divide_layers(const StageCosts& costs, uint32_t stages) {
  const auto layers = static_cast<uint32_t>(costs.layers.size());
  CHECK(stages > 0 && stages <= layers, "{} layers cannot be divided over {} stages", layers,
        stages);
  std::vector<double> before(layers + 1, 0);  // cost of the layers before each
  for (uint32_t i = 0; i < layers; ++i)
    before[i + 1] = before[i] + static_cast<double>(costs.layers[i]);
  const auto cost = [&](uint32_t stage, uint32_t begin, uint32_t end) {
    return before[end] - before[begin] + (stage == 0 ? static_cast<double>(costs.first) : 0) +
           (stage + 1 == stages ? static_cast<double>(costs.last) : 0);
  };
  // best[s][n]: the first n layers among stages 0 … s.
  std::vector<std::vector<Best>> best(stages, std::vector<Best>(layers + 1));
  for (uint32_t n = 1; n <= layers; ++n)
    best[0][n] = {cost(0, 0, n), cost(0, 0, n) * cost(0, 0, n), 0};
  for (uint32_t stage = 1; stage < stages; ++stage) {
    for (uint32_t n = stage + 1; n <= layers; ++n) {
      Best& here = best[stage][n];
      for (uint32_t begin = n - 1; begin >= stage; --begin) {
        const Best& others = best[stage - 1][begin];
        const double own = cost(stage, begin, n);
        const double most = std::max(others.most, own), squares = others.squares + own * own;
        if (std::tie(most, squares) < std::tie(here.most, here.squares))
          here = {most, squares, begin};
      }
    }
  }
  StageDivision division;
  division.stages.resize(stages);
  uint32_t end = layers;
  for (uint32_t stage = stages; stage-- > 0;) {
    const uint32_t begin = best[stage][end].begin;
    division.stages[stage] = {begin, end};
    end = begin;
  }
  const double whole =
      before[layers] + static_cast<double>(costs.first) + static_cast<double>(costs.last);
  if (whole > 0) division.imbalance = best[stages - 1][layers].most * stages / whole - 1;
  return division;
}

}  // namespace coordinator
