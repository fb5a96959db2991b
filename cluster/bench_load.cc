#include "cluster/bench_load.h"

#include <algorithm>

#include "base/rng.h"

namespace cluster {

std::vector<uint32_t> bench_prompt(uint64_t seed, uint32_t index, uint32_t tokens, uint32_t vocab) {
  base::Rng rng(seed, index);
  std::vector<uint32_t> prompt(tokens);
  const uint32_t least = std::min(100u, vocab / 2);  // above the special tokens
  for (uint32_t& token : prompt) token = least + static_cast<uint32_t>(rng.below(vocab - least));
  return prompt;
}

}  // namespace cluster
