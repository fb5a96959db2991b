// Lives of simulated nodes: kill, restart, pause, stop, waiting, computing.
#include "tests/actor/sim_fixture.h"

namespace actor::sim_test {
namespace {

constexpr CallOptions kCall{.label = "test.ping", .retry = 50ms, .deadline = 10s};

TEST_F(SimTest, ASleepEndsWhenItSaid) {
  Fate fate;
  ctx("a").spawn(sleep_for(&ctx("a"), 200ms, &fate));
  sim.run_for(1s);
  EXPECT_EQ(fate.reached, 1);
  EXPECT_EQ(fate.destroyed, 1);
  EXPECT_EQ(fate.at, Time(200ms));
}

TEST_F(SimTest, AJobRunsWhenItsModelledTimeIsOver) {
  Fate fate;
  int ran = 0;
  ctx("a").spawn(offload_for(&ctx("a"), 100ms, &ran, &fate));
  sim.run_for(79ms);
  EXPECT_EQ(ran, 0);
  sim.run_for(42ms);
  EXPECT_EQ(ran, 1);
  EXPECT_EQ(fate.reached, 1);
}

TEST_F(SimTest, JobsOfANodeQueueBehindEachOtherAndNodesComputeBesideEachOther) {
  Fate first, second, other;
  int ran = 0;
  ctx("a").spawn(offload_for(&ctx("a"), 100ms, &ran, &first));
  ctx("a").spawn(offload_for(&ctx("a"), 100ms, &ran, &second));
  ctx("b").spawn(offload_for(&ctx("b"), 100ms, &ran, &other));
  sim.run_for(1s);
  EXPECT_EQ(ran, 3);
  EXPECT_GE(second.at - first.at, 80ms);
  EXPECT_LE(second.at - first.at, 120ms);
  EXPECT_LE(other.at, Time(120ms));
}

TEST_F(SimTest, AKillDestroysWhatWaitsAndResumesNothing) {
  Answer calling;
  Fate sleeping, computing;
  int ran = 0;
  sim.run_for(1ms);
  ctx("a").spawn(sleep_for(&ctx("a"), 200ms, &sleeping));
  ctx("a").spawn(offload_for(&ctx("a"), 100ms, &ran, &computing));
  call("a", address("b"), 1, kCall, &calling);
  sim.run_for(20us);  // the call is on its way
  sim.kill("a");
  EXPECT_EQ(sim.actor("a"), nullptr);
  EXPECT_EQ(sim.context("a"), nullptr);
  EXPECT_EQ(sleeping.destroyed + computing.destroyed + calling.destroyed, 3);
  sim.run_for(20s);
  EXPECT_EQ(sleeping.reached + computing.reached + calling.reached, 0);
  EXPECT_EQ(ran, 0);
  EXPECT_EQ(echo("b").seen.size(), 1u);
  sim.kill("a");  // a dead node may be killed again
}

TEST_F(SimTest, OneNodeMayKillAnotherFromItsHandler) {
  Fate fate;
  ctx("b").spawn(sleep_for(&ctx("b"), 200ms, &fate));
  sim.run_for(1ms);
  echo("a").hook = [this](Context&) { sim.kill("b"); };
  ctx("b").send(address("a"), Ping{1});
  sim.run_for(1s);
  EXPECT_EQ(fate.destroyed, 1);
  EXPECT_EQ(fate.reached, 0);
  EXPECT_EQ(sim.actor("b"), nullptr);
}

TEST_F(SimTest, ANodeThatIsKilledFromItsOwnHandlerEndsAfterIt) {
  sim.run_for(1ms);
  bool survived_the_kill = false;
  echo("a").hook = [this, &survived_the_kill](Context& ctx) {
    sim.kill("a");
    survived_the_kill = ctx.endpoint() == "sim://a";
  };
  ctx("b").send(address("a"), Ping{1});
  sim.run_for(1s);
  EXPECT_TRUE(survived_the_kill);
  EXPECT_EQ(sim.actor("a"), nullptr);
}

TEST_F(SimTest, AStoppedNodeEndsAfterItsEventAndItsPeersHearOfIt) {
  sim.run_for(1ms);
  echo("a").hook = [](Context& ctx) { ctx.stop(3); };
  Answer answer;
  const NodeId gone = address("a").node;
  call("b", address("a"), 1, kCall, &answer);
  sim.run_for(1s);
  EXPECT_EQ(sim.actor("a"), nullptr);
  EXPECT_TRUE(answer.result) << "what it sent in its last event is on its way";
  EXPECT_EQ(echo("b").down, std::vector<NodeId>{gone});
}

Task<void> stop_after(Context* ctx, Duration d, Fate* out) {
  Witness witness(out);
  co_await ctx->sleep(d);
  ctx->stop(0);
  co_await ctx->sleep(d);
  ++out->reached;
}
TEST_F(SimTest, ACoroutineMayStopItsNode) {
  Fate fate;
  ctx("a").spawn(stop_after(&ctx("a"), 10ms, &fate));
  sim.run_for(1s);
  EXPECT_EQ(sim.actor("a"), nullptr);
  EXPECT_EQ(fate.destroyed, 1);
  EXPECT_EQ(fate.reached, 0);
}

TEST_F(SimTest, ARestartIsANewNodeIdAndDeafToWhatWasForTheOldOne) {
  sim.run_for(1ms);
  const Address old = address("b");
  ctx("a").send(old, Ping{1});
  sim.kill("b");
  sim.restart("b");
  ctx("a").send(old, Ping{2});
  EXPECT_NE(address("b").node, old.node);
  EXPECT_EQ(ctx("b").endpoint(), "sim://b");
  connect("a", "b");
  Answer answer;
  call("a", address("b"), 3, kCall, &answer);
  sim.run_for(1s);
  EXPECT_TRUE(echo("b").started);
  EXPECT_EQ(echo("b").seen, std::vector<uint64_t>{3});
  EXPECT_TRUE(answer.result);
}

TEST_F(SimTest, AFixedIdSurvivesARestartAndAnAnswerToTheFormerLifeIsNotTaken) {
  add("head", NodeId{1});
  connect("head", "b");
  Answer before, after;
  call("head", address("b"), 10, kCall, &before);
  sim.clog("b", "head", 100ms);  // the answer to the first life comes to the second
  sim.run_for(10ms);
  EXPECT_EQ(echo("b").seen.size(), 1u);
  sim.kill("head");
  sim.restart("head");
  EXPECT_EQ(address("head").node, NodeId{1});
  connect("head", "b");
  sim.cut("head", "b", 1s);
  call("head", address("b"), 20, kCall, &after);
  sim.run_for(500ms);
  EXPECT_EQ(before.destroyed, 1);
  EXPECT_EQ(after.reached, 0);
  sim.run_for(1s);
  ASSERT_TRUE(after.result);
  EXPECT_EQ((*after.result)->number, 21u);
}

TEST_F(SimTest, APauseHoldsInputTimersAndJobs) {
  Fate sleeping, computing;
  int ran = 0;
  ctx("b").spawn(sleep_for(&ctx("b"), 20ms, &sleeping));
  ctx("b").spawn(offload_for(&ctx("b"), 20ms, &ran, &computing));
  sim.run_for(1ms);
  sim.pause("b", 499ms);
  for (uint64_t i = 0; i < 10; ++i) ctx("a").send(address("b"), Ping{i});
  sim.run_for(498ms);
  EXPECT_TRUE(echo("b").seen.empty());
  EXPECT_EQ(ran + sleeping.reached + computing.reached, 0);
  sim.run_for(2ms);
  EXPECT_EQ(echo("b").seen, (std::vector<uint64_t>{0, 1, 2, 3, 4, 5, 6, 7, 8, 9}));
  EXPECT_EQ(sleeping.at, Time(500ms));
  EXPECT_EQ(computing.at, Time(500ms));
  EXPECT_EQ(ran, 1);
}

TEST_F(SimTest, APauseMayGrowWhileItLasts) {
  sim.pause("b", 100ms);
  ctx("a").send(address("b"), Ping{1});
  sim.at(50ms, [this] { sim.pause("b", 200ms); });
  sim.run_for(240ms);
  EXPECT_TRUE(echo("b").seen.empty());
  sim.run_for(20ms);
  EXPECT_EQ(echo("b").seen_at, std::vector<Time>{Time(250ms)});
}

TEST_F(SimTest, APausedNodeCanBeKilledAndStartedAgain) {
  Fate sleeping;
  ctx("b").spawn(sleep_for(&ctx("b"), 20ms, &sleeping));
  sim.pause("b", 1s);
  ctx("a").send(address("b"), Ping{1});
  sim.run_for(500ms);
  sim.kill("b");
  sim.restart("b");
  connect("a", "b");
  ctx("a").send(address("b"), Ping{2});
  sim.run_for(100ms);
  EXPECT_EQ(echo("b").seen, std::vector<uint64_t>{2});
  EXPECT_EQ(sleeping.destroyed, 1);
  EXPECT_EQ(sleeping.reached, 0);
  sim.run_for(1s);
  EXPECT_EQ(echo("b").seen.size(), 1u);
}

TEST_F(SimTest, LinkedPeersHearOfAKillAfterAWhile) {
  add("c");  // not linked
  const NodeId gone = address("b").node;
  sim.run_for(1ms);
  sim.kill("b");
  sim.run_for(99ms);
  EXPECT_TRUE(echo("a").down.empty());
  sim.run_for(2ms);
  EXPECT_EQ(echo("a").down, std::vector<NodeId>{gone});
  EXPECT_TRUE(echo("c").down.empty());
}

TEST_F(SimTest, NobodyHearsOfAKillThatIsBehindAPartitionUnlinkedLostOrQuicklyOver) {
  const auto kill_and_wait = [this] {
    sim.kill("b");
    sim.run_for(1s);
    EXPECT_TRUE(echo("a").down.empty());
    sim.restart("b");
    connect("a", "b");
    sim.run_for(1s);
  };
  sim.partition({"b"}, 500ms);
  kill_and_wait();
  sim.network().loss = 1.0;
  kill_and_wait();
  sim.network().loss = 0.0;
  sim.at(sim.now().time_since_epoch() + 50ms, [this] { sim.restart("b"); });
  kill_and_wait();
  ctx("a").unlink(address("b").node);
  kill_and_wait();
}

TEST_F(SimTest, APeerThatIsUnheardForLongIsReportedThoughItLives) {
  add("c");
  connect("a", "c");
  const auto unheard = [this](const std::string& by) {
    sim.run_for(3s);
    return std::exchange(echo(by).down, {});
  };
  const std::vector<NodeId> none, a{address("a").node}, b{address("b").node};
  sim.partition({"b"}, 500ms);
  EXPECT_EQ(unheard("a"), none);
  sim.partition({"b"}, 2s);
  EXPECT_EQ(unheard("a"), b);
  EXPECT_EQ(unheard("b"), a);
  sim.cut("b", "a", 2s);
  EXPECT_EQ(unheard("a"), b);
  EXPECT_EQ(unheard("b"), a);
  sim.pause("b", 2s);
  EXPECT_EQ(unheard("a"), b);
  EXPECT_EQ(unheard("b"), none);
  EXPECT_EQ(unheard("c"), none);
}

TEST_F(SimTest, UnlinkFailsThePendingCallsToThatNodeOnly) {
  add("c");
  connect("a", "c");
  sim.partition({"a"}, 1s);
  Answer gone, stays;
  call("a", address("b"), 1, kCall, &gone);
  call("a", address("c"), 2, kCall, &stays);
  sim.run_for(10ms);
  ctx("a").unlink(address("b").node);
  EXPECT_EQ(gone.reached, 0) << "a coroutine ran inside unlink()";
  sim.run_for(1ms);
  EXPECT_EQ(gone.reached, 1);
  EXPECT_EQ(gone.result.error().code, Code::kPeerGone);
  sim.run_for(2s);
  EXPECT_TRUE(stays.result);
  EXPECT_TRUE(echo("b").seen.empty());
}

TEST_F(SimTest, ANewLifeFailsPendingCallsAndHasANewId) {
  sim.run_for(1ms);
  const Address old = address("a");
  Answer answer;
  call("a", address("b"), 1, kCall, &answer);
  const NodeId fresh = ctx("a").renew_life();
  EXPECT_EQ(address("a").node, fresh);
  EXPECT_NE(fresh, old.node);
  ctx("b").send(old, Ping{7});
  sim.run_for(1s);
  EXPECT_EQ(answer.reached, 1);
  EXPECT_EQ(answer.result.error().code, Code::kStale);
  EXPECT_TRUE(echo("a").seen.empty());
  EXPECT_EQ(echo("b").seen.size(), 1u);
}

TEST_F(SimTest, ACallThatNobodyAnswersFailsAtItsDeadline) {
  Answer answer;
  ctx("a").link(NodeId{5}, "sim://b");  // a life that b never had
  call("a", {NodeId{5}, kActor}, 1, {.label = "test.ping", .retry = 300ms, .deadline = 2s},
       &answer);
  sim.run_for(3s);
  EXPECT_EQ(answer.result.error().code, Code::kDeadline);
  EXPECT_EQ(answer.at, Time(2s));
  EXPECT_EQ(answer.destroyed, 1);
}

TEST_F(SimTest, AnInjectedClosureRunsNowAndNotAfterTheNodesEnd) {
  Injector& injector = ctx("a").injector();
  int ran = 0;
  injector.post([&ran] { ++ran; });
  EXPECT_EQ(ran, 0);
  sim.run_for(1us);
  EXPECT_EQ(ran, 1);
  injector.post([&ran] { ++ran; });
  sim.kill("a");
  injector.post([&ran] { ++ran; });
  sim.restart("a");
  injector.post([&ran] { ++ran; });
  sim.run_for(1s);
  EXPECT_EQ(ran, 1);
}

TEST_F(SimTest, LogLinesHaveVirtualTimeAndErrorsAreCounted) {
  sim.run_for(1500ms);
  ctx("a").log(base::Level::kInfo, "all.well", {});
  ctx("a").set_log_node("decode/0");
  ctx("a").log(base::Level::kError, "it.broke", {{"why", "a test"}});
  EXPECT_EQ(sim.error_logs(), 1u);
  EXPECT_EQ(sim.error_lines(),
            std::vector<std::string>{"1.500 decode/0 error it.broke why=\"a test\""});
  EXPECT_EQ(sim.recent_log(),
            "1.500 a info all.well\n1.500 decode/0 error it.broke why=\"a test\"\n");
}

TEST_F(SimTest, EventsRunInOrderOfTimeAndThenOfAdding) {
  std::string order;
  sim.at(20ms, [&order] { order += 'c'; });
  sim.at(10ms, [&order] { order += 'a'; });
  sim.at(10ms, [&order] { order += 'b'; });
  EXPECT_TRUE(sim.run_until([&order] { return order == "ab"; }, 1s));
  EXPECT_EQ(sim.now(), Time(10ms));
  EXPECT_FALSE(sim.run_until([] { return false; }, 15ms));
  EXPECT_EQ(sim.now(), Time(15ms));
  EXPECT_FALSE(sim.run_until([] { return false; }, 1s));
  EXPECT_EQ(order, "abc");
  EXPECT_EQ(sim.now(), Time(1s));
}

TEST_F(SimTest, DestroyingTheHostInTheMiddleOfEverythingIsClean) {
  std::vector<Answer> answers(10);
  std::vector<Fate> fates(20);
  int ran = 0;
  {
    SimHost host({.seed = 9});
    for (const char* name : {"x", "y"}) {
      host.add(name, 7, [] { return std::make_unique<Echo>(); });
    }
    Context* x = host.context("x");
    x->link(host.context("y")->self().node, "sim://y");
    for (size_t i = 0; i < 10; ++i) {
      x->spawn(call_ping(x, host.context("y")->self(), i, kCall, &answers[i]));
      x->spawn(sleep_for(x, 1s, &fates[i]));
      x->spawn(offload_for(x, 1ms, &ran, &fates[10 + i]));
    }
    host.pause("y", 10s);
    host.run_for(3ms);
  }
  int destroyed = 0;
  for (const Fate& fate : fates) destroyed += fate.destroyed;
  for (const Answer& answer : answers) destroyed += answer.destroyed;
  EXPECT_EQ(destroyed, 30);
}

Task<void> keep(Context* ctx, std::unique_ptr<Witness> parameter) {
  co_await ctx->sleep(10ms);
  ++parameter->fate->reached;
}
TEST_F(SimTest, AFrameGoesWhenItsTaskHasEnded) {
  Fate fate;
  auto witness = std::make_unique<Witness>(&fate);  // parameters live as long as the frame
  ctx("a").spawn(keep(&ctx("a"), std::move(witness)));
  sim.run_for(1s);
  EXPECT_EQ(fate.reached, 1);
  EXPECT_EQ(fate.destroyed, 1);
}

// A guard whose destructor speaks to the world, as a lease that is given back would.
struct Farewell {
  Farewell(Context* c, Address f) : ctx(c), friend_(f) {}
  Farewell(const Farewell&) = delete;
  ~Farewell() {
    ctx->send(friend_, Ping{99});
    ctx->spawn(sleep_for(ctx, 1ms, &fate));
    ctx->log(base::Level::kInfo, "farewell", {});
  }
  static inline Fate fate;
  Context* ctx;
  Address friend_;
};
Task<void> hold_farewell(Context* ctx, Address to) {
  Farewell farewell(ctx, to);
  co_await ctx->sleep(10s);
}
TEST_F(SimTest, WhatADyingFrameSendsOrSpawnsHasNoEffect) {
  ctx("a").spawn(hold_farewell(&ctx("a"), address("b")));
  sim.run_for(1ms);
  sim.kill("a");
  sim.restart("a");
  sim.run_for(1s);
  EXPECT_TRUE(echo("b").seen.empty());
  EXPECT_EQ(Farewell::fate.reached, 0);
  EXPECT_NE(sim.recent_log().find("farewell"), std::string::npos);
}

}  // namespace
}  // namespace actor::sim_test
