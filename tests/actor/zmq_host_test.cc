#include "actor/zmq_host.h"

#include <signal.h>
#include <unistd.h>

#include <filesystem>

#include "actor/endpoint.h"
#include "zmq_fixture.h"

namespace zmq_test {
namespace {

Task<void> call_with_blobs(Context& ctx, Player& me) {
  introduce(ctx, *me.peer);
  const base::Blobs blobs{pattern(5, 1), pattern(8191, 2), pattern(8192, 3), base::Blob{}};
  Answer answer = co_await ask(ctx, me.peer->address, patient(), blobs);
  EXPECT_TRUE(answer.has_value());
  if (!answer) co_return;
  EXPECT_EQ(answer->from, me.peer->address);
  EXPECT_EQ(answer->blobs.size(), blobs.size());
  for (size_t i = 0; i < blobs.size(); ++i) EXPECT_TRUE(same(answer->blobs.at(i), blobs[i]));
}

TEST(ZmqHost, ACallComesBackWithItsBlobs) {
  Player me;
  me.peer = std::make_unique<EchoNode>();
  me.play(call_with_blobs);
}

// One side's calls; several callers share it.
struct Calls {
  uint64_t left = 10'000;  // on the reactor thread of the side, as is `good`
  uint64_t good = 0;
  std::atomic<int> callers_done{0};
};
constexpr int kCallers = 50;

Task<void> caller(Context& ctx, Address to, Calls* calls) {
  while (calls->left > 0) {
    const uint64_t number = calls->left--;
    Ping ping{number, "both ways"};
    Answer answer = co_await ctx.call<Pong>(to, std::move(ping), patient());
    if (answer && answer->msg.number == number) ++calls->good;
  }
  ++calls->callers_done;
}

Task<void> calls_both_ways(Context& ctx, Player& me) {
  introduce(ctx, *me.peer);
  Calls mine;
  Calls theirs;
  const Address self = ctx.self();
  me.peer->within([&](Context& other) {
    for (int i = 0; i < kCallers; ++i) other.spawn(caller(other, self, &theirs));
  });
  for (int i = 0; i < kCallers; ++i) ctx.spawn(caller(ctx, me.peer->address, &mine));
  const bool ended = co_await until(
      ctx, [&] { return mine.callers_done + theirs.callers_done == 2 * kCallers; }, 50s);
  EXPECT_TRUE(ended);
  if (!ended) me.peer.reset();  // it uses what stands in this frame
  EXPECT_EQ(mine.good, 10'000u);
  EXPECT_EQ(theirs.good, 10'000u);
  EXPECT_EQ(me.host->counters().dropped, 0u);
  EXPECT_EQ(me.host->counters().refused, 0u);
}

TEST(ZmqHost, TenThousandCallsBothWaysAreAllAnswered) {
  Player me;
  me.peer = std::make_unique<EchoNode>();
  me.play(calls_both_ways);
}

Task<void> large_blob(Context& ctx, Player& me) {
  introduce(ctx, *me.peer);
  const base::Blobs blobs{pattern(32u << 20, 4)};
  Answer answer = co_await ask(ctx, me.peer->address, patient(), blobs);
  EXPECT_TRUE(answer && answer->blobs.size() == 1 && same(answer->blobs[0], blobs[0]));
}

TEST(ZmqHost, ABlobOf32MiBCrossesUnchanged) {
  Player me;
  me.peer = std::make_unique<EchoNode>();
  me.play(large_blob);
}

struct Probe {
  explicit Probe(std::thread::id* id) : freed_on(id) {}
  ~Probe() { *freed_on = std::this_thread::get_id(); }
  std::thread::id* freed_on;
  std::array<std::byte, 1 << 16> bytes{};
};

Task<void> blob_is_released(Context& ctx, Player& me) {
  introduce(ctx, *me.peer);
  std::thread::id freed_on;
  {
    auto probe = std::make_shared<Probe>(&freed_on);
    const base::ByteView view = probe->bytes;
    base::Blobs blobs{base::Blob(std::move(probe), view)};
    ctx.send(me.peer->address, Note{}, std::move(blobs));
  }
  EXPECT_EQ(freed_on, std::thread::id{});
  co_await until(
      ctx, [&] { return freed_on != std::thread::id{}; }, 20s);
  EXPECT_EQ(freed_on, std::this_thread::get_id());
}

TEST(ZmqHost, ASentBlobIsReleasedOnTheReactorOnceItIsOnTheWire) {
  Player me;
  me.peer = std::make_unique<EchoNode>();
  me.play(blob_is_released);
}

Task<void> first_message(Context& ctx, Player& me) {
  ctx.link(me.peer->address.node, me.peer->endpoint);
  ctx.send(me.peer->address, Note{});  // the connection cannot be up yet
  const bool arrived = co_await until(
      ctx, [&] { return me.peer->actor.notes == 1; }, 20s);
  EXPECT_TRUE(arrived);
}

TEST(ZmqHost, AMessageSentRightAfterTheLinkArrives) {
  Player me;
  me.peer = std::make_unique<EchoNode>();
  me.play(first_message);
}

Task<void> last_message(Context& ctx, Player& me) {
  introduce(ctx, *me.peer);
  Answer up = co_await ask(ctx, me.peer->address, patient());
  EXPECT_TRUE(up.has_value());
  for (int i = 0; i < 100; ++i) ctx.send(me.peer->address, Note{});
}

Task<void> counts_hundred(Context& ctx, Player& me) {
  const bool all = co_await until(
      ctx, [&] { return me.peer->actor.notes == 100; }, 20s);
  EXPECT_TRUE(all);
}

TEST(ZmqHost, WhatIsSentRightBeforeStopStillLeaves) {
  Player watch;
  {
    Player me;
    me.peer = std::make_unique<EchoNode>();
    me.play(last_message);
    watch.peer = std::move(me.peer);
  }
  watch.play(counts_hundred);
}

Task<void> message_to_self(Context& ctx, Player& me) {
  ctx.send(ctx.self(), Note{});
  EXPECT_EQ(me.notes, 0u);  // not from within send
  Answer answer = co_await ask(ctx, ctx.self(), patient());
  EXPECT_TRUE(answer.has_value());
  EXPECT_EQ(me.notes, 1u);
}

TEST(ZmqHost, AMessageToOneselfComesWithTheNextTurn) {
  Player me;
  me.play(message_to_self);
}

Task<void> wrong_answer(Context& ctx, Player& me) {
  introduce(ctx, *me.peer);
  Ping ping;
  base::Result<actor::Incoming<Note>> answer =
      co_await ctx.call<Note>(me.peer->address, std::move(ping), patient());
  EXPECT_TRUE(!answer && answer.error().code == base::Code::kMismatch);
}

TEST(ZmqHost, AnAnswerOfAnotherTypeIsAMismatch) {
  Player me;
  me.peer = std::make_unique<EchoNode>();
  me.play(wrong_answer);
}

Task<void> offloads(Context& ctx, Player&) {
  const std::thread::id reactor = std::this_thread::get_id();
  std::thread::id worker;
  int sum = 0;
  std::function<void()> job = [&] {
    worker = std::this_thread::get_id();
    for (int i = 1; i <= 100; ++i) sum += i;
  };
  co_await ctx.offload(std::move(job));
  EXPECT_EQ(sum, 5050);
  EXPECT_NE(worker, reactor);
  EXPECT_EQ(std::this_thread::get_id(), reactor);
}

TEST(ZmqHost, AnOffloadedJobRunsOffTheReactorAndReturnsToIt) {
  Player me;
  me.play(offloads);
}

Task<void> doomed(Context& ctx, std::atomic<int>* stage) {
  std::array<int, 1000> in_frame{};
  std::function<void()> job = [&in_frame, stage] {
    *stage = 1;
    stage->notify_all();
    for (int round = 0; round < 2000; ++round) {
      for (int& value : in_frame) value += round;
    }
    *stage = 2;
  };
  co_await ctx.offload(std::move(job));
  *stage = 3;
}

Task<void> destroys_a_waiting_frame(Context& ctx, Player&) {
  std::atomic<int> stage{0};
  {
    base::Future<void> future = base::start(doomed(ctx, &stage));
    stage.wait(0);
  }
  EXPECT_EQ(stage, 2);
  co_await ctx.sleep(1ms);
  EXPECT_EQ(stage, 2);
}

TEST(ZmqHost, DestroyingACoroutineWaitsForTheJobThatUsesItsFrame) {
  Player me;
  me.play(destroys_a_waiting_frame);
}

Task<void> takes_injections(Context& ctx, Player&) {
  const std::thread::id reactor = std::this_thread::get_id();
  int count = 0;
  int elsewhere = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 1000; ++i) {
        ctx.injector().post([&] {
          ++count;
          if (std::this_thread::get_id() != reactor) ++elsewhere;
        });
      }
    });
  }
  co_await until(
      ctx, [&] { return count == 8000; }, 20s);
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(count, 8000);
  EXPECT_EQ(elsewhere, 0);
}

