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
    std::span<const TokenId> drafts;
    model::Segment segment;
    segment.row = static_cast<uint32_t>(pass_.tokens.size());
    if (member->speculation) drafts = member->speculation->drafts();
    segment.count = 1 + static_cast<uint32_t>(drafts.size());
    CHECK(position + segment.count <= member->blocks.size() * model::kBlockTokens,
          "{} rows from position {} on have {} blocks", segment.count, position,
          member->blocks.size());
    segment.position = position;
    segment.kv = model::KvView{&pool, member->blocks};
    segment.context = std::span<const TokenId>(member->tokens).subspan(position - back, back);
    pass_.tokens.push_back(member->tokens.back());
    pass_.tokens.insert(pass_.tokens.end(), drafts.begin(), drafts.end());
    pass_.segments.push_back(segment);
  }
  rows_.resize(pass_.rows());
  std::iota(rows_.begin(), rows_.end(), 0u);
  next_.resize(members.size());
}

void StepBatch::sample(model::Engine& engine) {
  const model::Shape& shape = engine.shape();
  const bool drafts = std::ranges::any_of(
      members_, [](const Sequence* member) { return member->speculation.has_value(); });
  logits_.resize(rows_.size() * shape.vocab);
  engine.head(pass_, rows_, logits_, drafts ? &hidden_ : nullptr);
  for (size_t member = 0; member < members_.size(); ++member) {
    next_[member] = verify(member, shape);
    const Next& next = next_[member];
    Sequence& sequence = *members_[member];
    if (!sequence.speculation || next.run.tokens.empty()) continue;
    sequence.draft_length.add(next.drafted, next.run.accepted);
    const size_t first = pass_.segments[member].row;
    sequence.speculation->add_hidden(std::span<const float>(hidden_).subspan(
        first * shape.hidden, next.run.tokens.size() * shape.hidden));
  }
}

StepBatch::Next StepBatch::verify(size_t member, const model::Shape& shape) const {
  const model::Segment& segment = pass_.segments[member];
  const std::span<const uint32_t> faulty =
      std::span<const uint32_t>(pass_.faulty).subspan(segment.row, segment.count);
  const auto bad = std::ranges::find_if(faulty, [](uint32_t layer) { return layer != 0; });
  const auto good = static_cast<uint32_t>(bad - faulty.begin());
  Next next;
  next.drafted = segment.count - 1;
  if (good == 0) return next;
  const std::span<const TokenId> drafts =
      std::span<const TokenId>(pass_.tokens).subspan(segment.row + 1, good - 1);
  Sequence& sequence = *members_[member];
  const std::span<const TokenId> tokens(sequence.tokens);
  const auto logits = std::span<const float>(logits_).subspan(size_t{segment.row} * shape.vocab,
                                                              size_t{good} * shape.vocab);
  const model::SampleInput input{logits, tokens.first(sequence.prompt_tokens),
                                 tokens.subspan(sequence.prompt_tokens), shape.eos,
                                 sequence.matcher ? &*sequence.matcher : nullptr};
  next.stuck = input.constraint != nullptr && input.constraint->allowed(input.emitted).empty();
  next.finite = next.stuck;
  if (next.stuck) return next;
  next.run = model::verify_drafts(drafts, input, sequence.sampling);
  next.finite = !next.run.tokens.empty();
  return next;
}

std::string StepBatch::fault(size_t member) const {
  const uint32_t faulty = pass_.faulty[pass_.segments[member].row];
  return faulty == 0 ? "the logits are not finite"
                     : fmt::format("the hidden row of layer {} is not finite", faulty - 1);
}

}  // namespace decode
