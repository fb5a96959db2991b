#include "coordinator/waiting_queue.h"

#include <gtest/gtest.h>

#include <vector>

namespace coordinator {
namespace {

WaitingQueue::Entry entry(uint64_t arrival, int32_t priority = 0, std::string tenant = "",
                          uint64_t cost = 100) {
  return {.id = RequestId{arrival},
          .arrival = arrival,
          .priority = priority,
          .again = false,
          .tenant = std::move(tenant),
          .cost = cost};
}

std::vector<uint64_t> take(WaitingQueue& queue, size_t count = SIZE_MAX) {
  std::vector<uint64_t> order;
  for (; count > 0 && !queue.empty(); --count) {
    order.push_back(queue.first().value);
    queue.take_first();
  }
  return order;
}

using Order = std::vector<uint64_t>;

TEST(WaitingQueue, EqualsGoAsTheyWereAdmitted) {
  WaitingQueue queue;
  for (const uint64_t arrival : {3, 1, 2}) queue.add(entry(arrival));
  EXPECT_EQ(take(queue), (Order{1, 2, 3}));
}

TEST(WaitingQueue, TheLowerPriorityNumberGoesFirst) {
  WaitingQueue queue;
  queue.add(entry(1, 5)), queue.add(entry(2, 0)), queue.add(entry(3, -7));
  EXPECT_EQ(take(queue), (Order{3, 2, 1}));
}

TEST(WaitingQueue, OneThatComesBackGoesToTheHeadOfItsPriority) {
  WaitingQueue queue;
  queue.add(entry(5, 0)), queue.add(entry(9, -1));
  WaitingQueue::Entry back = entry(7, 0);
  back.again = true;
  queue.add(back);
  EXPECT_EQ(take(queue), (Order{9, 7, 5}));
}

TEST(WaitingQueue, TenantsGoInTurnsHoweverManyRequestsOneOfThemSends) {
  WaitingQueue queue;
  for (uint64_t arrival = 1; arrival <= 4; ++arrival) queue.add(entry(arrival, 0, "many"));
  queue.add(entry(5, 0, "few")), queue.add(entry(6, 0, "few"));
  EXPECT_EQ(take(queue), (Order{1, 5, 2, 6, 3, 4}));
}

TEST(WaitingQueue, ATurnIsAsLongAsItsTokens) {
  WaitingQueue queue;
  for (uint64_t arrival = 1; arrival <= 3; ++arrival) queue.add(entry(arrival, 0, "long", 300));
  for (uint64_t arrival = 4; arrival <= 9; ++arrival) queue.add(entry(arrival, 0, "short", 100));
  EXPECT_EQ(take(queue, 7), (Order{1, 4, 5, 6, 2, 7, 8}));
}

TEST(WaitingQueue, WhoWasAwayHasSavedUpNothing) {
  WaitingQueue queue;
  uint64_t arrival = 0;
  for (int i = 0; i < 6; ++i) queue.add(entry(++arrival, 0, "busy"));
  EXPECT_EQ(take(queue, 6).size(), 6u);
  for (int i = 0; i < 3; ++i) queue.add(entry(++arrival, 0, "busy"));      // 7 8 9
  for (int i = 0; i < 3; ++i) queue.add(entry(++arrival, 0, "newcomer"));  // 10 11 12
  EXPECT_EQ(take(queue, 1), (Order{7}));
  EXPECT_EQ(take(queue, 1), (Order{8}));  // the eighth turn: the oldest
  EXPECT_EQ(take(queue), (Order{10, 11, 9, 12}));
}

TEST(WaitingQueue, EveryEighthTurnIsTheOldests) {
  WaitingQueue queue;
  queue.add(entry(1, /*priority=*/1000));
  for (uint64_t arrival = 2; arrival <= 20; ++arrival) queue.add(entry(arrival, 0));
  EXPECT_EQ(take(queue, 9), (Order{2, 3, 4, 5, 6, 7, 8, 1, 9}));
}

TEST(WaitingQueue, WhoseTurnItIsStaysSoWhileItWaits) {
  WaitingQueue queue;
  queue.add(entry(1, 0, "a")), queue.add(entry(2, 0, "b"));
  EXPECT_EQ(queue.first(), RequestId{1});
  EXPECT_EQ(queue.first(), RequestId{1});
  queue.remove(RequestId{1});
  queue.remove(RequestId{1});
  EXPECT_EQ(queue.first(), RequestId{2});
  queue.remove(RequestId{2});
  EXPECT_TRUE(queue.empty());
}

}  // namespace
}  // namespace coordinator
