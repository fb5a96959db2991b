// A store on the simulated host, and a hand to call it with.
#pragma once
#include <gtest/gtest.h>

#include <optional>

#include "actor/sim_host.h"
#include "kvstore/kvstore_actor.h"
#include "kvstore/sim_disk.h"
#include "tests/kvstore/blocks.h"

namespace kvstore_test {

using actor::Context;
using actor::Incoming;
using proto::Outcome;
using std::chrono::milliseconds;
using std::chrono::seconds;

// A coordinator that welcomes the store, and the tests' hand to call it with.
class Caller final : public actor::Actor {
 public:
  using In = actor::Accepts<proto::Hello, proto::Heartbeat>;
  void start(Context& ctx) override { ctx_ = &ctx; }
  void receive(Context& ctx, actor::Envelope&& e) override {
    In::dispatch(*this, ctx, std::move(e));
  }
  void on(Context& ctx, const Incoming<proto::Hello>& in) {
    ctx.link(in.from.node, in->endpoint);
    store = in.from;
    alive = true;
    proto::HelloReply reply;
    reply.verdict = proto::HelloReply::Verdict::kWelcome;
    reply.coordinator_life = 1;
    reply.heartbeat_ms = 50;
    ctx.reply(in, reply);
  }
  void on(Context& ctx, const Incoming<proto::Heartbeat>& in) {
    beat = in.msg;
    proto::HeartbeatReply reply;
    reply.known = alive;
    reply.coordinator_life = 1;
    ctx.reply(in, reply);
  }
  template <class Reply, class M>
  void ask(M message, base::Blobs blobs, std::optional<Incoming<Reply>>* answer) {
    ctx_->spawn(run<Reply>(*ctx_, store, std::move(message), std::move(blobs), answer));
  }

  actor::Address store;
  proto::Heartbeat beat;
  bool alive = false;

 private:
  template <class Reply, class M>
  static base::Task<void> run(Context& ctx, actor::Address to, M message, base::Blobs blobs,
                              std::optional<Incoming<Reply>>* answer) {
    const actor::CallOptions options{"ask", milliseconds(50), seconds(60)};
    auto call = ctx.call<Reply>(to, std::move(message), options, std::move(blobs));
    auto got = co_await std::move(call);
    if (got) *answer = std::move(*got);
  }
  Context* ctx_ = nullptr;
};

// One store on the simulated host; `medium`, when given, is its disk and outlives its lives.
class StoreOnHost {
 public:
  explicit StoreOnHost(kvstore::SimMedium* medium = nullptr,
                       const kvstore::IndexLimits& limits = {}, uint64_t seed = 3)
      : sim({.seed = seed}) {
    sim.add(
        "coordinator", proto::kCoordinator, [] { return std::make_unique<Caller>(); },
        proto::kCoordinatorNode);
    node::Identity identity;
    identity.role = proto::Role::kKvstore;
    identity.name = "store";
    identity.coordinator = "sim://coordinator";
    sim.add("store", proto::kKvstore, [identity, medium, limits] {
      auto disk = medium != nullptr ? kvstore::make_sim_disk(*medium) : nullptr;
      return std::make_unique<kvstore::KvstoreActor>(identity, limits, std::move(disk));
    });
    EXPECT_TRUE(ready());
  }
  bool ready() {
    return sim.run_until(
        [&] { return caller().alive && caller().beat.state == proto::NodeState::kReady; },
        sim.now().time_since_epoch() + seconds(20));
  }
  // kill -9, and the supervisor starts it again.
  void kill_and_restart() {
    sim.kill("store");
    caller().alive = false;
    caller().beat = {};
    sim.restart("store");
    EXPECT_TRUE(ready());
  }
  Caller& caller() { return *static_cast<Caller*>(sim.actor("coordinator")); }
  kvstore::KvstoreActor& store() {
    return *static_cast<kvstore::KvstoreActor*>(sim.actor("store"));
  }

  template <class Reply, class M>
  Incoming<Reply> call(M message, base::Blobs blobs = {}) {
    std::optional<Incoming<Reply>> answer;
    caller().ask<Reply>(std::move(message), std::move(blobs), &answer);
    EXPECT_TRUE(sim.run_until([&] { return answer.has_value(); },
                              sim.now().time_since_epoch() + seconds(60)));
    return answer.value_or(Incoming<Reply>{});
  }
  Outcome put(uint32_t block, uint32_t layer, size_t size = 100) {
    base::Blobs blobs(1, blob_of(block, layer, size));
    return call<proto::Done>(put_of(block, layer, size), std::move(blobs))->outcome;
  }
  double counter(const std::string& name) {
    sim.run_for(milliseconds(300));
    for (const auto& [known, value] : caller().beat.counters) {
      if (known == name) return value;
    }
    return -1;
  }

  actor::SimHost sim;
};

}  // namespace kvstore_test
