#include "model/forced_run.h"

namespace model {

std::vector<TokenId> forced_run(Constraint& constraint, std::span<const TokenId> emitted,
                                std::span<const TokenId> eos, const base::Sampling& sampling,
                                uint32_t most) {
  std::vector<TokenId> run;
  if (sampling.top_logprobs >= 0) return run;
  std::vector<TokenId> all(emitted.begin(), emitted.end());
  while (run.size() < most) {
    const TokenId only = constraint.only_token(all);
    if (only == Constraint::kNoToken) break;
    all.push_back(only);
    run.push_back(only);
    if (finish_after(all, eos, sampling) != base::FinishReason::kNone) break;
  }
  return run;
}

}  // namespace model
