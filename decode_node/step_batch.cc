#include "decode_node/step_batch.h"

#include <fmt/core.h>

#include <algorithm>
#include <numeric>

#include "base/check.h"

namespace decode {

void StepBatch::assemble(std::span<Sequence* const> members, model::KvPool& pool,
                         const model::Shape& shape) {
  members_ = members;
  pass_.tokens.clear();
  pass_.segments.clear();
  for (const Sequence* member : members) {
    CHECK(!member->tokens.empty(), "a running sequence has tokens");
    const auto position = static_cast<uint32_t>(member->tokens.size() - 1);
    const uint32_t back = std::min(position, shape.ngram_context);
    model::Segment segment;
    segment.row = static_cast<uint32_t>(pass_.tokens.size());
    segment.count = 1;
    segment.position = position;
    segment.kv = model::KvView{&pool, member->blocks};
    segment.context = std::span<const TokenId>(member->tokens).subspan(position - back, back);
    pass_.tokens.push_back(member->tokens.back());
    pass_.segments.push_back(segment);
  }
  rows_.resize(members.size());
  std::iota(rows_.begin(), rows_.end(), 0u);
  next_.resize(members.size());
}

void StepBatch::sample(model::Engine& engine) {
  const model::Shape& shape = engine.shape();
  logits_.resize(rows_.size() * shape.vocab);
  engine.head(pass_, rows_, logits_);
  for (size_t row = 0; row < rows_.size(); ++row) {
    const auto logits = std::span<const float>(logits_).subspan(row * shape.vocab, shape.vocab);
    Next& next = next_[row];
    next.finite = pass_.faulty[row] == 0 && model::all_finite(logits);
    if (!next.finite) continue;
    Sequence& member = *members_[row];
    const std::span<const TokenId> tokens(member.tokens);
    grammar::Matcher* matcher = member.matcher ? &*member.matcher : nullptr;
    const model::SampleInput input{logits, tokens.first(member.prompt_tokens),
                                   tokens.subspan(member.prompt_tokens), shape.eos, matcher};
    next.stuck = matcher != nullptr && matcher->allowed(input.emitted).empty();
    if (next.stuck) continue;
    next.sampled = model::sample(input, member.sampling);
  }
}

std::string StepBatch::fault(size_t row) const {
  const uint32_t faulty = pass_.faulty[row];
  return faulty == 0 ? "the logits are not finite"
                     : fmt::format("the hidden row of layer {} is not finite", faulty - 1);
}

}  // namespace decode
