// DecodeActor: one rank of expert-parallel decode. It takes in the KV of requests reserved here,
// runs complete ones in a continuous batch, streams their tokens to the coordinator, and runs its
// share of the experts for the other ranks. Wiring; the parts are components beside this file.
//
// An attempt ends here by its last token, a cancel, a later attempt, a numerical error, its
// deadline, silence of its stages, or the end of this node's life. Its blocks are free at once, or
// at the end of the step it is in.
#pragma once
#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "actor/actor.h"
#include "base/fault_point.h"
#include "decode_node/block_offers.h"
#include "decode_node/drafter.h"
#include "decode_node/expert_exchange.h"
#include "decode_node/expert_plans.h"
#include "decode_node/forced_tokens.h"
#include "decode_node/grammars.h"
#include "decode_node/kv_shards.h"
#include "decode_node/micro_batches.h"
#include "decode_node/sequence_table.h"
#include "decode_node/token_outbox.h"
#include "experts/expert_service.h"
#include "lookup/ngram_service.h"
#include "node/membership_client.h"
#include "proto/all.h"

namespace decode {

using actor::Context;
using actor::Incoming;
using base::Task;

struct DecodeConfig {
  node::Identity identity;
  model::Shape shape;
  // Called once, on the compute pool. The engine covers all layers, embedding and head.
  std::function<base::Result<std::unique_ptr<model::Engine>>()> make_engine;
  const std::atomic<uint32_t>* load_percent = nullptr;  // of make_engine's progress; may be null
  std::function<uint64_t()> read_bytes;                 // of the checkpoint so far; may be empty
  MakeVocabulary make_vocabulary;  // called once with the engine; empty: no constrained requests
  uint64_t kv_bytes = 512u << 20;
  uint32_t max_batch = 32;
  bool share_ngram = false;    // n-gram rows come from the rank whose share has them
  uint32_t mtp_steps = 0;      // drafts of a sequence in a step, at most; the shape must offer them
  uint32_t micro_batches = 1;  // passes of a step under way at once, at most MicroBatches::kMost
  uint32_t micro_rows = 8;     // that each of them has at least
  uint32_t max_rows = 0;       // of a step, drafts included; 0: twice max_batch, 32 at least
  uint32_t steps_per_schedule = 1;
  bool force_tokens = true;  // what a grammar forces costs no pass of its own; off: for comparison
  uint32_t max_sequences = 1024;
  ExpertPlanOptions experts;
  base::Duration scrub{};  // time in which all weights in memory are checked once; 0: never
  base::Duration leave_within = std::chrono::seconds(30);  // leave(): what runs then moves
  std::vector<base::NodeFault> faults;                     // of this node; `after` counts steps
};

// What this rank holds for others. All zero when idle.
struct Ledger {
  uint32_t reservations = 0, running = 0, ending = 0, blocks_used = 0;
  uint32_t shares = 0;   // of other ranks' sequences
  uint32_t outbox = 0;   // token messages unacknowledged, entries waiting
  uint32_t reports = 0;  // AttemptFailed and KvInUse calls under way
  uint32_t expert_calls = 0,
           expert_jobs = 0;  // asked of others, n-gram rows too; computed for others
  uint32_t ngram_reads = 0;  // for others
  uint32_t storing = 0;      // PutKv waiting or unanswered, sequences with blocks to be copied
  uint32_t compiling = 0;    // grammars
  uint32_t experts_loading = 0;
  bool operator==(const Ledger&) const = default;
};

class DecodeActor final : public actor::Actor,
                          private node::MembershipClient::Owner,
                          private TokenOutbox::Owner {
 public:
  using In =
      actor::Accepts<proto::HeartbeatReply, proto::ClusterView, proto::ReserveKv, proto::KvLayer,
                     proto::KvCommit, proto::Cancel, proto::ExpertIn, proto::ExpertPlan,
                     proto::NgramRows, proto::HoldKv, proto::KvQuestion, proto::KvInUse>;
  // KvLayer messages a stage may have unacknowledged.
  static constexpr uint32_t kCredits = 8;

  explicit DecodeActor(DecodeConfig config);
  // Blocks that fit into `kv_bytes` of KV memory.
  static uint32_t blocks_in(uint64_t kv_bytes, const model::Shape& shape);

  void start(Context& ctx) override;
  void receive(Context& ctx, actor::Envelope&& e) override {
    In::dispatch(*this, ctx, std::move(e));
  }
  void peer_down(Context& ctx, NodeId node) override;
  // Leaves the running cluster and stops with 0 (decode_leave.cc).
  void leave(Context& ctx);

  void on(Context& ctx, const Incoming<proto::HeartbeatReply>& in) {
    coordinator_lost_ = false;
    membership_.on(ctx, in);
  }
  void on(Context& ctx, const Incoming<proto::ClusterView>& in) { membership_.on(ctx, in); }
  void on(Context& ctx, const Incoming<proto::ReserveKv>& in);
  void on(Context& ctx, const Incoming<proto::KvLayer>& in);
  void on(Context& ctx, const Incoming<proto::KvCommit>& in);
  void on(Context& ctx, const Incoming<proto::Cancel>& in);
  void on(Context& ctx, const Incoming<proto::ExpertIn>& in);
  void on(Context& ctx, const Incoming<proto::NgramRows>& in) {
    ngram_.answer(ctx, engine_.get(), in);
  }
  void on(Context& ctx, const Incoming<proto::ExpertPlan>& in) { plans_.on(ctx, in); }
  void on(Context& ctx, const Incoming<proto::HoldKv>& in);
  void on(Context& ctx, const Incoming<proto::KvQuestion>& in);
  void on(Context& ctx, const Incoming<proto::KvInUse>& in);

  Ledger ledger() const;
  const Counters& counters() const { return counters_; }
  const ExpertPlans& plans() const { return plans_; }

 private:
  // MembershipClient::Owner
  void welcomed(Context& ctx, const proto::HelloReply& reply) override;
  void view_changed(Context& ctx, const node::View& view) override;
  void life_lost(Context& ctx) override;
  void fill(proto::Heartbeat& beat) override;
  // TokenOutbox::Owner
  void tokens_stale(Context& ctx, const SequenceKey& key) override;
  void tokens_lost(Context& ctx, const SequenceKey& key) override;
  void outbox_moved(Context& ctx) override { kick(ctx); }

  Task<void> load(Context& ctx);
  Task<void> scrub(Context& ctx);
  Task<void> watch(Context& ctx);
  Task<void> finish(Context& ctx);
  bool serves() const;

  proto::Outcome absent(const SequenceKey& key);
  proto::Outcome take_rows(Context& ctx, const Incoming<proto::KvLayer>& in);
  bool sound(const Incoming<proto::KvCommit>& in) const;
  proto::Outcome take_commit(Context& ctx, const Incoming<proto::KvCommit>& in);
  void begin_decode(Context& ctx, Sequence& sequence);
  Task<void> compile(Context& ctx, base::GrammarText text);

  void kick(Context& ctx);
  Task<void> run_steps(Context& ctx);
  const std::vector<Sequence*>& schedule(Context& ctx);
  Task<bool> run_step(Context& ctx, const std::vector<Sequence*>& batch);
  Task<void> emit_forced(Context& ctx, const std::vector<Sequence*>& batch);
  void count_step(size_t sequences, base::Duration took, bool loading);
  void inject_faults();
  Task<bool> compute_step(Context& ctx, const std::vector<Sequence*>& batch);
  void settle(Context& ctx, const std::vector<Sequence*>& batch, bool passed);
  Task<void> note_blocks(Context& ctx, const std::vector<Sequence*>& batch);
  Task<void> offer_noted(Context& ctx);
  void offer_one(Context& ctx);
  void emit(Sequence& sequence, std::vector<TokenId> tokens,
            std::vector<proto::LogprobFields> logprobs);
  void fail_attempt(Context& ctx, Sequence& sequence, base::Code code, std::string what,
                    bool without_cache = false, base::NodeId blamed = {});
  void tell_failure(Context& ctx, const SequenceKey& key, base::Code code, std::string what,
                    bool without_cache, base::NodeId blamed);

  // --- decode_shards.cc
  proto::Outcome take_share_rows(Context& ctx, const Incoming<proto::KvLayer>& in);
  proto::Outcome take_share_commit(Context& ctx, const Incoming<proto::KvCommit>& in);
  void watch_shares(Context& ctx);
  void end_share(KvShards::Share& share);
  void fail_share(Context& ctx, KvShards::Share& share, base::Code code, std::string what,
                  bool without_cache);
  Task<void> ask_owner(Context& ctx, SequenceKey key, base::NodeId owner);
  void preempt(Context& ctx, Sequence& sequence);
  Task<void> report(Context& ctx, proto::AttemptFailed message);

  // Constant after construction.
  const DecodeConfig config_;
  // Owned state.
  Counters counters_;
  node::MembershipClient membership_;
  Grammars grammars_;  // outlives the sequences that use them
  SequenceTable table_;
  KvShards shards_;
  TokenOutbox outbox_;
  BlockOffers offers_;
  ExpertPlans plans_;
  experts::ExpertService service_;
  lookup::NgramService ngram_;
  Drafter drafter_;
  ForcedTokens forced_;
  MicroBatches step_;
  std::unique_ptr<model::Engine> engine_;     // null until loaded
  std::unique_ptr<ExpertExchange> exchange_;  // with the engine
  bool loading_ = false, positioned_ = false, stepping_ = false, offering_ = false;
  bool leaving_ = false, coordinator_lost_ = false;
  uint32_t reports_ = 0;
};

}  // namespace decode
