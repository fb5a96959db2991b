#include "coordinator/expert_balance.h"

#include <gtest/gtest.h>

namespace coordinator {
namespace {

using namespace std::chrono_literals;
using Phase = proto::ExpertPlan::Phase;

constexpr uint32_t kLayers = 2, kExperts = 8;

// A rank as it answers: what it was told last is what it says.
struct FakeRank {
  NodeId node;
  proto::ExpertReport word;
  std::vector<uint32_t> window;
};

class ExpertBalanceTest : public ::testing::Test {
 protected:
  void build(BalanceOptions options, std::initializer_list<uint64_t> ids) {
    options.layers = kLayers;
    options.experts = kExperts;
    options.positions = static_cast<uint32_t>(ids.size());
    balance_.emplace(options);
    for (const uint64_t id : ids) add(id);
    show_ranks();
  }
  void add(uint64_t id) {
    FakeRank rank;
    rank.node = NodeId{id};
    ranks_.push_back(rank);
  }
  void kill(uint64_t id) {
    std::erase_if(ranks_, [id](const FakeRank& rank) { return rank.node.value == id; });
    show_ranks();
  }
  void show_ranks() {
    std::vector<NodeId> ids;
    for (const FakeRank& rank : ranks_) ids.push_back(rank.node);
    balance_->set_ranks(ids, now_);
  }
  void load(const std::vector<uint32_t>& experts) {
    for (FakeRank& rank : ranks_) {
      rank.window.clear();
      for (uint32_t layer = 0; layer < kLayers; ++layer) {
        rank.window.insert(rank.window.end(), experts.begin(), experts.end());
        rank.window.push_back(0);
      }
    }
  }
  void say(FakeRank& rank) {
    actor::Incoming<proto::ExpertReport> in;
    in.from = {rank.node, proto::kDecode};
    in.msg = rank.word;
    if (!rank.window.empty()) {
      in.blobs = {base::Blob::of(std::span<const uint32_t>(rank.window))};
      in.msg.digest = base::hash128(in.blobs[0].view());
    }
    EXPECT_TRUE(balance_->report(in, now_));
  }
  void say_all() {
    for (FakeRank& rank : ranks_) say(rank);
  }
  std::vector<Phase> owed(const FakeRank& rank) const {
    std::vector<Phase> phases;
    for (const auto& owed : balance_->owed(rank.node)) phases.push_back(owed.message.phase);
    return phases;
  }
  // True when a plan is to be prepared.
  bool plan() {
    auto question = balance_->due(now_);
    if (!question) return false;
    return balance_->planned(*question, ExpertBalance::compute(*question), now_);
  }
  void prepare_all() {
    for (FakeRank& rank : ranks_) rank.word.held = rank.word.ready = balance_->epoch() + 1;
  }
  void settle_all() {
    say_all();
    for (FakeRank& rank : ranks_) rank.word.active = rank.word.settled = balance_->epoch();
    say_all();
  }