TEST(ZmqHost, ClosuresOfOtherThreadsRunOnTheReactor) {
  Player me;
  me.play(takes_injections);
}

TEST(ZmqHost, AnInjectorMayBeUsedAfterItsHostIsGone) {
  std::unique_ptr<actor::ZmqHost> host = make_host();
  actor::Injector& injector = host->context().injector();
  host.reset();
  bool ran = false;
  injector.post([&] { ran = true; });
  EXPECT_FALSE(ran);
}

Task<void> sleeps_in_order(Context& ctx, base::Duration d, std::vector<int>* order, int mark) {
  co_await ctx.sleep(d);
  order->push_back(mark);
}

Task<void> several_sleeps(Context& ctx, Player&) {
  std::vector<int> order;
  const base::Time begin = ctx.now();
  ctx.spawn(sleeps_in_order(ctx, 30ms, &order, 3));
  ctx.spawn(sleeps_in_order(ctx, 10ms, &order, 1));
  ctx.spawn(sleeps_in_order(ctx, 20ms, &order, 2));
  ctx.spawn(sleeps_in_order(ctx, 0ms, &order, 0));
  co_await until(
      ctx, [&] { return order.size() == 4; }, 20s);
  EXPECT_EQ(order, (std::vector<int>{0, 1, 2, 3}));
  EXPECT_GE(ctx.now() - begin, 30ms);
}

