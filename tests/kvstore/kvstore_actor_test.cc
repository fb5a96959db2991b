#include "kvstore/kvstore_actor.h"

#include <gtest/gtest.h>

#include "actor/sim_host.h"
#include "tests/kvstore/blocks.h"

namespace kvstore_test {
namespace {

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

class KvstoreActorTest : public testing::Test {
 protected:
  KvstoreActorTest() : sim({.seed = 3}) {
    sim.add(
        "coordinator", proto::kCoordinator, [] { return std::make_unique<Caller>(); },
        proto::kCoordinatorNode);
    node::Identity identity;
    identity.role = proto::Role::kKvstore;
    identity.name = "store";
    identity.coordinator = "sim://coordinator";
    sim.add("store", proto::kKvstore, [identity] {
      return std::make_unique<kvstore::KvstoreActor>(identity, kvstore::IndexLimits{});
    });
    EXPECT_TRUE(sim.run_until(
        [&] { return caller().alive && caller().beat.state == proto::NodeState::kReady; },
        seconds(5)));
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
  Outcome put(uint32_t block, uint32_t layer) {
    base::Blobs blobs(1, blob_of(block, layer));
    return call<proto::Done>(put_of(block, layer), std::move(blobs))->outcome;
  }

  actor::SimHost sim;
};

TEST_F(KvstoreActorTest, WhatWasPutIsFoundAndFetchedUnderLossAndDoubles) {
  sim.network().loss = 0.2;
  sim.network().duplicate = 0.2;
  for (const uint32_t block : {1u, 2u}) {
    for (uint32_t layer = 0; layer < kLayers; ++layer) EXPECT_EQ(put(block, layer), Outcome::kOk);
  }
  EXPECT_EQ(call<proto::PrefixFound>(lookup_of(1, 1, {1, 2, 3}))->blocks, 2u);
  const auto data = call<proto::KvData>(fetch_of({1, 2}, 1));
  ASSERT_EQ(data->outcome, Outcome::kOk);
  ASSERT_EQ(data.blobs.size(), 2u);
  EXPECT_EQ(base::hash128(data.blobs[1].view()), put_of(2, 1).digest);
  EXPECT_EQ(data->digests[1], put_of(2, 1).digest);
  EXPECT_EQ(call<proto::KvData>(fetch_of({9}, 1))->outcome, Outcome::kMissing);
}

TEST_F(KvstoreActorTest, LeasesEndByReleaseByTimeAndWithTheLife) {
  for (uint32_t layer = 0; layer < kLayers; ++layer) put(1, layer);
  uint32_t attempt = 0;
  const auto lease = [&] { call<proto::PrefixFound>(lookup_of(1, ++attempt, {1}, 2000)); };
  lease();
  EXPECT_EQ(store().index().leases(), 1u);
  proto::ReleaseLease release;
  release.request = {1};
  release.attempt = 1;
  call<proto::Done>(release);
  EXPECT_EQ(store().index().leases(), 0u);
  lease();
  sim.run_for(milliseconds(1500));
  EXPECT_EQ(store().index().leases(), 1u);
  sim.run_for(milliseconds(1500));
  EXPECT_EQ(store().index().leases(), 0u);
  lease();
  caller().alive = false;  // the store hears that it was declared dead
  EXPECT_TRUE(
      sim.run_until([&] { return caller().alive; }, sim.now().time_since_epoch() + seconds(5)));
  EXPECT_EQ(store().index().leases(), 0u);
  EXPECT_EQ(store().index().blocks(), 1u);  // what it knows is still true
}

TEST_F(KvstoreActorTest, HeartbeatsCarryTheLedger) {
  for (uint32_t layer = 0; layer < kLayers; ++layer) put(1, layer);
  call<proto::PrefixFound>(lookup_of(1, 1, {1, 2}, 60'000));
  sim.run_for(milliseconds(200));
  std::map<std::string, double> counters(caller().beat.counters.begin(),
                                         caller().beat.counters.end());
  EXPECT_EQ(counters["kvstore_blocks"], 1);
  EXPECT_EQ(counters["kvstore_leases"], 1);
  EXPECT_EQ(counters["kvstore_hits_total"], 1);
  EXPECT_EQ(counters["kvstore_misses_total"], 1);
  EXPECT_EQ(counters["kvstore_bytes"], static_cast<double>(block_cost()));
}

TEST_F(KvstoreActorTest, APutWithoutItsBlobIsCorruptAndAHugeFetchIsMissing) {
  EXPECT_EQ(call<proto::Done>(put_of(1, 0))->outcome, Outcome::kCorrupt);
  EXPECT_EQ(call<proto::KvData>(fetch_of(std::vector<uint32_t>(1000, 1), 0))->outcome,
            Outcome::kMissing);
}

}  // namespace
}  // namespace kvstore_test
