// What the simulated network does to messages.
#include <algorithm>
#include <set>

#include "tests/actor/sim_fixture.h"

namespace actor::sim_test {
namespace {

constexpr CallOptions kCall{.label = "test.ping", .retry = 50ms, .deadline = 10s};

TEST_F(SimTest, ACallComesHomeWithItsAnswer) {
  Answer answer;
  call("a", address("b"), 41, kCall, &answer);
  EXPECT_EQ(answer.reached, 0);
  EXPECT_TRUE(sim.run_until([&] { return answer.reached == 1; }, 1s));
  ASSERT_TRUE(answer.result);
  EXPECT_EQ((*answer.result)->number, 42u);
  EXPECT_EQ(answer.result->from, address("b"));
  EXPECT_GE(answer.at, Time(100us));  // there and back
  EXPECT_LT(answer.at, Time(10ms));
  EXPECT_EQ(answer.destroyed, 1);
  EXPECT_EQ(echo("b").seen.size(), 1u);
  sim.run_for(1s);
  EXPECT_EQ(echo("b").seen.size(), 1u) << "an answered call was sent again";
}

TEST_F(SimTest, BlobsArriveAsEqualBytesInOtherMemory) {
  std::vector<uint32_t> values(1000);
  for (uint32_t i = 0; i < 1000; ++i) values[i] = i * i;
  const base::Blob blob = base::Blob::of(std::span<const uint32_t>(values));
  ctx("a").send(address("b"), Ping{1}, {blob, base::Blob()});
  sim.run_for(1s);
  ASSERT_EQ(echo("b").blobs.size(), 2u);
  EXPECT_EQ(echo("b").blobs[0].to_vector<uint32_t>(), values);
  EXPECT_NE(echo("b").blobs[0].view().data(), blob.view().data());
  EXPECT_TRUE(echo("b").blobs[1].empty());
}

TEST_F(SimTest, SendsOfAPairArriveInOrder) {
  for (uint64_t i = 0; i < 200; ++i) ctx("a").send(address("b"), Ping{i});
  sim.run_for(1s);
  ASSERT_EQ(echo("b").seen.size(), 200u);
  EXPECT_TRUE(std::is_sorted(echo("b").seen.begin(), echo("b").seen.end()));
}

TEST_F(SimTest, ReorderingBreaksTheOrderAndLosesNothing) {
  sim.network().reorder = 0.2;
  for (uint64_t i = 0; i < 200; ++i) ctx("a").send(address("b"), Ping{i});
  sim.run_for(1s);
  std::vector<uint64_t>& seen = echo("b").seen;
  EXPECT_FALSE(std::is_sorted(seen.begin(), seen.end()));
  std::sort(seen.begin(), seen.end());
  ASSERT_EQ(seen.size(), 200u);
  for (uint64_t i = 0; i < 200; ++i) EXPECT_EQ(seen[i], i);
}

TEST_F(SimTest, LossTakesItsShareAndRetriesBringEveryCallHome) {
  sim.network().loss = 0.5;
  for (uint64_t i = 0; i < 400; ++i) ctx("a").send(address("b"), Ping{i});
  sim.run_for(1s);
  EXPECT_NEAR(static_cast<double>(echo("b").seen.size()), 200, 50);
  std::vector<Answer> answers(50);
  for (uint64_t i = 0; i < 50; ++i) call("a", address("b"), i, kCall, &answers[i]);
  sim.run_for(11s);
  for (uint64_t i = 0; i < 50; ++i) {
    ASSERT_TRUE(answers[i].result) << answers[i].result.error().what;
    EXPECT_EQ((*answers[i].result)->number, i + 1);
    EXPECT_EQ(answers[i].reached, 1);
  }
}

class WithoutRetry : public SimTest {
 protected:
  WithoutRetry() : SimTest({.without_retry = {"test.ping"}}) {}
};
TEST_F(WithoutRetry, ALostCallFailsAtItsDeadlineAndOtherLabelsStillRetry) {
  sim.network().loss = 0.5;
  std::vector<Answer> once(50), again(50);
  CallOptions other = kCall;
  other.label = "test.other";
  for (uint64_t i = 0; i < 50; ++i) call("a", address("b"), i, kCall, &once[i]);
  for (uint64_t i = 0; i < 50; ++i) call("a", address("b"), i, other, &again[i]);
  sim.run_for(11s);
  int failed = 0;
  for (const Answer& answer : once) {
    if (answer.result) continue;
    ++failed;
    EXPECT_EQ(answer.result.error().code, Code::kDeadline);
    EXPECT_EQ(answer.at, Time(10s));
  }
  EXPECT_NEAR(failed, 37, 12);
  for (const Answer& answer : again) EXPECT_TRUE(answer.result);
}

TEST_F(SimTest, DuplicatesArriveTwiceAndACallResolvesOnce) {
  sim.network().duplicate = 1.0;
  ctx("a").send(address("b"), Ping{5});
  Answer answer;
  call("a", address("b"), 6, kCall, &answer);
  sim.run_for(1s);
  std::vector<uint64_t> seen = echo("b").seen;
  std::sort(seen.begin(), seen.end());
  EXPECT_EQ(seen, (std::vector<uint64_t>{5, 5, 6, 6}));
  EXPECT_EQ(answer.reached, 1);
  EXPECT_EQ(echo("a").stray_pongs, 0) << "a late answer reached the actor";
}

TEST_F(SimTest, BytesTakeTimeOnTheLine) {
  sim.network().bytes_per_second = 1e6;
  const base::Blob megabyte(base::Bytes(1'000'000));
  ctx("a").send(address("b"), Ping{1}, {megabyte});
  ctx("a").send(address("b"), Ping{2}, {megabyte});
  sim.run_for(5s);
  ASSERT_EQ(echo("b").seen_at.size(), 2u);
  EXPECT_NEAR(base::seconds(echo("b").seen_at[0].time_since_epoch()), 1.0, 0.01);
  EXPECT_NEAR(base::seconds(echo("b").seen_at[1].time_since_epoch()), 2.0, 0.01);
}

TEST_F(SimTest, LatencyHasItsLeastAndItsMean) {
  sim.network().latency_least = 1ms;
  sim.network().latency_mean = 3ms;
  sim.network().reorder = 0;
  double total = 0;
  for (uint64_t i = 0; i < 2000; ++i) {
    const Time sent = sim.now();
    ctx("a").send(address("b"), Ping{i});
    sim.run_for(1s);
    const Duration took = echo("b").seen_at.back() - sent;
    EXPECT_GE(took, 1ms);
    total += base::seconds(took);
  }
  EXPECT_NEAR(total / 2000, 0.004, 0.0004);  // six standard deviations
}

TEST_F(SimTest, APartitionCutsBothWaysAndHeals) {
  add("c");
  connect("b", "c");
  sim.partition({"a"}, 2s);
  Answer across, inside;
  call("a", address("b"), 1, kCall, &across);
  call("b", address("c"), 2, kCall, &inside);
  sim.run_for(1900ms);
  EXPECT_EQ(across.reached, 0);
  EXPECT_TRUE(echo("b").seen.empty());
  EXPECT_EQ(inside.reached, 1);
  sim.run_for(1s);
  ASSERT_TRUE(across.result);
  EXPECT_GE(across.at, Time(2s));
  EXPECT_LT(across.at, Time(2100ms));
}

TEST_F(SimTest, APartitionTakesWhatIsOnItsWay) {
  ctx("a").send(address("b"), Ping{1});
  sim.partition({"b"}, 1s);
  sim.run_for(3s);
  EXPECT_TRUE(echo("b").seen.empty());
}

TEST_F(SimTest, AOneWayCutLetsRequestsThroughAndNoAnswers) {
  sim.cut("b", "a", 1s);
  Answer answer;
  call("a", address("b"), 1, kCall, &answer);
  sim.run_for(990ms);
  EXPECT_EQ(answer.reached, 0);
  EXPECT_EQ(echo("b").seen.size(), 20u) << "one every 50 ms";
  sim.run_for(1s);
  EXPECT_TRUE(answer.result);
}

TEST_F(SimTest, AClogHoldsMessagesUntilItsEnd) {
  sim.clog("a", "b", 700ms);
  ctx("a").send(address("b"), Ping{1});
  ctx("b").send(address("a"), Ping{2});
  sim.run_for(690ms);
  EXPECT_TRUE(echo("b").seen.empty());
  EXPECT_EQ(echo("a").seen.size(), 1u);
  sim.run_for(1s);
  ASSERT_EQ(echo("b").seen.size(), 1u);
  EXPECT_EQ(echo("b").seen_at[0], Time(700ms));
}

TEST_F(SimTest, AThrottledPairIsSlowOneWayAndOthersAreNot) {
  add("c");
  connect("a", "c");
  sim.throttle("a", "b", 10'000);
  const base::Blob blob(base::Bytes(5'000));
  for (uint64_t i = 1; i <= 3; ++i) ctx("a").send(address("b"), Ping{i}, {blob});
  ctx("a").send(address("c"), Ping{4}, {blob});
  ctx("b").send(address("a"), Ping{5}, {blob});
  sim.run_for(100ms);
  EXPECT_TRUE(echo("b").seen.empty());
  EXPECT_EQ(echo("c").seen.size(), 1u);
  EXPECT_EQ(echo("a").seen.size(), 1u);
  sim.throttle("a", "b", 0);
  ctx("a").send(address("b"), Ping{6});
  sim.run_for(2s);
  ASSERT_EQ(echo("b").seen, (std::vector<uint64_t>{1, 2, 3, 6}));
  EXPECT_GE(echo("b").seen_at[0], Time(500ms));
  EXPECT_GE(echo("b").seen_at[2], Time(1500ms));
  EXPECT_LT(echo("b").seen_at[3], Time(1700ms));  // behind them, no slower
}

TEST_F(SimTest, WhatIsForAnUnlinkedOrUnknownNodeIsLost) {
  add("c");
  ctx("a").send(address("c"), Ping{1});
  ctx("a").send({NodeId{99}, kActor}, Ping{2});
  ctx("a").send({address("b").node, kActor + 1}, Ping{3});
  ctx("a").link(NodeId{5}, "tcp://10.0.0.1:7001");
  ctx("a").link(NodeId{6}, "sim://nobody");
  ctx("a").send({NodeId{5}, kActor}, Ping{4});
  ctx("a").send({NodeId{6}, kActor}, Ping{5});
  sim.run_for(1s);
  EXPECT_TRUE(echo("b").seen.empty());
  EXPECT_TRUE(echo("c").seen.empty());
}

TEST_F(SimTest, AMessageToOneselfNeedsNoLinkAndCannotBeLost) {
  sim.network().loss = 1.0;
  ctx("a").send(address("a"), Ping{1});
  EXPECT_TRUE(echo("a").seen.empty()) << "delivered inside send()";
  sim.run_for(1ms);
  EXPECT_EQ(echo("a").seen.size(), 1u);
}

struct Garbage {
  static constexpr uint16_t kType = Ping::kType;
  static constexpr const char* kName = "Garbage";
};
std::string encode(const Garbage&) { return "xyz"; }
base::Status decode(base::ByteView, Garbage&) { return {}; }

TEST_F(SimTest, StrangeMessagesAreLoggedAndDropped) {
  ctx("a").send(address("b"), Other{1});
  ctx("a").send(address("b"), Garbage{});
  sim.run_for(1s);
  EXPECT_NE(sim.recent_log().find("warn message.unexpected type=3"), std::string::npos);
  EXPECT_NE(sim.recent_log().find("warn message.undecodable message=Ping"), std::string::npos);
  EXPECT_TRUE(echo("b").seen.empty());
  EXPECT_EQ(sim.error_logs(), 0u);
}

// A run with every kind of fault, as a number.
base::Hash128 faulty_run(uint64_t seed) {
  SimHost sim({.seed = seed, .network = {.loss = 0.1, .duplicate = 0.1, .reorder = 0.1}});
  const auto make = [] { return std::make_unique<Echo>(); };
  for (const char* name : {"a", "b", "c"}) sim.add(name, 7, make);
  const auto link_all = [&sim] {
    for (const char* x : {"a", "b", "c"}) {
      for (const char* y : {"a", "b", "c"}) {
        if (sim.context(x) == nullptr || sim.context(y) == nullptr) continue;
        sim.context(x)->link(sim.context(y)->self().node, sim.context(y)->endpoint());
      }
    }
  };
  link_all();
  std::vector<Answer> answers(100);
  std::vector<Fate> fates(20);
  int ran = 0;
  for (uint64_t i = 0; i < answers.size(); ++i) {
    sim.at(i * 10ms, [&sim, &answers, i] {
      Context* from = sim.context(i % 2 == 0 ? "a" : "b");
      Context* to = sim.context("c");
      if (from == nullptr || to == nullptr) return;
      from->spawn(call_ping(from, to->self(), i, kCall, &answers[i]));
    });
  }
  for (uint64_t i = 0; i < fates.size(); ++i) {
    sim.at(i * 7ms, [&sim, &fates, &ran, i] {
      Context* b = sim.context("b");
      if (b != nullptr) b->spawn(offload_for(b, 5ms, &ran, &fates[i]));
    });
  }
  sim.at(100ms, [&sim] { sim.pause("c", 200ms); });
  sim.at(300ms, [&sim] { sim.kill("b"); });
  sim.at(350ms, [&sim] { sim.partition({"a"}, 100ms); });
  sim.at(500ms, [&sim, link_all] {
    sim.restart("b");
    link_all();
  });
  sim.at(600ms, [&sim] { sim.clog("c", "a", 100ms); });
  sim.run_for(15s);
  return sim.trace_hash();
}

TEST(SimDeterminism, TheSameSeedGivesTheSameTraceAndAnotherSeedAnother) {
  std::set<base::Hash128> hashes;
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    const base::Hash128 hash = faulty_run(seed);
    EXPECT_EQ(faulty_run(seed), hash) << "seed " << seed;
    hashes.insert(hash);
  }
  EXPECT_EQ(hashes.size(), 20u);
}

TEST(SimDeterminism, TheTraceSeesEveryByteSent) {
  const auto run = [](uint64_t number, uint8_t blob) {
    SimHost sim({.seed = 3});
    for (const char* name : {"a", "b"}) {
      sim.add(name, 7, [] { return std::make_unique<Echo>(); });
    }
    sim.context("a")->link(sim.context("b")->self().node, "sim://b");
    sim.context("a")->send(sim.context("b")->self(), Ping{number},
                           {base::Blob(base::Bytes{std::byte{blob}})});
    return sim.trace_hash();
  };
  EXPECT_EQ(run(1, 1), run(1, 1));
  EXPECT_NE(run(1, 1), run(2, 1));
  EXPECT_NE(run(1, 1), run(1, 2));
}

}  // namespace
}  // namespace actor::sim_test
