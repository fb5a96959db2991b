#include "decode_node/kv_intake.h"

#include <gtest/gtest.h>

namespace decode {
namespace {

using Range = KvIntake::Range;
using Commit = KvIntake::Commit;

base::Hash128 digest(uint64_t n) { return {n, 7}; }

// Two ranges, tokens 0–9 and 10–14, in every layer of [begin, end).
void fill(KvIntake& intake, uint32_t begin, uint32_t end) {
  for (uint32_t layer = begin; layer < end; ++layer) {
    intake.received(layer, 10, 5, digest(layer * 2 + 1));
    intake.received(layer, 0, 10, digest(layer * 2));
  }
}

proto::KvCommit commit_of(uint32_t begin, uint32_t end) {
  proto::KvCommit commit;
  commit.layer_begin = begin;
  commit.layer_end = end;
  commit.tokens = 15;
  for (uint32_t layer = begin; layer < end; ++layer) {
    base::Hash128 chain;
    chain = proto::kv_chain(chain, digest(layer * 2));
    chain = proto::kv_chain(chain, digest(layer * 2 + 1));
    commit.digests.push_back(chain);
  }
  return commit;
}

TEST(KvIntake, SortsARangeIntoNewRepeatedAndConflicting) {
  KvIntake intake(2, 100);
  intake.received(1, 20, 10, digest(1));
  struct Case {
    uint32_t layer, begin, count;
    uint64_t digest;
    Range expected;
  };
  const Case cases[] = {{1, 20, 10, 1, Range::kDuplicate},
                        {0, 20, 10, 1, Range::kNew},
                        {1, 20, 10, 2, Range::kConflict},
                        {1, 20, 9, 1, Range::kConflict},
                        {1, 19, 2, 3, Range::kConflict},
                        {1, 29, 1, 3, Range::kConflict},
                        {1, 25, 2, 3, Range::kConflict},
                        {1, 0, 100, 3, Range::kConflict},
                        {1, 10, 10, 3, Range::kNew},
                        {1, 30, 70, 3, Range::kNew},
                        {1, 30, 71, 3, Range::kConflict},
                        {1, 100, 1, 3, Range::kConflict},
                        {2, 0, 1, 3, Range::kConflict},
                        {1, 0, 0, 3, Range::kConflict},
                        {1, 50, 0xFFFFFFFF, 3, Range::kConflict}};
  for (const Case& c : cases) {
    EXPECT_EQ(intake.classify(c.layer, c.begin, c.count, digest(c.digest)), c.expected)
        << c.layer << " " << c.begin << "+" << c.count;
  }
}

TEST(KvIntake, WhatIsHereBeforeTheFirstTokenNeverArrives) {
  KvIntake intake(2, 15, [](uint32_t layer) { return layer == 0 ? 10u : 15u; });
  EXPECT_EQ(intake.classify(0, 0, 10, digest(1)), Range::kConflict);
  EXPECT_EQ(intake.classify(0, 9, 6, digest(1)), Range::kConflict);
  EXPECT_EQ(intake.classify(1, 14, 1, digest(1)), Range::kConflict);
  EXPECT_EQ(intake.classify(0, 10, 5, digest(1)), Range::kNew);
  proto::KvCommit commit;
  commit.layer_end = 2;
  commit.tokens = 15;
  commit.digests = {proto::kv_chain({}, digest(1)), {}};  // of layer 1 nothing was to be sent
  EXPECT_EQ(intake.commit(commit), Commit::kMismatch);
  intake.received(0, 10, 5, digest(1));
  EXPECT_EQ(intake.classify(0, 10, 5, digest(1)), Range::kDuplicate);
  EXPECT_EQ(intake.commit(commit), Commit::kAccepted);
  EXPECT_TRUE(intake.all_committed());
  EXPECT_EQ(intake.classify(0, 0, 10, digest(1)), Range::kDuplicate);
}

TEST(KvIntake, IsCompleteWhenTheCommitsOfAllStagesCoverAllLayers) {
  KvIntake intake(3, 15);
  fill(intake, 0, 3);
  EXPECT_EQ(intake.commit(commit_of(2, 3)), Commit::kAccepted);
  EXPECT_FALSE(intake.all_committed());
  EXPECT_EQ(intake.commit(commit_of(2, 3)), Commit::kAccepted);  // repeated
  EXPECT_FALSE(intake.all_committed());
  EXPECT_EQ(intake.commit(commit_of(0, 2)), Commit::kAccepted);
  EXPECT_TRUE(intake.all_committed());
  EXPECT_EQ(intake.classify(0, 3, 4, digest(99)), Range::kDuplicate);  // changes nothing any more
}

TEST(KvIntake, RefusesACommitWhoseChainDiffersInOneLayerAndKeepsNothingOfIt) {
  KvIntake intake(3, 15);
  fill(intake, 0, 3);
  proto::KvCommit wrong = commit_of(0, 3);
  wrong.digests[2].low ^= 1;
  EXPECT_EQ(intake.commit(wrong), Commit::kMismatch);
  EXPECT_EQ(intake.classify(0, 3, 4, digest(99)), Range::kConflict);  // layer 0 is still open
  EXPECT_EQ(intake.commit(commit_of(0, 3)), Commit::kAccepted);
  EXPECT_EQ(intake.commit(wrong), Commit::kMismatch);
}

TEST(KvIntake, RefusesACommitBeforeTheLastRows) {
  KvIntake intake(1, 15);
  intake.received(0, 0, 10, digest(0));
  proto::KvCommit early = commit_of(0, 1);
  early.digests[0] = intake.chain(0);
  EXPECT_EQ(intake.commit(early), Commit::kMismatch);
  intake.received(0, 10, 5, digest(1));
  EXPECT_EQ(intake.commit(commit_of(0, 1)), Commit::kAccepted);
}

TEST(KvIntake, RefusesACommitThatMakesNoSense) {
  KvIntake intake(2, 15);
  fill(intake, 0, 2);
  proto::KvCommit empty = commit_of(1, 1), past = commit_of(1, 3), few = commit_of(0, 2),
                  tokens = commit_of(0, 2);
  few.digests.pop_back();
  tokens.tokens = 14;
  for (const proto::KvCommit& commit : {empty, past, few, tokens}) {
    EXPECT_EQ(intake.commit(commit), Commit::kMalformed);
  }
  EXPECT_FALSE(intake.all_committed());
}

TEST(KvIntake, ChainsTheDigestsInTokenOrderWhateverOrderTheyCameIn) {
  KvIntake forward(1, 15), backward(1, 15);
  forward.received(0, 0, 10, digest(0));
  forward.received(0, 10, 5, digest(1));
  backward.received(0, 10, 5, digest(1));
  backward.received(0, 0, 10, digest(0));
  EXPECT_EQ(forward.chain(0), backward.chain(0));
  EXPECT_EQ(forward.chain(0), commit_of(0, 1).digests[0]);
}

TEST(KvIntake, OfAShareTheRowsBeforeItAreNoneOfOurs) {
  KvIntake intake(1, /*tokens=*/192, [](uint32_t) { return 128u; });
  EXPECT_EQ(intake.classify(0, 127, 1, digest(1)), Range::kConflict);
  EXPECT_EQ(intake.classify(0, 128, 65, digest(1)), Range::kConflict);
  ASSERT_EQ(intake.classify(0, 128, 64, digest(1)), Range::kNew);
  intake.received(0, 128, 64, digest(1));
  proto::KvCommit commit;
  commit.layer_end = 1;
  commit.digests = {proto::kv_chain({}, digest(1))};
  commit.tokens = 64;
  EXPECT_EQ(intake.commit(commit), Commit::kMalformed);
  commit.tokens = 192;
  EXPECT_EQ(intake.commit(commit), Commit::kAccepted);
  EXPECT_TRUE(intake.all_committed());
}

}  // namespace
}  // namespace decode
