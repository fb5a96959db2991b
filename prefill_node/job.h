// Job: one attempt of one request on this stage, from StartPrefill to its acknowledged commit.
#pragma once
#include <memory>
#include <optional>
#include <vector>

#include "grammar/cache.h"
#include "model/engine.h"
#include "model/sampler.h"
#include "node/store_outbox.h"
#include "prefill_node/cache_loader.h"
#include "prefill_node/chunk_plan.h"
#include "prefill_node/draft_rows.h"
#include "prefill_node/link_watch.h"
#include "prefill_node/sequence_exchange.h"
#include "prefill_node/split_shipper.h"
#include "prefill_node/stage_inputs.h"
#include "prefill_node/stage_sender.h"

namespace prefill {

class Job;

// What a job tells its actor. Each may end the job.
class JobOwner {
 public:
  virtual ~JobOwner() = default;
  virtual void job_moved(Job& job) = 0;
  // Its pass waits for other ranks or for cached KV, or goes on; meanwhile others may compute.
  virtual void job_waits(bool waits) = 0;
  virtual void job_stale(Job& job) = 0;
  virtual void job_failed(Job& job, base::Error error, bool without_cache, base::NodeId blamed) = 0;
};

struct JobCounters {
  uint64_t links_slow = 0;      // times that a link was found slow
  base::Duration kv_exposed{};  // from the end of a job's compute until its KV was acknowledged
};

// What all jobs of a stage share.
struct StageFacts {
  Context& ctx;
  JobOwner& owner;
  const model::Shape& shape;
  model::LayerRange layers;  // whose KV the stage keeps (Shape::kv_range)
  model::KvPool& pool;
  const ChunkPlan& chunks;
  ShipperCounters& shipped;
  LoadCounters& loaded;
  node::StoreOutbox& outbox;
  const node::View& view;  // whose stores computed blocks are offered to
  JobCounters& counters;
  ExchangeCounters& exchanged;
  const base::Result<grammar::Vocabulary>& vocabulary;  // of constrained requests
  LinkWatch& links;
};

class Job final : private Party {
 public:
  // REQUIRES: plausible(); `blocks` hold all tokens and are the caller's to release when the job is
  // over and no pass of it runs.
  Job(const StageFacts& facts, proto::StartPrefill start, std::vector<model::BlockId> blocks);
  // Values in their ranges, and this node is one of the stages.
  static bool plausible(const proto::StartPrefill& start, const model::Shape& shape,
                        base::NodeId self);

  // Loads what is cached and watches the deadline.
  void begin();
  proto::Outcome accept(const proto::StageInput& input, const base::Blob& rows);
  proto::Outcome accept(const proto::SequenceKv& message, base::NodeId from,
                        const base::Blob& rows);

  // A chunk can be computed now: its input is here, its output has room to go.
  bool runnable() const;
  // Of that chunk.  REQUIRES: runnable()
  uint64_t chunk_cost() const;
  // Sets up pass() for this rank's rows of the next chunk.  REQUIRES: runnable()
  void begin_chunk();
  // Whether the cached rows of `layer` are here; await_kv() ends when they are or it is over.
  bool has_kv(uint32_t layer) const { return over_ || !loader_ || loader_->has(layer); }
  Task<void> await_kv(uint32_t layer);
  // Several ranks share the sequence: gives this one's KV rows of an attention to the others, takes
  // theirs. False: the job is over.
  bool shares_sequence() const { return exchange_.has_value(); }
  std::vector<base::NodeId> ranks_of_stage() const;
  Task<bool> gather(uint32_t layer, uint32_t part);
  // The KV rows of the chunk in `layer` are final, on every rank: rank 0's leave.
  void layer_done(uint32_t layer);
  // The stage makes the KV of the drafting block: after the layers, for each chunk.
  bool drafts() const { return facts_.layers.end > facts_.shape.layers; }
  Task<bool> draft(model::Site& site, model::Engine& engine);
  // A row of the chunk is not finite: the attempt fails, nothing more of it leaves.
  void numerical_error(const std::string& what);
  // The pass has ended: its rows leave for the next stage.
  void end_chunk();
  bool at_last_token() const { return pass_end_ == total_; }  // of the chunk in the pass
  // This node draws the first token: it has the last row.
  bool samples() const { return !sender_ && rank_ == 0; }
  const base::GrammarText& grammar_text() const { return sampling_.grammar; }
  // On the compute side, after the last chunk of the last stage. `grammar`: of grammar_text(), this
  // call's alone; null: it is compiled, and left there for the next job.
  void sample(model::Engine& engine, std::unique_ptr<grammar::Grammar>& grammar);

