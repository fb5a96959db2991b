#include "base/task.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "base/result.h"

namespace base {
namespace {

// Tells when it is destroyed.
struct Witness {
  explicit Witness(int* count) : count_(count) {}
  Witness(Witness&& other) noexcept : count_(std::exchange(other.count_, nullptr)) {}
  Witness(const Witness&) = delete;
  ~Witness() {
    if (count_ != nullptr) ++*count_;
  }
  int* count_;
};

Task<int> value(int x) { co_return x; }
Task<int> sum(int a, int b) {
  const int x = co_await value(a);
  const int y = co_await value(b);
  co_return x + y;
}
Task<void> append(std::string* out, char c) {
  *out += c;
  co_return;
}
Task<int> wait(Slot<int>* slot) {
  const int x = co_await *slot;
  co_return x;
}
Task<int> wait_deep(Slot<int>* slot, int depth) {
  if (depth == 0) co_return co_await wait(slot);
  const int x = co_await wait_deep(slot, depth - 1);
  co_return x + 1;
}

TEST(Task, IsLazyUntilAwaited) {
  std::string out;
  { Task<void> never = append(&out, 'x'); }
  EXPECT_EQ(out, "");
  run_inline(append(&out, 'y'));
  EXPECT_EQ(out, "y");
}

TEST(Task, ReturnsThroughAwaits) { EXPECT_EQ(run_inline(sum(3, 4)), 7); }

TEST(Task, AValueThatOnlyMovesComesHome) {
  struct Make {
    static Task<std::unique_ptr<int>> box(int x) { co_return std::make_unique<int>(x); }
    static Task<int> open() {
      std::unique_ptr<int> box = co_await Make::box(9);
      co_return *box;
    }
  };
  EXPECT_EQ(run_inline(Make::open()), 9);
}

Task<int64_t> count_up(int n) {
  int64_t total = 0;
  for (int i = 0; i < n; ++i) total += co_await value(i);
  co_return total;
}
TEST(Task, ALoopOfAwaitsThatNeverSuspendKeepsTheStackFlat) {
  EXPECT_EQ(run_inline(count_up(1'000'000)), 499'999'500'000);
}

Task<int64_t> count_slots(std::vector<std::unique_ptr<Slot<int>>>* slots) {
  int64_t total = 0;
  for (const auto& slot : *slots) total += co_await wait(slot.get());
  co_return total;
}
TEST(Task, ALoopOfAwaitsThatSuspendKeepsTheStackFlat) {
  std::vector<std::unique_ptr<Slot<int>>> slots;
  for (int i = 0; i < 100'000; ++i) slots.push_back(std::make_unique<Slot<int>>());
  Future<int64_t> future = start(count_slots(&slots));
  for (int i = 0; i < 100'000; ++i) {
    EXPECT_FALSE(future.done());
    slots[static_cast<size_t>(i)]->set(i);
  }
  ASSERT_TRUE(future.done());
  EXPECT_EQ(future.take(), 4'999'950'000);
}

TEST(Task, ASlotResumesTheWholeChainOfWaiters) {
  Slot<int> slot;
  Future<int> future = start(wait_deep(&slot, 50));
  EXPECT_FALSE(future.done());
  slot.set(100);
  ASSERT_TRUE(future.done());
  EXPECT_EQ(future.take(), 150);
}

TEST(Task, ASlotThatIsFullDoesNotSuspend) {
  Slot<int> slot;
  slot.set(5);
  EXPECT_TRUE(slot.full());
  EXPECT_EQ(run_inline(wait(&slot)), 5);
  EXPECT_DEATH(slot.set(6), "set once");
}

Task<int> await_future(Future<int>* future) {
  const int x = co_await *future;
  co_return x + 1;
}
TEST(Future, RunsUpToItsFirstWaitAndIsAwaitedBeforeOrAfterItsEnd) {
  Slot<int> first, second;
  Future<int> early = start(wait(&first));
  Future<int> outer = start(await_future(&early));
  EXPECT_FALSE(outer.done());
  first.set(1);
  ASSERT_TRUE(outer.done());
  EXPECT_EQ(outer.take(), 2);

  Future<int> late = start(wait(&second));
  second.set(7);
  ASSERT_TRUE(late.done());
  EXPECT_EQ(run_inline(await_future(&late)), 8);
}

Task<int> overlap(Slot<int>* a, Slot<int>* b, std::string* order) {
  Future<int> shortcut = start(wait(a));
  *order += "dense ";
  const int x = co_await wait(b);
  *order += "combine ";
  const int y = co_await shortcut;
  co_return x * 10 + y;
}
TEST(Future, OverlapsWithOtherWork) {
  Slot<int> a, b;
  std::string order;
  Future<int> future = start(overlap(&a, &b, &order));
  EXPECT_EQ(order, "dense ");
  a.set(1);
  EXPECT_FALSE(future.done());
  b.set(2);
  ASSERT_TRUE(future.done());
  EXPECT_EQ(order, "dense combine ");
  EXPECT_EQ(future.take(), 21);
}

Task<void> hold(Slot<int>* slot, Witness witness, int* reached) {
  const Witness local(std::exchange(witness.count_, nullptr));
  co_await wait(slot);
  ++*reached;
}
Task<void> hold_outer(Slot<int>* slot, int* gone, int* reached) {
  Witness witness(gone);
  Witness other(gone);
  co_await hold(slot, std::move(witness), reached);
  ++*reached;
}
TEST(Future, DestroyingItDestroysEveryFrameInsideAndResumesNothing) {
  int gone = 0, reached = 0;
  Slot<int> slot;
  { Future<void> future = start(hold_outer(&slot, &gone, &reached)); }
  EXPECT_EQ(gone, 2);
  EXPECT_EQ(reached, 0);
}

TEST(Future, ForgetsAFrameThatWasDestroyedWhileItAwaitedIt) {
  Slot<int> slot;
  Future<int> inner = start(wait(&slot));
  { Future<int> gone = start(await_future(&inner)); }
  Future<int> outer = start(await_future(&inner));
  slot.set(4);
  ASSERT_TRUE(outer.done());
  EXPECT_EQ(outer.take(), 5);
}

TEST(Future, MayGoBeforeTheFrameThatAwaitsIt) {
  Slot<int> slot;
  auto inner = std::make_unique<Future<int>>(start(wait(&slot)));
  Future<int> outer = start(await_future(inner.get()));
  inner.reset();
  slot.set(1);
  EXPECT_FALSE(outer.done());
}

TEST(Slot, ForgetsAFrameThatWasDestroyedWhileItWaited) {
  Slot<int> slot;
  { Future<int> gone = start(wait_deep(&slot, 3)); }
  Future<int> next = start(wait_deep(&slot, 1));
  slot.set(5);
  ASSERT_TRUE(next.done());
  EXPECT_EQ(next.take(), 6);
  Slot<int> unheard;
  { Future<int> gone = start(wait(&unheard)); }
  unheard.set(1);
}

TEST(Slot, MayGoBeforeTheFrameThatWaitsForIt) {
  auto slot = std::make_unique<Slot<int>>();
  Future<int> future = start(wait(slot.get()));
  slot.reset();
  EXPECT_FALSE(future.done());
}

TEST(SlotDeathTest, IsAwaitedOnceAtATime) {
  Slot<int> slot;
  Future<int> first = start(wait(&slot));
  EXPECT_DEATH(static_cast<void>(start(wait(&slot))), "awaited once at a time");
}

TEST(Future, AssigningANewOneDestroysTheOldOnesFrames) {
  int gone = 0, reached = 0;
  Slot<int> slot, other;
  Future<void> future = start(hold_outer(&slot, &gone, &reached));
  future = start(hold_outer(&other, &gone, &reached));
  EXPECT_EQ(gone, 2);
  other.set(0);
  EXPECT_TRUE(future.done());
  EXPECT_EQ(reached, 2);
  EXPECT_EQ(gone, 4);
}

Result<int> odd_only(int x) {
  if (x % 2 == 0) return fail(Code::kInvalidArgument, "{} is even", x);
  return x;
}
Task<Result<int>> answer(int x) { co_return odd_only(x); }
Task<Result<int>> add_odds(int a, int b) {
  const int x = CO_TRY(odd_only(a));
  Result<int> second = co_await answer(b);
  const int y = CO_TRY(std::move(second));
  co_return x + y;
}
TEST(Task, CoTryEndsTheCoroutineWithTheError) {
  EXPECT_EQ(run_inline(add_odds(1, 3)).value(), 4);
  EXPECT_EQ(run_inline(add_odds(2, 3)).error().what, "2 is even");
  EXPECT_EQ(run_inline(add_odds(1, 4)).error().what, "4 is even");
}

TEST(TaskDeathTest, RunInlineRefusesATaskThatWaits) {
  Slot<int> slot;
  EXPECT_DEATH(run_inline(wait(&slot)), "waits for something that is not here");
}

}  // namespace
}  // namespace base
