#include "decode_node/drafter.h"

#include <algorithm>

#include "decode_node/batcher.h"

namespace decode {

Drafter::Drafter(const model::Shape& shape, uint32_t steps, uint32_t max_rows)
    : steps_(std::min({steps, shape.mtp_steps, model::kMaxDraftSteps})),
      max_rows_(max_rows),
      hidden_(shape.hidden),
      eos_(shape.eos) {}

void Drafter::begin(Sequence& sequence, std::span<const float> hidden) const {
  const auto known = static_cast<uint32_t>(sequence.tokens.size());
  sequence.speculation.emplace(static_cast<uint32_t>(hidden_), known - 1);
  sequence.speculation->add_hidden(hidden);
  sequence.draft_length = model::DraftLength(steps_);
}

void Drafter::draft(model::Engine& engine, std::span<Sequence* const> members,
                    model::KvPool& pool) {
  run(engine, members, pool, /*catch_up_only=*/false);
}

void Drafter::finish(model::Engine& engine, std::span<Sequence* const> members,
                     model::KvPool& pool) {
  run(engine, members, pool, /*catch_up_only=*/true);
}

void Drafter::run(model::Engine& engine, std::span<Sequence* const> members, model::KvPool& pool,
                  bool catch_up_only) {
  round_.clear();
  std::vector<uint32_t> drafts(members.size(), 0);  // behind the forced tokens
  uint32_t forced = 0;
  for (size_t i = 0; i < members.size() && !catch_up_only; ++i) {
    const Sequence& member = *members[i];
    const uint32_t left = member.most_emitted - member.emitted();
    const uint32_t steps = std::min(member.draft_length.steps(), member.forced + left - 1);
    drafts[i] = steps > member.forced ? steps - member.forced : 0;
    forced += member.forced;
  }
  trim_drafts(drafts, max_rows_ > forced ? max_rows_ - forced : 0);
  for (size_t i = 0; i < members.size(); ++i) {
    Sequence* const member = members[i];
    const std::span<const TokenId> all(member->tokens);
    const std::span<const TokenId> tokens = all.first(all.size() - member->forced);
    model::Drafting drafting;
    drafting.state = &*member->speculation;
    drafting.kv = member->kv(pool);
    drafting.tokens = tokens;
    drafting.given = all.subspan(tokens.size());
    if (drafts[i] > 0) drafting.steps = member->forced + drafts[i];
    drafting.choose = model::draft_sampler(
        tokens.first(member->prompt_tokens), tokens.subspan(member->prompt_tokens), eos_,
        member->sampling, member->matcher ? &*member->matcher : nullptr);
    round_.push_back(std::move(drafting));
  }
  model::draft_round(engine, round_, pass_);
}

std::vector<Sequence*> Drafter::behind(std::span<Sequence* const> members) {
  const auto lags = [](const Sequence& sequence) {
    return sequence.doomed && sequence.speculation &&
           final_slots(sequence) / model::kBlockTokens < sequence.known() / model::kBlockTokens;
  };
  std::vector<Sequence*> out;
  for (Sequence* member : members)
    if (lags(*member)) out.push_back(member);
  return out;
}

uint32_t final_slots(const Sequence& sequence) {
  const uint32_t known = sequence.known();
  return sequence.speculation ? std::min(known, sequence.speculation->filled() + 1) : known;
}

}  // namespace decode
