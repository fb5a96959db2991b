// PrefillActor: one stage of the prefill pipeline, a contiguous range of layers. It computes the
// chunks of the requests it was given, fairly in turn, ships the KV of each layer to the request's
// decode rank at once, and the hidden rows to the next stage. Wiring; the parts are components
// beside this file.
//
// A job ends by its acknowledged commit, a cancel, a later attempt, its deadline, a participant
// that left the view, a refusal of a peer, or the end of this node's life. Its blocks are free at
// once, or when the pass that runs on them comes back.
#pragma once
#include <atomic>
#include <functional>
#include <list>
#include <map>
#include <memory>

#include "actor/actor.h"
#include "base/fault_point.h"
#include "experts/expert_dispatch.h"
#include "experts/expert_service.h"
#include "lookup/ngram_service.h"
#include "node/membership_client.h"
#include "prefill_node/chunk_scheduler.h"
#include "prefill_node/ended_attempts.h"
#include "prefill_node/job.h"
#include "prefill_node/stage_clock.h"
#include "proto/all.h"

namespace prefill {

using actor::Incoming;

struct PrefillConfig {
  node::Identity identity;
  model::Shape shape;
  // Called on the compute pool once the stage's layers are known. The engine covers these layers,
  // the embedding when they begin at 0, the head when they end with the model's.
  std::function<base::Result<std::unique_ptr<model::Engine>>(model::LayerRange)> make_engine;
  const std::atomic<uint32_t>* load_percent = nullptr;  // of make_engine's progress; may be null
  std::function<uint64_t()> read_bytes;                 // of the checkpoint so far; may be empty
  // Called once with an engine that has the head; empty: no constrained requests.
  std::function<base::Result<grammar::Vocabulary>()> make_vocabulary;
  uint64_t kv_bytes = 256u << 20;
  uint32_t chunk_tokens = 256;  // of the first chunk of a prompt
  bool dynamic_chunks = false;  // later ones as large as costs the same (chunk_plan.h)
  bool share_experts = false;   // by the ranks of a stage; else each runs all experts of its rows
  bool share_ngram = false;     // rows of the n-gram tables, by the ranks of the first stage
  uint32_t passes = 1;          // chunks computed at once, of different jobs
  uint32_t jobs = 64;
  base::Duration scrub{};  // time in which all weights in memory are checked once; 0: never
  std::vector<base::NodeFault> faults;  // of this node; `after` counts chunks
};

// What this stage holds for others. All zero when idle.
struct Ledger {
  uint32_t jobs = 0, leaving = 0;  // leaving: over, their pass has not come back
  uint32_t blocks_used = 0;
  uint32_t unacknowledged = 0;                 // KvLayer, StageInput and SequenceKv
  uint32_t fetching = 0;                       // FetchKv unanswered
  uint32_t storing = 0;                        // PutKv waiting or unanswered
  uint32_t reports = 0;                        // AttemptFailed calls under way
  uint32_t expert_calls = 0, expert_jobs = 0;  // asked of other ranks, and by them
  uint32_t ngram_calls = 0, ngram_reads = 0;   // likewise
  bool operator==(const Ledger&) const = default;
};

struct PrefillCounters {
  uint64_t chunks = 0, tokens = 0, cached_tokens = 0, attempts_done = 0, attempts_failed = 0;
  uint64_t stale = 0, corrupt = 0, no_room = 0;
  ShipperCounters shipped;
  LoadCounters loaded;
  JobCounters jobs;
  ExchangeCounters exchanged;
  experts::ExpertCounters experts;
  lookup::NgramCounters ngram;
};

class PrefillActor final : public actor::Actor,
                           private node::MembershipClient::Owner,
                           private JobOwner {
 public:
  using In = actor::Accepts<proto::HeartbeatReply, proto::ClusterView, proto::StartPrefill,
                            proto::StageInput, proto::SequenceKv, proto::ExpertIn, proto::NgramRows,
                            proto::Cancel>;

  explicit PrefillActor(PrefillConfig config);

  void start(Context& ctx) override;
  void receive(Context& ctx, actor::Envelope&& e) override {
    In::dispatch(*this, ctx, std::move(e));
  }
  void on(Context& ctx, const Incoming<proto::HeartbeatReply>& in) { membership_.on(ctx, in); }
  void on(Context& ctx, const Incoming<proto::ClusterView>& in) { membership_.on(ctx, in); }
  void on(Context& ctx, const Incoming<proto::StartPrefill>& in);
  void on(Context& ctx, const Incoming<proto::StageInput>& in);
  void on(Context& ctx, const Incoming<proto::SequenceKv>& in);
  void on(Context& ctx, const Incoming<proto::ExpertIn>& in);
  void on(Context& ctx, const Incoming<proto::NgramRows>& in) {
    ngram_.answer(ctx, engine_.get(), in);
  }
  void on(Context& ctx, const Incoming<proto::Cancel>& in);

  Ledger ledger() const;
  const PrefillCounters& counters() const { return counters_; }
  StageClock& clock() { return clock_; }

 private:
  using Jobs = std::map<JobKey, std::unique_ptr<Job>>;

  // MembershipClient::Owner
  void welcomed(Context& ctx, const proto::HelloReply& reply) override;
  void view_changed(Context& ctx, const node::View& view) override;
  void life_lost(Context& ctx) override;
  void fill(proto::Heartbeat& beat) override;
  // JobOwner
  void job_moved(Job& job) override;
  void job_waits(bool waits) override;
  void job_stale(Job& job) override;
  void job_failed(Job& job, base::Error error, bool without_cache, base::NodeId blamed) override;

  Task<void> load(Context& ctx, model::LayerRange layers, uint64_t turn);
  Task<void> scrub(Context& ctx, uint64_t of);
  proto::Outcome open_job(Context& ctx, const proto::StartPrefill& start);
  // M: StageInput or SequenceKv.
  template <class M>
  void take_rows(Context& ctx, const Incoming<M>& in, const base::Hash128& digest);
  proto::Outcome outcome_without_job(const JobKey& key) const;
  Job* find(const JobKey& key);
  void drop_up_to(base::RequestId request, uint32_t attempt);
  void pump();
  void note_state();
  Task<void> run_chunk(Context& ctx, Job& job);
  Task<void> compute(Context& ctx, Job& job);
  void remove(Job& job);
  void release(std::unique_ptr<Job> job);
  static Task<void> bury(Context& ctx, std::unique_ptr<Job> job);
  Task<void> report(Context& ctx, proto::AttemptFailed message);

  // Constant after construction.
  const PrefillConfig config_;
  const ChunkPlan chunks_;
  Context* ctx_ = nullptr;  // since start()
  // Owned state.
  node::MembershipClient membership_;
  PrefillCounters counters_;
  model::LayerRange layers_;               // of engine_ and pool_
  std::unique_ptr<model::Engine> engine_;  // null until loaded
  std::unique_ptr<model::KvPool> pool_;    // with the engine
  base::Result<grammar::Vocabulary> vocabulary_ =
      base::fail(base::Code::kUnsupported, "this stage has no tokenizer");
  uint64_t engines_ = 0;    // rises when engine_ changes; a scrub of an older one ends
  bool scrubbing_ = false;  // a part of it runs on engine_
  uint64_t loads_ = 0;      // counts welcomes; a load of an older one ends
  std::map<base::NodeId, proto::ViewNode> seen_;  // the view before
  node::RateMeter prefill_rate_;
  std::unique_ptr<experts::ExpertDispatch> dispatch_;  // with the engine, where experts are shared
  experts::ExpertService service_;
  std::unique_ptr<lookup::NgramLookup> lookup_;  // with the engine, where n-gram tables are shared
  lookup::NgramService ngram_;
  node::StoreOutbox outbox_;
  EndedAttempts ended_;
  ChunkScheduler scheduler_;
  StageClock clock_;
  uint32_t passes_ = 0, reports_ = 0;
  uint64_t chunks_begun_ = 0;
  Jobs jobs_;
  std::list<std::unique_ptr<Job>> leaving_;
};

}  // namespace prefill
