// Sequence: one attempt of one request on this rank, from its reservation to its last token.
#pragma once
#include <compare>
#include <optional>
#include <span>
#include <vector>

#include "base/generation.h"
#include "base/time.h"
#include "decode_node/kv_intake.h"
#include "grammar/cache.h"
#include "model/speculation.h"

namespace decode {

using base::RequestId;
using base::Time;
using base::TokenId;

struct SequenceKey {
  RequestId request;
  uint32_t attempt = 0;
  auto operator<=>(const SequenceKey&) const = default;
};

struct Sequence {
  SequenceKey key;
  // Prompt, then emitted. Between steps of a running one all but the last have KV.
  std::vector<TokenId> tokens;
  uint32_t prompt_tokens = 0;
  uint32_t forced = 0;  // last tokens that this step emitted without a pass (forced_tokens.h)
  base::Sampling sampling;
  uint32_t most_emitted = 0;  // min(max_tokens, what the context leaves)
  int32_t priority = 0;       // lower goes first (batcher.h)
  bool whole = false;         // has blocks for its longest answer, and never gives way
  std::vector<model::BlockId> blocks;
  uint32_t held_blocks = 0;  // leading ones that another sequence had filled before (held_blocks.h)
  uint32_t final_blocks = 0;  // leading ones in which no row of any layer is written any more
  // Where others hold the sequence's first positions (proto/shards.h): what, who, and the first
  // block that is here.
  std::vector<model::KvRange> away;
  std::vector<base::NodeId> holders;
  uint32_t first_block = 0;
  base::Hash128 block_root, space;        // of the names of its blocks; zero: not to be stored
  std::vector<base::Hash128> block_keys;  // of the full blocks, as far as they were needed
  uint32_t stored_blocks = 0;             // leading ones that were offered, here or by prefill
  KvIntake intake;
  struct First {
    TokenId token = 0;
    std::vector<proto::LogprobFields> logprobs;  // none or one
    std::vector<float> hidden;                   // the row it was sampled from; empty: not wanted
  };
  std::optional<First> first;               // sampled by the last stage
  grammar::Cache::Handle grammar;           // what a constrained one must keep to, once compiled
  std::optional<grammar::Matcher> matcher;  // how far it has come in that
  // While it runs, where drafts are made (drafter.h).
  std::optional<model::Speculation> speculation;
  model::DraftLength draft_length;
  Time deadline{};
  Time heard{};           // of its stages; the reservation counts
  uint64_t ticket = 0;    // order of admission to the batch; 0: still a reservation
  bool in_step = false;   // in the batch
  bool offering = false;  // blocks of it are to be copied for a store (block_offers.h)
  // Ended while in the batch or while blocks are offered: freed afterwards, its result is dropped.
  bool doomed = false;

  model::KvView kv(model::KvPool& pool) const { return {&pool, blocks, first_block}; }
  // Constrained, and not to be run before it has its grammar.
  bool waits_for_grammar() const {
    return sampling.grammar.kind != base::GrammarKind::kNone && !matcher;
  }
  // Everything that its first step needs is here.
  bool complete() const { return intake.all_committed() && first && !waits_for_grammar(); }
  bool running() const { return ticket != 0 && !doomed; }
  uint32_t emitted() const { return static_cast<uint32_t>(tokens.size()) - prompt_tokens; }
  // Positions with KV, while it runs.
  uint32_t known() const { return static_cast<uint32_t>(tokens.size()) - 1 - forced; }
};

// How a sequence stands after its last token.
base::FinishReason finish_of(const Sequence& sequence, std::span<const TokenId> eos);

}  // namespace decode
