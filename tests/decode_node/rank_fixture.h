// Decode ranks on the simulated host, with one fake node that is coordinator and prefill stages at
// once: it registers ranks, detects their death, computes each request's KV with the oracle and
// feeds it in, collects the tokens, and starts the next attempt when one fails.
#pragma once
#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "actor/sim_host.h"
#include "decode_node/decode_actor.h"
#include "model/forward.h"
#include "proto/all.h"

namespace decode {

using namespace std::chrono_literals;

struct Request {
  RequestId id;
  std::vector<TokenId> prompt;
  base::Sampling sampling;
  uint32_t chunk = 16;        // tokens per KvLayer
  uint32_t corrupt_rows = 0;  // so many KvLayer blobs are damaged on their first way
  bool wrong_chain = false;   // the first attempt's commits do not match
  uint64_t deadline_ms = 600'000;
  int32_t priority = 0;
  bool whole = false;
  bool abandoned = false;  // the first attempt's stages do nothing
  // What became of it.
  uint32_t attempt = 0;
  NodeId rank;
  std::map<uint32_t, TokenId> emitted;
  size_t logprobs = 0;
  base::FinishReason finish = base::FinishReason::kNone;
  bool cancelled = false;
  std::vector<proto::AttemptFailed> failures;
  uint32_t preempted = 0;  // attempts
  base::Time ended{};

  std::vector<TokenId> tokens() const;  // emitted without a gap
};

class FakeCluster final : public actor::Actor {
 public:
  using In = actor::Accepts<proto::Hello, proto::Heartbeat, proto::TokenOut, proto::AttemptFailed>;

  explicit FakeCluster(const model::OracleOptions& oracle)
      : engine_(model::make_oracle_engine(oracle)) {}
  void start(Context& ctx) override { ctx.spawn(watch(ctx)); }
  void receive(Context& ctx, actor::Envelope&& e) override {
    In::dispatch(*this, ctx, std::move(e));
  }
  void on(Context& ctx, const Incoming<proto::Hello>& in);
  void on(Context& ctx, const Incoming<proto::Heartbeat>& in);
  void on(Context& ctx, const Incoming<proto::TokenOut>& in);
  void on(Context& ctx, const Incoming<proto::AttemptFailed>& in);

  // Called on the node's own thread of events (Injector).
  void submit(Context& ctx, Request request);
  void cancel(Context& ctx, RequestId id);

  const Request& request(uint64_t id) const { return requests_.at(RequestId{id}); }
  bool all_done() const;
  size_t ready_ranks() const;
  model::Engine& engine() { return *engine_; }
  const std::map<NodeId, proto::Heartbeat>& beats() const { return beats_; }

  std::set<RequestId> unwanted;        // answered as stale
  std::set<std::string> only_experts;  // ranks that get no requests
  bool answer_tokens = true;
  uint32_t give_up_after = 30;  // attempts

 private:
  struct Node {
    proto::ViewNode entry;
    base::Time heard{};
  };
  // The KV of some tokens and the next one, as one process computes them.
  struct Prefilled {
    Prefilled(model::Engine& engine, const Request& request);
    model::KvView kv() { return {&pool, blocks}; }
    std::vector<TokenId> tokens;
    model::KvPool pool;
    std::vector<model::BlockId> blocks;
    model::Sampled first;
    std::vector<float> hidden;  // that it was sampled from
    uint32_t attempt = 0;
  };
  struct KvSent {
    std::vector<base::Hash128> chains;  // per layer
    bool ok = true;
  };
  Task<void> watch(Context& ctx);
  // A reservation, the KV of all tokens, the commits of two stages.
  Task<void> attempt(Context& ctx, RequestId id, uint32_t attempt);
  Task<bool> reserve(Context& ctx, proto::ReserveKv message);
  Task<void> ship(Context& ctx, RequestId id, Prefilled* prefilled, KvSent* sent);
  Task<bool> commit(Context& ctx, RequestId id, Prefilled* prefilled, const KvSent* sent);
  Task<void> send_layer(Context& ctx, proto::KvLayer message, base::Blob rows, KvSent* sent);
  Task<void> send_cancel(Context& ctx, NodeId rank, proto::Cancel message);
  void next_attempt(Context& ctx, Request& request);
  void restart_orphans(Context& ctx);  // whose rank is gone
  void publish(Context& ctx);
  void send_view(Context& ctx, NodeId node);
  NodeId pick_rank(const Request& request) const;
  bool current(RequestId id, uint32_t attempt) const;

  const std::unique_ptr<model::Engine> engine_;
  std::map<NodeId, Node> nodes_;
  std::map<NodeId, proto::Heartbeat> beats_;
  uint64_t epoch_ = 0;
  std::map<RequestId, Request> requests_;
};

// A token for each byte, so that a grammar's literals leave no choice; the others have no bytes.
grammar::Vocabulary byte_vocabulary(const model::Shape& shape);
// What a constrained request must keep to, for one process; null for others.
struct Alone {
  Alone(const grammar::Vocabulary& vocabulary, const base::Sampling& sampling);
  std::unique_ptr<grammar::Grammar> grammar;
  std::optional<grammar::Matcher> matcher;
  model::Constraint* constraint() { return matcher ? &*matcher : nullptr; }
};

// A cluster of `ranks` decode ranks named decode-0, decode-1 …
class RankTest : public ::testing::Test {
 protected:
  struct Setup {
    uint64_t seed = 1;
    uint32_t ranks = 1;
    uint32_t max_batch = 8;
    uint64_t kv_bytes = 4u << 20;
    uint32_t micro_batches = 1, micro_rows = 1;
    uint32_t mtp_steps = 0;  // oracle.mtp_steps offers them
    uint32_t max_rows = 0;
    uint32_t steps_per_schedule = 1;
    bool force_tokens = true;
    std::function<std::unique_ptr<model::Engine>()> make_engine = {};  // default: the oracle
    std::string engine_of = {};  // the rank that gets it; empty: all
  };
  void build(Setup setup);

  // `count` requests of different lengths and settings, ids 1 … count.
  static std::vector<Request> mixed_requests(uint32_t count, uint32_t max_tokens = 40);
  static Request plain_request(uint64_t id, uint32_t prompt, uint32_t max_tokens);
  void submit_at(base::Duration at, Request request);
  void submit_plain(uint32_t count, uint32_t prompt, uint32_t max_tokens);  // at kReady, ids 1 …
  void cancel_at(base::Duration at, uint64_t id);
  // A tenth of the messages is lost, doubled, late.
  void disturb_network();

  FakeCluster& cluster() { return *as_cluster(sim->actor("coordinator")); }
  DecodeActor& rank(uint32_t i);
  bool run(base::Duration limit);          // until all requests are done
  void expect_oracle_tokens(uint32_t id);  // equal to model::generate's, with a pass for each
  void expect_oracle_tokens_up_to(uint32_t count);
  void expect_idle(uint32_t ranks);  // ledgers at zero soon

  static constexpr base::Duration kReady = 1s;  // all ranks are ready by then
  model::OracleOptions oracle;
  std::unique_ptr<actor::SimHost> sim;

 private:
  static FakeCluster* as_cluster(actor::Actor* actor) { return static_cast<FakeCluster*>(actor); }
};

}  // namespace decode
