// JobQueue: what begins when a thread is free, what comes along, and what is never passed for ever.
#include "actor/job_queue.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace actor {
namespace {

using Ids = std::vector<uint64_t>;

struct Quiet final : JointJob {
  void run(std::span<JointJob* const> all) override { ran_with = all.size(); }
  size_t ran_with = 0;
};

ComputeJob job(uint64_t id, Turn turn) { return {.id = id, .cost = Cost{}.at(turn)}; }

ComputeJob joint(uint64_t id, Turn turn, JointJob& with, JointJob::Company company) {
  return {.id = id, .cost = Cost{}.at(turn), .joint = &with, .company = company};
}

Ids take(JobQueue& queue) {
  Ids ids;
  for (const ComputeJob& taken : queue.take()) ids.push_back(taken.id);
  return ids;
}

TEST(JobQueue, OwnWorkGoesFirstThenWhatOthersAskForThenBackground) {
  JobQueue queue;
  queue.add(job(1, Turn::kBackground));
  queue.add(job(2, Turn::kAsked));
  queue.add(job(3, Turn::kOwn));
  queue.add(job(4, Turn::kAsked));
  queue.add(job(5, Turn::kOwn));
  Ids order;
  while (!queue.empty()) order.push_back(take(queue).front());
  EXPECT_EQ(order, (Ids{3, 5, 2, 4, 1}));
}

// How many of `others` begin while a job of this turn waits and another of theirs always does.
uint32_t passed(Turn turn, Turn others) {
  JobQueue queue;
  queue.add(job(1, turn));
  for (uint32_t begun = 0;; ++begun) {
    queue.add(job(2, others));
    if (take(queue).front() == 1) return begun;
  }
}

TEST(JobQueue, NoJobIsPassedForEver) {
  EXPECT_EQ(passed(Turn::kAsked, Turn::kOwn), JobQueue::kPassedMost[1]);
  EXPECT_EQ(passed(Turn::kBackground, Turn::kAsked), JobQueue::kPassedMost[2]);
  EXPECT_EQ(passed(Turn::kBackground, Turn::kOwn), JobQueue::kPassedMost[2]);
}

TEST(JobQueue, BackgroundBeginsThoughBothOtherTurnsAlwaysWait) {
  JobQueue queue;
  queue.add(job(1, Turn::kBackground));
  uint32_t own = 0, asked = 0;
  for (;;) {
    queue.add(job(2, Turn::kOwn));
    queue.add(job(3, Turn::kAsked));
    const uint64_t id = take(queue).front();
    if (id == 1) break;
    ++(id == 2 ? own : asked);
    ASSERT_LT(own + asked, 100u);
  }
  EXPECT_EQ(own + asked, JobQueue::kPassedMost[2]);
  EXPECT_EQ(own / std::max(asked, 1u), JobQueue::kPassedMost[1]);
}

TEST(JobQueue, AJointJobTakesItsCompanyAlongWhateverItsTurnAndNobodyElse) {
  JobQueue queue;
  Quiet work;
  queue.add(joint(1, Turn::kBackground, work, {.number = 7, .size = 1, .most = 9}));
  queue.add(joint(2, Turn::kAsked, work, {.number = 8, .size = 1, .most = 9}));
  queue.add(job(3, Turn::kAsked));
  queue.add(joint(4, Turn::kAsked, work, {.number = 7, .size = 1, .most = 9}));
  queue.add(joint(5, Turn::kAsked, work, {.number = 8, .size = 1, .most = 9}));
  EXPECT_EQ(take(queue), (Ids{2, 5}));
  EXPECT_EQ(take(queue), (Ids{3}));
  EXPECT_EQ(take(queue), (Ids{4, 1}));
  EXPECT_TRUE(queue.empty());
}

TEST(JobQueue, CompanyIsBoundedButOneAloneMayBeLarger) {
  JobQueue queue;
  Quiet work;
  queue.add(joint(1, Turn::kAsked, work, {.number = 7, .size = 20, .most = 9}));
  queue.add(joint(2, Turn::kAsked, work, {.number = 7, .size = 4, .most = 9}));
  queue.add(joint(3, Turn::kAsked, work, {.number = 7, .size = 6, .most = 9}));
  queue.add(joint(4, Turn::kAsked, work, {.number = 7, .size = 5, .most = 9}));
  EXPECT_EQ(take(queue), (Ids{1}));
  EXPECT_EQ(take(queue), (Ids{2, 4}));
  EXPECT_EQ(take(queue), (Ids{3}));
}

TEST(JobQueue, WhatIsErasedNeitherBeginsNorComesAlong) {
  JobQueue queue;
  Quiet work;
  for (uint64_t id = 1; id <= 3; ++id)
    queue.add(joint(id, Turn::kAsked, work, {.number = 7, .size = 1, .most = 9}));
  queue.add(job(4, Turn::kOwn));
  queue.erase(2);
  queue.erase(4);
  EXPECT_EQ(take(queue), (Ids{1, 3}));
  EXPECT_TRUE(queue.empty());
}

TEST(JobQueue, TogetherMeansThatTheFirstDoesTheWorkOfAll) {
  JobQueue queue;
  Quiet first, second;
  queue.add(joint(1, Turn::kAsked, first, {.number = 7, .size = 1, .most = 9}));
  queue.add(joint(2, Turn::kAsked, second, {.number = 7, .size = 1, .most = 9}));
  std::vector<ComputeJob> taken = queue.take();
  run_together(taken);
  EXPECT_EQ(first.ran_with, 2u);
  EXPECT_EQ(second.ran_with, 0u);
}

}  // namespace
}  // namespace actor
