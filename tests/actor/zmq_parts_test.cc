// The parts of a host that need no socket.
#include <gtest/gtest.h>

#include <atomic>
#include <set>

#include "actor/compute_pool.h"
#include "actor/endpoint.h"
#include "actor/inbox.h"
#include "actor/pending_calls.h"
#include "actor/timer_queue.h"

namespace actor {
namespace {

using std::chrono_literals::operator""ms;
using std::chrono_literals::operator""s;

Time at(Duration d) { return Time(d); }

TEST(TimerQueue, RunsWhatIsDueInOrderOfTimeThenOfSetting) {
  TimerQueue timers;
  std::string ran;
  timers.add(at(2s), [&] { ran += "c"; });
  timers.add(at(1s), [&] { ran += "a"; });
  timers.add(at(1s), [&] { ran += "b"; });
  timers.add(at(3s), [&] { ran += "d"; });
  timers.run_due(at(2s), 10);
  EXPECT_EQ(ran, "abc");
  EXPECT_EQ(timers.next(), at(3s));
}

TEST(TimerQueue, ATimerThatSetsItselfAgainDoesNotHoldUpTheTurn) {
  TimerQueue timers;
  Timer timer(timers);
  int ran = 0;
  std::function<void()> again = [&] {
    ++ran;
    timer.set(at(0s), again);
  };
  timer.set(at(0s), again);
  timers.run_due(at(1s), 5);
  EXPECT_EQ(ran, 5);
}

TEST(TimerQueue, ATimerMayBeDestroyedByItsOwnClosure) {
  TimerQueue timers;
  auto timer = std::make_unique<Timer>(timers);
  timer->set(at(0s), [&] { timer.reset(); });
  timers.run_due(at(1s), 5);
  EXPECT_EQ(timer, nullptr);
  EXPECT_EQ(timers.size(), 0u);
}

TEST(TimerQueue, ADestroyedTimerNeverRuns) {
  TimerQueue timers;
  bool ran = false;
  {
    Timer(timers).set(at(0s), [&] { ran = true; });
  }
  timers.run_due(at(1s), 5);
  EXPECT_FALSE(ran);
}

base::Task<void> await_entry(PendingCalls::Entry* entry, int* answers) {
  PendingCalls::Answer answer = co_await entry->slot;
  *answers += answer ? 1 : 100;
}

TEST(PendingCalls, ACallIsAnsweredOnceAndByTheNodeCalled) {
  PendingCalls calls(0);
  PendingCalls::Entry entry(calls, NodeId{5});
  int answers = 0;
  base::Future<void> waiting = base::start(await_entry(&entry, &answers));
  EXPECT_FALSE(calls.answer(entry.number(), NodeId{6}, Envelope{}));
  EXPECT_FALSE(calls.answer(entry.number() + 1, NodeId{5}, Envelope{}));
  EXPECT_TRUE(calls.answer(entry.number(), NodeId{5}, Envelope{}));
  EXPECT_FALSE(calls.answer(entry.number(), NodeId{5}, Envelope{}));
  calls.fail(entry.number(), base::Error{base::Code::kPeerGone, "late"});
  EXPECT_EQ(answers, 1);
  EXPECT_TRUE(waiting.done());
  EXPECT_EQ(calls.size(), 0u);
}

TEST(PendingCalls, ADestroyedEntryIsForgotten) {
  PendingCalls calls(0);
  uint64_t number = 0;
  {
    PendingCalls::Entry entry(calls, NodeId{5});
    number = entry.number();
    EXPECT_EQ(calls.to(NodeId{5}), std::vector<uint64_t>{number});
    EXPECT_TRUE(calls.to(NodeId{6}).empty());
  }
  EXPECT_FALSE(calls.answer(number, NodeId{5}, Envelope{}));
}

ComputeJob job_of(uint64_t id, std::function<void()> run) {
  return {.id = id, .run = std::move(run)};
}

TEST(ComputePool, RunsEveryJobOnceAndReportsIt) {
  std::atomic<int> ran{0};
  std::atomic<uint64_t> reported{0};
  ComputePool pool(4, [&](const ComputePool::Ids& ids) {
    for (const uint64_t id : ids) reported += id;
    reported.notify_all();
  });
  for (uint64_t id = 1; id <= 100; ++id) pool.submit(job_of(id, [&] { ++ran; }));
  for (uint64_t seen = 0; seen != 5050; seen = reported) reported.wait(seen);
  EXPECT_EQ(ran, 100);
}

// Keeps the only thread of a pool until it is opened.
struct Gate {
  std::atomic<bool> begun{false}, open{false};
  void pass() {
    begun = true;
    begun.notify_all();
    open.wait(false);
  }
  void release() {
    open = true;
    open.notify_all();
  }
};

TEST(ComputePool, AWithdrawnJobHasEndedOrNeverRuns) {
  Gate gate;
  std::atomic<int> ran{0};
  ComputePool pool(1, [](const ComputePool::Ids&) {});
  pool.submit(job_of(1, [&] {
    gate.pass();
    ++ran;
  }));
  pool.submit(job_of(2, [&] { ran += 100; }));
  gate.begun.wait(false);
  pool.withdraw(2);  // still queued
  std::thread opener([&] { gate.release(); });
  pool.withdraw(1);
  EXPECT_EQ(ran, 1);
  opener.join();
  pool.stop();
  EXPECT_EQ(ran, 1);
}

struct Joined final : JointJob {
  explicit Joined(std::atomic<size_t>& all) : company(all) {}
  void run(std::span<JointJob* const> all) override { company = all.size(); }
  std::atomic<size_t>& company;
};

TEST(ComputePool, JobsThatWaitInCompanyRunTogetherAndAreReportedTogether) {
  Gate gate;
  std::atomic<size_t> company{0}, reported{0};
  Joined a(company), b(company), c(company);
  ComputePool pool(1, [&](const ComputePool::Ids& ids) {
    if (ids.front() != 1) reported = ids.size();
    reported.notify_all();
  });
  pool.submit(job_of(1, [&] { gate.pass(); }));
  gate.begun.wait(false);
  for (Joined* joined : {&a, &b, &c})
    pool.submit({.id = 2, .joint = joined, .company = {.number = 7, .size = 1, .most = 3}});
  gate.release();
  reported.wait(0);
  EXPECT_EQ(reported, 3u);
  EXPECT_EQ(company, 3u);
  EXPECT_GT(a.took.count(), 0);
  EXPECT_EQ((b.took + c.took).count(), 0);
}

TEST(Inbox, KeepsTheOrderAndDropsAfterTheEnd) {
  Inbox& inbox = Inbox::create();
  std::string ran;
  inbox.post([&] { ran += "a"; });
  inbox.post([&] { ran += "b"; });
  for (auto& run : inbox.take()) run();
  EXPECT_EQ(ran, "ab");
  EXPECT_TRUE(inbox.take().empty());
  inbox.close();
  inbox.post([&] { ran += "c"; });
  EXPECT_EQ(ran, "ab");
}

TEST(Endpoint, ThePathIsTakenOnOneHostAndTcpAcross) {
  const std::string both = "tcp://10.0.0.1:7001 ipc:///run/serval/a@b.sock@abc";
  EXPECT_EQ(reachable("tcp://10.0.0.1:7001", "abc").value(), "tcp://10.0.0.1:7001");
  EXPECT_EQ(reachable(both, "abc").value(), "ipc:///run/serval/a@b.sock");
  EXPECT_EQ(reachable(both, "xyz").value(), "tcp://10.0.0.1:7001");
  for (const char* bad :
       {"", "inproc://a", "ipc:///a@abc", "tcp://", "tcp://a", "tcp://:1", "tcp://a:0",
        "tcp://a:65536", "tcp://a:1x", "tcp://a:*", "tcp://a:-1", "tcp://1:1 ",
        "tcp://1:1 ipc://@abc", "tcp://1:1 ipc:///a", "tcp://1:1 inproc://a@abc"}) {
    EXPECT_FALSE(reachable(bad, "abc").has_value()) << bad;
  }
}

TEST(Endpoint, AnAdvertisedStarBecomesTheBoundPort) {
  EXPECT_EQ(advertised("", "tcp://0.0.0.0:71"), "tcp://0.0.0.0:71");
  EXPECT_EQ(advertised("tcp://h:*", "tcp://0.0.0.0:71"), "tcp://h:71");
  EXPECT_EQ(advertised("tcp://h:9", "tcp://0.0.0.0:71"), "tcp://h:9");
}

TEST(Endpoint, TheHostIdStaysTheSame) {
  EXPECT_EQ(host_id(), host_id());
  EXPECT_EQ(host_id().size(), 32u);
}

}  // namespace
}  // namespace actor
