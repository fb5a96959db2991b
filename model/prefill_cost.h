// PrefillCost: what the prefill of a prompt costs, in multiply-adds, modelled from the shapes of
// the model. Layers are divided over stages, chunks are cut and turns are given by it: ratios
// matter, not the unit. Integers, so that every node decides the same. Pure.
#pragma once
#include <cstdint>
#include <limits>

namespace model {

struct ModelConfig;

struct PrefillCost {
  uint64_t embed = 0;  // of a token, on the first stage
  uint64_t row = 1;    // of a token in a layer, wherever it stands
  uint64_t pair = 0;   // of a token in a layer, for each position that it attends
  uint32_t attended = std::numeric_limits<uint32_t>::max();  // positions a token attends at most
  uint64_t score = 0;  // of a token beyond `attended` in a layer, for each position it may attend
  uint64_t head = 0;   // of a prompt, on the last stage

  // Of the tokens at [begin, end) in one layer.
  uint64_t tokens(uint32_t begin, uint32_t end) const { return before(end) - before(begin); }

 private:
  uint64_t before(uint32_t end) const;
};

PrefillCost prefill_cost(const ModelConfig& config);

}  // namespace model
