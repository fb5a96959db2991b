// The one forward pass. A prefill stage runs it over a chunk and its layer range, a decode rank
// over its batch and all layers, the local engine over everything; what differs is only the Site.
#pragma once
#include <functional>

#include "base/task.h"
#include "model/engine.h"
#include "model/speculation.h"

namespace model {

// Where a pass runs: who computes, who owns the experts and the n-gram rows, who
// hears of finished KV.
class Site {
 public:
  virtual ~Site() = default;
  // Runs the job where computing happens; `rows` tells how big it is.
  virtual base::Task<void> compute(std::function<void()> job, uint32_t rows) = 0;
  // Fills pass.expert_out for routed experts of `layer` (identity experts are combine()'s). Started
  // at once and awaited at the layer's end; in between, MLP 0, attention 1 and MLP 1 use pass.h.
  // Reads pass.x, expert_ids. false: could not be had; the pass is void.
  virtual base::Task<bool> run_experts(uint32_t layer, Pass& pass) = 0;
  // Before the embedding of a pass that begins at layer 0: may set pass.ngram, from wherever the
  // rows are. Left empty, embed() looks them up.
  virtual base::Task<void> look_up(Pass& pass);
  // Whether the KV rows before the pass's positions are here in `layer`. If not, await_kv() ends
  // when they are, or when the site has given up and computes nothing more.
  virtual bool has_kv(uint32_t layer) { return (void)layer, true; }
  virtual base::Task<void> await_kv(uint32_t layer);
  // The KV rows of all of the pass's positions in `layer` are final, but for those of rows that
  // pass.faulty names.
  virtual void kv_ready(uint32_t layer, Pass& pass) { (void)layer, (void)pass; }
  // True: the pass has only some rows of its sequences' chunk, others have the rest. Then after the
  // pass has written its own KV rows of attention j, and before it attends, gather() brings those
  // of the others. false: they could not be had; the pass is void.
  virtual bool shares_sequence() const { return false; }
  virtual base::Task<bool> gather(uint32_t layer, uint32_t j, Pass& pass);
  // For a pass in which a segment has KV away: attention j, from its begin_attend() to its end,
  // with those who hold the rest (sharded_attention.h). false: the pass is void.
  virtual base::Task<bool> attend_shards(uint32_t layer, uint32_t j, Pass& pass);
};

// Runs pass.tokens through `layers`: embeds when layers.begin == 0, else pass.h holds the rows from
// the stage before. Afterwards pass.h is the residual stream after layers.end. REQUIRES: tokens,
// segments (and h) are set. False when the site gave up.
//
//   per layer:  Attention 0 → route → experts leave → MLP 0 → Attention 1 → MLP 1 → experts come
//   home → combine
base::Task<bool> forward(Engine& engine, LayerRange layers, Pass& pass, Site& site);

// Everything in this process, on this thread: for the local and reference engines, tests and
// verify.
class InlineSite final : public Site {
 public:
  explicit InlineSite(Engine& engine) : engine_(engine) {}
  base::Task<void> compute(std::function<void()> job, uint32_t rows) override;
  base::Task<bool> run_experts(uint32_t layer, Pass& pass) override;

 private:
  Engine& engine_;
};

// One whole generation in one process: the answer every cluster must give, token for token.
struct Generated {
  std::vector<TokenId> tokens;
  std::vector<base::TokenLogprobs> logprobs;  // empty unless asked for
  base::FinishReason finish = base::FinishReason::kNone;
  DraftCounters drafts;
  uint32_t forced = 0;  // tokens, of no pass of their own
};
// The KV that a generation leaves behind.
struct KvSeen {
  KvView kv;
  uint32_t positions = 0;  // that are final
  uint32_t drafted = 0;    // of these, in the MTP block's layer
};
struct GenerateOptions {
  uint32_t chunk = 256;  // 0: the whole prompt at once
  // Drafts a round, at most what the engine offers; never changes the answer.
  uint32_t mtp_steps = 0;
  bool adapt = false;  // as many of them as pay, as decode ranks do (draft_length.h)
  DraftIndex later_drafts = DraftIndex::kReuseAppend;
  std::function<void(const KvSeen&)> at_end = nullptr;  // for tests
  Constraint* constraint = nullptr;                     // what the answer must keep to
  bool force = true;  // emits what the constraint forces at once; never changes the answer
};
Generated generate(Engine& engine, std::span<const TokenId> prompt, const base::Sampling& sampling,
                   const GenerateOptions& options = {});

}  // namespace model