TEST(ZmqHost, SleepersWakeInTheOrderOfTheirTimesAndNotEarly) {
  Player me;
  me.play(several_sleeps);
}

TEST(ZmqHost, SigtermStopsWithCodeZero) {
  Player me;
  me.handle_signals = true;
  me.play([](Context& ctx, Player&) -> Task<void> {
    ::kill(::getpid(), SIGTERM);
    co_await ctx.sleep(50s);
    ADD_FAILURE() << "the signal was not seen";
  });
}

Task<void> interrupted(Context& ctx, Player& me) {
  ::kill(::getpid(), SIGINT);
  co_await until(
      ctx, [&] { return me.terminated; }, 20s);
  co_await ctx.sleep(5ms);  // the host still runs
}

TEST(ZmqHost, OnASignalTheActorMayEndInItsOwnTime) {
  Player me;
  me.handle_signals = true;
  me.on_terminate = [&](Context&) { me.terminated = true; };
  me.play(interrupted);
  EXPECT_TRUE(me.terminated);
}

TEST(ZmqHost, APortThatIsTakenIsUnavailable) {
  EchoNode node;
  actor::ZmqOptions options;
  options.bind = node.endpoint;
  const auto second = actor::ZmqHost::create(options);
  ASSERT_FALSE(second.has_value());
  EXPECT_EQ(second.error().code, base::Code::kUnavailable);
  EXPECT_NE(second.error().what.find(node.endpoint), std::string::npos) << second.error().what;
}

Task<void> over_ipc(Context& ctx, Player& me) {
  const std::string& both = me.peer->endpoint;
  const std::string ipc = both.substr(both.find(' '));
  const Address self = ctx.self();
  const std::string mine = ctx.endpoint();
  me.peer->within([&](Context& other) { other.link(self.node, mine); });
  ctx.link(me.peer->address.node, dead_endpoint() + ipc);  // tcp leads nowhere
  Answer answer = co_await ask(ctx, me.peer->address, patient());
  EXPECT_TRUE(answer.has_value());
}

TEST(ZmqHost, NodesOfOneHostTalkOverIpc) {
  const auto path =
      std::filesystem::temp_directory_path() / fmt::format("serval-test-{}.sock", ::getpid());
  Player me;
  actor::ZmqOptions options;
  options.ipc_path = path.string();
  me.peer = std::make_unique<EchoNode>(options);
  me.play(over_ipc);
  me.peer.reset();
  EXPECT_FALSE(std::filesystem::exists(path));
}

}  // namespace
}  // namespace zmq_test
