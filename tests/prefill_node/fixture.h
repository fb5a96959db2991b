// A cluster of prefill stages in simulation: a coordinator that only does membership and records
// failures, a decode rank that only collects, and a real kvstore.
#pragma once
#include <gtest/gtest.h>

#include <map>
#include <optional>
#include <set>
#include <string>

#include "actor/sim_host.h"
#include "kvstore/kvstore_actor.h"
#include "model/engine.h"
#include "prefill_node/prefill_actor.h"

namespace prefill_test {

using actor::Context;
using actor::Incoming;
using base::NodeId;

class FakeCoordinator final : public actor::Actor {
 public:
  using In = actor::Accepts<proto::Hello, proto::Heartbeat, proto::AttemptFailed>;
  // `ranks` a stage.
  FakeCoordinator(uint32_t stages, uint32_t ranks, uint32_t layers)
      : stages_(stages), ranks_(ranks), layers_(layers) {}

  void start(Context& ctx) override { ctx_ = &ctx; }
  void receive(Context& ctx, actor::Envelope&& e) override {
    In::dispatch(*this, ctx, std::move(e));
  }
  void on(Context& ctx, const Incoming<proto::Hello>& in);
  void on(Context& ctx, const Incoming<proto::Heartbeat>& in);
  void on(Context& ctx, const Incoming<proto::AttemptFailed>& in);

  NodeId node(const std::string& name) const;  // 0: not here
  bool ready(const std::string& name) const;
  void declare_dead(const std::string& name);
  // Calls the node and keeps the outcome; kMissing until it has answered.
  template <class M>
  void ask(NodeId node, uint16_t actor, M message, proto::Outcome* outcome) {
    ctx_->spawn(run_ask(ctx_, node, actor, std::move(message), outcome));
  }
  void look_up(NodeId store, proto::LookupPrefix message, std::optional<uint32_t>* blocks) {
    ctx_->spawn(run_look_up(ctx_, store, std::move(message), blocks));
  }
  std::vector<proto::AttemptFailed> failures;

 private:
  static base::Task<void> run_look_up(Context* ctx, NodeId store, proto::LookupPrefix message,
                                      std::optional<uint32_t>* blocks);
  template <class M>
  static base::Task<void> run_ask(Context* ctx, NodeId node, uint16_t actor, M message,
                                  proto::Outcome* outcome) {
    const actor::Address to{node, actor};
    const actor::CallOptions options{"ask", std::chrono::milliseconds(100),
                                     std::chrono::seconds(10)};
    auto call = ctx->call<proto::Done>(to, std::move(message), options);
    const auto answer = co_await std::move(call);
    if (outcome != nullptr && answer) *outcome = answer->msg.outcome;
  }
  void send_view();
  proto::ClusterView view() const;

  const uint32_t stages_, ranks_, layers_;
  Context* ctx_ = nullptr;
  std::map<NodeId, proto::ViewNode> nodes_;
  uint64_t epoch_ = 0;
};

// What arrived for one attempt.
struct Collected {
  std::map<std::pair<uint32_t, uint32_t>, std::pair<base::Hash128, base::Blob>>
      rows;                                     // (layer, begin) → digest and bytes
  std::map<uint32_t, proto::KvCommit> commits;  // by first layer
  base::Blob hidden;                            // that came with one of them
};

class FakeDecode final : public actor::Actor, private node::MembershipClient::Owner {
 public:
  using In =
      actor::Accepts<proto::HeartbeatReply, proto::ClusterView, proto::KvLayer, proto::KvCommit>;
  FakeDecode();
  void start(Context& ctx) override { membership_.start(ctx); }
  void receive(Context& ctx, actor::Envelope&& e) override {
    In::dispatch(*this, ctx, std::move(e));
  }
  void on(Context& ctx, const Incoming<proto::HeartbeatReply>& in) { membership_.on(ctx, in); }
  void on(Context& ctx, const Incoming<proto::ClusterView>& in) { membership_.on(ctx, in); }
  void on(Context& ctx, const Incoming<proto::KvLayer>& in);
  void on(Context& ctx, const Incoming<proto::KvCommit>& in);

  std::map<prefill::JobKey, Collected> collected;
  std::map<uint64_t, size_t> commit_order;  // request → place among the first commits with a token
  proto::Outcome answer_rows = proto::Outcome::kOk;  // of every KvLayer
  uint32_t corrupt_first = 0;                        // so many KvLayer are called corrupt
  uint32_t conflicts = 0;                            // rows that came again with other bytes
  bool silent = false;                               // answers nothing

 private:
  void welcomed(Context& ctx, const proto::HelloReply&) override { membership_.ready(ctx); }
  void view_changed(Context&, const node::View&) override {}
  void life_lost(Context&) override {}
  void fill(proto::Heartbeat&) override {}
  node::MembershipClient membership_;
};

struct ClusterOptions {
  uint64_t seed = 1;
  uint32_t stages = 2, sequence_ranks = 1;
  bool dynamic_chunks = false, share_experts = false;
  uint64_t kv_bytes = 4u << 20;
  uint32_t chunk_tokens = 32;
  uint32_t jobs = 64;
  uint32_t passes = 1;
  uint32_t stores = 1;
  uint32_t mtp_steps = 0;                                       // that the oracle offers
  std::function<std::unique_ptr<model::Engine>()> make_engine;  // default: the oracle
};

class Cluster {
 public:
  explicit Cluster(const ClusterOptions& options);

  void await_ready();  // ASSERTs inside
  std::vector<uint32_t> tokens(uint64_t request, uint32_t count) const;
  // A StartPrefill for all stages, with block keys.
  proto::StartPrefill request(uint64_t id, uint32_t tokens, uint32_t attempt = 1);
  static void name_blocks(proto::StartPrefill& start);  // by its tokens and root
  void start(const proto::StartPrefill& start);         // at every stage
  proto::Outcome start_at(uint32_t stage, const proto::StartPrefill& start);  // runs until answered
  void cancel(uint64_t request, uint32_t attempt);
  uint32_t look_up(const proto::LookupPrefix& message);  // at the first store
  // The whole KV and the first token are those of one process.
  void expect_arrived(const proto::StartPrefill& start);
  bool committed(const proto::StartPrefill& start);
  bool idle();  // every stage's ledger is zero
  uint32_t nodes() const { return options_.stages * options_.sequence_ranks; }
  prefill::PrefillActor& stage(uint32_t index);  // of the ranks of the stages, in order
  FakeCoordinator& coordinator();
  FakeDecode& decode();
  kvstore::KvstoreActor& store(uint32_t index = 0);

  actor::SimHost sim;
  const model::Shape shape;

 private:
  struct Judged;
  const ClusterOptions options_;
  std::unique_ptr<model::Engine> judge_;
};

}  // namespace prefill_test