  std::optional<ExpertBalance> balance_;
  std::vector<FakeRank> ranks_;
  Time now_{1h};
};

const std::vector<uint32_t> kSkewed = {20, 20, 20, 20, 20, 20, 20, 900};
const std::vector<uint32_t> kEven(kExperts, 100);

TEST_F(ExpertBalanceTest, WithoutCopiesAndPlansNothingIsDue) {
  build({}, {5, 6});
  say_all();
  now_ += 1h;
  EXPECT_FALSE(balance_->on());
  EXPECT_FALSE(balance_->due(now_));
}

TEST_F(ExpertBalanceTest, CopiesAreMadeAtOnceAndAPlanGoesThroughItsPhases) {
  build({.redundant = 2}, {5, 6});
  EXPECT_FALSE(balance_->due(now_ + 1s)) << "nobody has reported";
  say_all();
  EXPECT_FALSE(balance_->due(now_)) << "the ranks have just come";
  now_ += 1s;
  ASSERT_TRUE(plan());
  EXPECT_EQ(owed(ranks_[0]), std::vector<Phase>{Phase::kPrepare});
  EXPECT_EQ(balance_->epoch(), 0u);
  ranks_[0].word.held = ranks_[0].word.ready = 1;
  say(ranks_[0]);
  EXPECT_TRUE(owed(ranks_[0]).empty()) << "the other is not ready";
  EXPECT_EQ(owed(ranks_[1]), std::vector<Phase>{Phase::kPrepare});
  ranks_[1].word.held = ranks_[1].word.ready = 1;
  say(ranks_[1]);
  EXPECT_EQ(balance_->epoch(), 1u);
  EXPECT_EQ(owed(ranks_[0]), std::vector<Phase>{Phase::kActive});
  ranks_[0].word.active = 1;
  say(ranks_[0]);
  EXPECT_TRUE(owed(ranks_[0]).empty()) << "the other may still dispatch by what was before";
  ranks_[1].word.active = 1;
  say(ranks_[1]);
  for (FakeRank& rank : ranks_) {
    EXPECT_EQ(owed(rank), std::vector<Phase>{Phase::kSettled});
    rank.word.settled = 1;
  }
  EXPECT_FALSE(balance_->settled());
  say_all();
  EXPECT_TRUE(balance_->settled());
  EXPECT_FALSE(balance_->due(now_ + 1h)) << "plans do not follow the load here";
}

TEST_F(ExpertBalanceTest, ASkewedLoadIsDueEveryIntervalAndAnEvenOneIsSkipped) {
  build({.redundant = 2, .live = true, .interval = 10s}, {5, 6});
  say_all();
  now_ += 1s;
  ASSERT_TRUE(plan());
  prepare_all();
  settle_all();
  load(kSkewed);
  say_all();
  EXPECT_LT(balance_->predicted(), 0.9);
  EXPECT_FALSE(balance_->due(now_ + 9s));
  now_ += 10s;
  ASSERT_TRUE(plan());
  prepare_all();
  settle_all();
  EXPECT_EQ(balance_->epoch(), 2u);
  EXPECT_GT(balance_->predicted(), 0.95);
  now_ += 10s;
  EXPECT_FALSE(plan()) << "it would gain nothing";
  EXPECT_EQ(balance_->counters().skipped, 1u);
  EXPECT_EQ(balance_->counters().plans, 2u);
}

TEST_F(ExpertBalanceTest, TooFewPairsSayNothingOfTheLoad) {
  build({.live = true, .interval = 1s}, {5, 6});
  load({9, 0, 0, 0, 0, 0, 0, 0});
  say_all();
  now_ += 1h;
  EXPECT_FALSE(balance_->due(now_));
  load(kEven);
  say_all();
  EXPECT_TRUE(balance_->due(now_));
}

TEST_F(ExpertBalanceTest, ADeathAbortsThePlanAndTheFormerOneGoesOn) {
  build({.redundant = 2, .live = true, .interval = 10s}, {5, 6, 7});
  say_all();
  now_ += 1s;
  ASSERT_TRUE(plan());
  prepare_all();
  settle_all();
  load(kSkewed);
  say_all();
  now_ += 10s;
  ASSERT_TRUE(plan());
  ranks_[0].word.held = 2;
  say(ranks_[0]);
  kill(7);
  EXPECT_EQ(balance_->counters().aborted, 1u);
  EXPECT_EQ(balance_->epoch(), 1u);
  EXPECT_EQ(owed(ranks_[0]), std::vector<Phase>{Phase::kAborted});
  EXPECT_TRUE(owed(ranks_[1]).empty());
  ranks_[0].word.held = 1;
  say(ranks_[0]);
  now_ += 2s;
  EXPECT_FALSE(balance_->due(now_)) << "it may come back";
  add(70);
  show_ranks();
  now_ += 2s;
  EXPECT_FALSE(balance_->due(now_)) << "the new one has not reported";
  say(ranks_[2]);
  EXPECT_EQ(owed(ranks_[2]), std::vector<Phase>{Phase::kActive});
  ranks_[2].word.active = ranks_[2].word.held = ranks_[2].word.settled = 1;
  say(ranks_[2]);
  const auto question = balance_->due(now_);
  ASSERT_TRUE(question);
  EXPECT_TRUE(question->needed);
  EXPECT_EQ(question->epoch, 3u) << "an aborted epoch is never given again";
}

TEST_F(ExpertBalanceTest, ARankThatStaysAwayIsPlannedWithout) {
  build({.redundant = 2}, {5, 6, 7});
  say_all();
  now_ += 1s;
  ASSERT_TRUE(plan());
  prepare_all();
  settle_all();
  kill(6);
  now_ += 6s;
  ASSERT_TRUE(plan());
  EXPECT_EQ(balance_->owed(NodeId{5})[0].message.ranks.size(), 2u);
}

TEST_F(ExpertBalanceTest, APlanComputedForOthersIsDropped) {
  build({.redundant = 2}, {5, 6});
  say_all();
  now_ += 1s;
  const auto question = balance_->due(now_);
  ASSERT_TRUE(question);
  EXPECT_FALSE(balance_->due(now_)) << "one is being computed";
  kill(6);
  EXPECT_FALSE(balance_->planned(*question, ExpertBalance::compute(*question), now_));
  EXPECT_TRUE(owed(ranks_[0]).empty());
}

TEST_F(ExpertBalanceTest, AMinuteWithoutProgressAborts) {
  build({.redundant = 2}, {5, 6});
  say_all();
  now_ += 1s;
  ASSERT_TRUE(plan());
  ranks_[0].word.held = 1;
  for (uint32_t loaded = 1; loaded < 5; ++loaded) {
    now_ += 40s;
    ranks_[0].word.loaded = loaded;
    ranks_[0].word.wanted = 10;
    say(ranks_[0]);
    EXPECT_EQ(balance_->counters().aborted, 0u);
  }
  EXPECT_NEAR(balance_->progress(), 4.0 / 11, 1e-9);
  now_ += 61s;
  show_ranks();
  EXPECT_EQ(balance_->counters().aborted, 1u);
}

TEST_F(ExpertBalanceTest, ReportsThatMakeNoSenseAreRefused) {
  build({.redundant = 2}, {5, 6});
  actor::Incoming<proto::ExpertReport> in;
  in.from = {NodeId{5}, proto::kDecode};
  in.msg.active = 3;
  EXPECT_FALSE(balance_->report(in, now_)) << "a plan that was never made";
  in.msg.active = 0;
  in.blobs = {base::Blob::of(std::span<const uint32_t>(kSkewed))};
  in.msg.digest = base::hash128(in.blobs[0].view());
  EXPECT_FALSE(balance_->report(in, now_)) << "loads of another shape";
  EXPECT_EQ(balance_->counters().corrupt, 2u);
}

TEST_F(ExpertBalanceTest, MeasuresByWhatTheRanksComputed) {
  build({.redundant = 2}, {5, 6});
  load(kEven);
  for (FakeRank& rank : ranks_) {
    rank.window[kExperts] = rank.node.value == 5 ? 300 : 100;  // layer 0
    rank.window[2 * kExperts + 1] = 200;                       // layer 1
  }
  say_all();
  EXPECT_NEAR(balance_->measured(), 400.0 / 500, 1e-9);
  EXPECT_NEAR(balance_->imbalance()[0], 0.5, 1e-9);
  EXPECT_NEAR(balance_->imbalance()[1], 0, 1e-9);
}

}  // namespace
}  // namespace coordinator
