#include "decode_node/kv_shards.h"

#include <gtest/gtest.h>

namespace decode {
namespace {

using namespace std::chrono_literals;
using proto::Outcome;

class KvShardsTest : public ::testing::Test {
 protected:
  KvShardsTest() {
    shape.layers = 2;
    shape.kv_row_bytes = 16;
    shape.span = 64;
    shape.max_context = 1000;
    proto::ViewNode owner;
    owner.node = base::NodeId{9};
    view.nodes.emplace(owner.node, owner);
  }
  static proto::HoldKv ask(uint64_t request, uint32_t attempt, uint32_t begin = 0,
                           uint32_t end = 128) {
    proto::HoldKv m;
    m.request = RequestId{request};
    m.attempt = attempt;
    m.owner = base::NodeId{9};
    m.begin = begin;
    m.end = end;
    m.deadline_ms = 600'000;
    return m;
  }
  KvShards::Share& held(uint64_t request, uint32_t attempt) {
    EXPECT_EQ(shards.hold(ask(request, attempt), now), Outcome::kOk);
    return *shards.find({RequestId{request}, attempt});
  }
  void complete(KvShards::Share& share) {
    proto::KvCommit commit;
    commit.layer_end = 2;
    commit.tokens = share.range.end;
    for (uint32_t layer = 0; layer < 2; ++layer) {
      share.intake.received(layer, share.range.begin, share.range.count(), {layer, 1});
      commit.digests.push_back(proto::kv_chain({}, {layer, 1}));
    }
    ASSERT_EQ(share.intake.commit(commit), KvIntake::Commit::kAccepted);
  }

  model::Shape shape;
  model::KvPool pool{8, {0, 2}, 16};
  Counters counters;
  node::View view;
  Time now{};
  KvShards shards{shape, pool, counters};
};

TEST_F(KvShardsTest, TakesBlocksOfTheShareOnceHoweverOftenItIsAsked) {
  EXPECT_EQ(shards.hold(ask(1, 1, 128, 256), now), Outcome::kOk);
  EXPECT_EQ(shards.hold(ask(1, 1, 128, 256), now), Outcome::kOk);
  EXPECT_EQ(pool.used(), 2u);
  EXPECT_EQ(shards.find({RequestId{1}, 1})->kv(pool).begin(), 128u);
}

TEST_F(KvShardsTest, RefusesWhatIsNoShareAndWhatDoesNotFit) {
  EXPECT_EQ(shards.hold(ask(1, 1, 64, 192), now), Outcome::kCorrupt);
  EXPECT_EQ(shards.hold(ask(1, 1, 0, 100), now), Outcome::kCorrupt);
  EXPECT_EQ(shards.hold(ask(1, 1, 0, 1024), now), Outcome::kCorrupt);
  EXPECT_EQ(shards.hold(ask(1, 1, 0, 512), now), Outcome::kOk);
  EXPECT_EQ(shards.hold(ask(2, 1), now), Outcome::kNoRoom);
  shards.clear();
  EXPECT_EQ(pool.used(), 0u);
}

TEST_F(KvShardsTest, ALaterAttemptOrACancelEndsTheEarlierOnes) {
  held(1, 1);
  held(1, 3);
  EXPECT_EQ(shards.find({RequestId{1}, 1}), nullptr);
  shards.cancel(RequestId{1}, 2);
  EXPECT_NE(shards.find({RequestId{1}, 3}), nullptr);
  shards.cancel(RequestId{1}, 3);
  EXPECT_EQ(shards.size(), 0u);
  EXPECT_EQ(pool.used(), 0u);
}

TEST_F(KvShardsTest, BlocksThatAreBeingReadStayUntilTheyAreNot) {
  KvShards::Share& share = held(1, 1);
  share.users = 1;
  shards.end(share);
  EXPECT_EQ(shards.find({RequestId{1}, 1}), nullptr);
  EXPECT_EQ(pool.used(), 2u);
  EXPECT_EQ(shards.size(), 1u);
}

TEST_F(KvShardsTest, NoShareIsHeldForEver) {
  held(1, 1);
  EXPECT_TRUE(shards.expired(now + 59s, view).silent.empty());
  EXPECT_EQ(shards.expired(now + 60s, view).silent.size(), 1u);
  complete(*shards.find({RequestId{1}, 1}));
  EXPECT_TRUE(shards.expired(now + 9s, view).in_doubt.empty());
  EXPECT_EQ(shards.expired(now + 10s, view).in_doubt.size(), 1u);
  EXPECT_EQ(shards.expired(now + 600s, view).overdue.size(), 1u);
  EXPECT_EQ(shards.expired(now + 1s, node::View{}).orphaned.size(), 1u);
}

TEST_F(KvShardsTest, AnOwnerThatIsNotYetInTheViewIsNoOrphansOwner) {
  held(1, 1);
  EXPECT_TRUE(shards.expired(now + 1s, node::View{}).orphaned.empty());
}

}  // namespace
}  // namespace decode