  // Everything is computed and acknowledged: rank 0 sends the commit, once. True: it was taken, or
  // is not this rank's to send.
  bool conclude();
  // Nothing is wanted any more; what waits ends without effect.
  void end();

  const JobKey& key() const { return key_; }
  bool over() const override { return over_; }
  bool computing() const { return computing_; }
  bool computed() const { return done_ == total_; }
  bool involves(base::NodeId node) const;
  model::Pass& pass() { return pass_; }
  const std::vector<model::BlockId>& blocks() const { return blocks_; }
  uint32_t unacknowledged() const;
  uint32_t fetching() const { return loader_ ? loader_->unanswered() : 0; }
  uint32_t cached_blocks() const { return start_.cached_blocks; }

 private:
  base::Time deadline() const override { return deadline_; }
  void moved() override;
  void stale() override { facts_.owner.job_stale(*this); }
  void failed(base::Error error, bool without_cache) override {
    facts_.owner.job_failed(*this, std::move(error), without_cache, {});
  }
  void unreachable(base::NodeId node) override;
  void waits_for(base::NodeId rank) override;
  Task<void> watch_deadline();
  // Null where refused_ says why.
  std::unique_ptr<grammar::Grammar> compile_grammar();
  void wake_pass();
  Task<void> resume_pass();
  node::BlockChain chain() const;
  // Of the slots of `layer`, those that the chunk in the pass has made final.
  struct Slots {
    uint32_t begin = 0, end = 0;
  };
  Slots final_slots(uint32_t layer) const;
  void offer_to_store(uint32_t layer, uint32_t slots);
  uint32_t next_count() const;

  // Constant after construction.
  const StageFacts facts_;
  const JobKey key_;
  const proto::StartPrefill start_;
  const base::Sampling sampling_;
  const uint32_t total_;
  const uint32_t ranks_, stage_, rank_;  // `ranks_` a stage
  const std::vector<model::BlockId> blocks_;
  const model::KvView kv_;
  const base::Time deadline_;
  // With a drafting block the last cached token is computed again: its hidden row is wanted.
  const uint32_t recomputed_;
  // Owned state.
  uint32_t done_;  // tokens whose KV is computed or cached
  bool computing_ = false, over_ = false, committing_ = false;
  base::Time computed_at_{};
  std::vector<uint32_t> offered_;  // per layer: blocks given to the store or found there
  model::Pass pass_;
  uint32_t pass_begin_ = 0, pass_end_ = 0;
  base::Slot<bool>* waiting_ = nullptr;  // in the frame of await_kv()
  uint32_t waiting_layer_ = 0;
  DraftRows drafted_;
  std::vector<float> hidden_;  // the last token's final hidden row, where drafts() and sampled
  std::optional<model::Sampled> first_;
  bool finite_ = true;
  std::optional<base::Error> refused_;  // by the request's grammar
  StageInputs inputs_;
  SplitShipper shipper_;
  std::optional<StageSender> sender_;  // not on the last stage
  std::optional<CacheLoader> loader_;  // when blocks are cached
  std::optional<SequenceExchange> exchange_;
  TaskSet tasks_;
};

}  // namespace prefill
