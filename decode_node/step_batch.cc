#include "decode_node/step_batch.h"

#include <fmt/core.h>

#include <algorithm>
#include <numeric>

#include "base/check.h"

namespace decode {

uint32_t rows_of(const Sequence& member) {
  const size_t drafts = member.speculation ? member.speculation->drafts().size() : 0;
  return static_cast<uint32_t>(1 + std::max<size_t>(drafts, member.forced));
}

void StepBatch::assemble(std::span<Sequence* const> members, model::KvPool& pool,
                         const model::Shape& shape) {
  members_ = members;
  pass_.tokens.clear();
  pass_.segments.clear();
  sampled_.clear();
  first_.clear();
  for (const Sequence* member : members) {
    CHECK(member->tokens.size() > member->forced, "a running sequence has tokens");
    const std::span<const TokenId> tokens(member->tokens);
    const uint32_t position = member->known();
    const uint32_t back = std::min(position, shape.ngram_context);
    std::span<const TokenId> drafts;  // behind the forced tokens, which drafting was given
    if (member->speculation) drafts = member->speculation->drafts();
    drafts = drafts.subspan(std::min<size_t>(drafts.size(), member->forced));
    model::Segment segment;
    segment.row = static_cast<uint32_t>(pass_.tokens.size());
    segment.count = rows_of(*member);
    const size_t blocks_end = member->first_block + member->blocks.size();
    CHECK(position + segment.count <= blocks_end * model::kBlockTokens,
          "{} rows from position {} on have blocks up to {}", segment.count, position, blocks_end);
    segment.position = position;
    segment.kv = member->kv(pool);
    segment.away = member->away;
    segment.context = tokens.subspan(position - back, back);
    pass_.tokens.insert(pass_.tokens.end(), tokens.begin() + position, tokens.end());
    pass_.tokens.insert(pass_.tokens.end(), drafts.begin(), drafts.end());
    pass_.segments.push_back(segment);
    first_.push_back(sampled_.size());
    for (uint32_t row = member->forced; row < segment.count; ++row)
      sampled_.push_back(segment.row + row);
  }
  all_rows_.resize(pass_.rows());
  std::iota(all_rows_.begin(), all_rows_.end(), 0u);
  next_.resize(members.size());
}

void StepBatch::sample(model::Engine& engine) {
  const model::Shape& shape = engine.shape();
  const bool drafts = std::ranges::any_of(
      members_, [](const Sequence* member) { return member->speculation.has_value(); });
  logits_.resize(sampled_.size() * shape.vocab);
  engine.head(pass_, sampled_, logits_);
  if (drafts) engine.final_norm(pass_, all_rows_, hidden_);
  for (size_t member = 0; member < members_.size(); ++member) {
    next_[member] = verify(member, shape);
    const Next& next = next_[member];
    Sequence& sequence = *members_[member];
    if (!sequence.speculation || next.run.tokens.empty()) continue;
    // Drafts that begin behind forced tokens say nothing of those that begin at once.
    if (sequence.forced == 0) sequence.draft_length.add(next.drafted, next.run.accepted);
    const size_t first = pass_.segments[member].row;
    const size_t rows = sequence.forced + next.run.tokens.size();
    sequence.speculation->add_hidden(
        std::span<const float>(hidden_).subspan(first * shape.hidden, rows * shape.hidden));
  }
}

StepBatch::Next StepBatch::verify(size_t member, const model::Shape& shape) const {
  const model::Segment& segment = pass_.segments[member];
  const std::span<const uint32_t> faulty =
      std::span<const uint32_t>(pass_.faulty).subspan(segment.row, segment.count);
  const auto bad = std::ranges::find_if(faulty, [](uint32_t layer) { return layer != 0; });
  const auto good = static_cast<uint32_t>(bad - faulty.begin());
  Sequence& sequence = *members_[member];
  const uint32_t before = sequence.forced;  // rows that nothing is sampled from
  Next next;
  next.drafted = segment.count - 1 - before;
  if (good <= before) return next;
  const std::span<const TokenId> drafts =
      std::span<const TokenId>(pass_.tokens).subspan(segment.row + before + 1, good - before - 1);
  const std::span<const TokenId> tokens(sequence.tokens);
  const auto logits = std::span<const float>(logits_).subspan(first_[member] * shape.vocab,
                                                              (drafts.size() + 1) * shape.vocab);
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
  const std::span<const uint32_t> faulty =
      std::span<const uint32_t>(pass_.faulty)
          .subspan(pass_.segments[member].row, members_[member]->forced + 1);
  const auto bad = std::ranges::find_if(faulty, [](uint32_t layer) { return layer != 0; });
  return bad == faulty.end() ? "the logits are not finite"
                             : fmt::format("the hidden row of layer {} is not finite", *bad - 1);
}

}  // namespace decode
