// divide_layers: which layers each prefill stage has, so that the stage with the most work has as
// little as can be. Pure.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "model/engine.h"

namespace coordinator {

struct StageCosts {
  std::vector<uint64_t> layers;  // of each layer
  uint64_t first = 0;            // more of the first stage: the embedding
  uint64_t last = 0;             // more of the last: the head
};
// Of a prompt as long as half of the context, at most 8192 tokens.
StageCosts stage_costs(const model::Shape& shape);

struct StageDivision {
  std::vector<model::LayerRange> stages;
  double imbalance = 0;  // what the largest stage has over the mean: 0.1 is ten per cent
};
// Contiguous ranges, none empty. Of divisions whose largest stage is equally large the evenest; of
// these the one whose first stages have more layers.  REQUIRES: 0 < stages ≤ layers
StageDivision divide_layers(const StageCosts& costs, uint32_t stages);

}  // namespace coordinator
