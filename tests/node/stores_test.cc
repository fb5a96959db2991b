// What stages, ranks and the coordinator share in dealing with kvstores.
#include <fmt/core.h>
#include <gtest/gtest.h>

#include "node/rate_meter.h"
#include "node/store_outbox.h"
#include "node/store_sites.h"

namespace node {
namespace {

using std::chrono::seconds;

View view_of(std::vector<proto::ViewNode> nodes) {
  View view;
  for (const proto::ViewNode& node : nodes) view.nodes[node.node] = node;
  return view;
}

proto::ViewNode store(uint64_t id, uint32_t position, proto::NodeState state) {
  proto::ViewNode node;
  node.node = NodeId{id};
  node.role = proto::Role::kKvstore;
  node.position = position;
  node.state = state;
  node.name = fmt::format("kvstore-{}", position);
  return node;
}

TEST(StoreSites, OnlyReadyStoresHoldBlocks) {
  using proto::NodeState;
  proto::ViewNode rank = store(9, 3, NodeState::kReady);
  rank.role = proto::Role::kDecode;
  const StoreSites sites =
      stores_in(view_of({store(5, 0, NodeState::kReady), store(6, 1, NodeState::kLoading), rank}));
  EXPECT_EQ(sites.size(), 1u);
  EXPECT_EQ(sites.of({1, 2}, 3), std::vector<NodeId>{NodeId{5}});
  EXPECT_TRUE(StoreSites().of({1, 2}).empty());
}

TEST(StoreSites, ARestartedStoreKeepsItsPlaces) {
  using proto::NodeState;
  const StoreSites before =
      stores_in(view_of({store(5, 0, NodeState::kReady), store(6, 1, NodeState::kReady)}));
  const StoreSites after =  // the first has another life, and stands behind in the order of ids
      stores_in(view_of({store(70, 0, NodeState::kReady), store(6, 1, NodeState::kReady)}));
  size_t of_first = 0;
  for (uint64_t i = 0; i < 1000; ++i) {
    const base::Hash128 group{i * 0x9E3779B97F4A7C15ull, i};
    const bool first = before.of(group).front() == NodeId{5};
    EXPECT_EQ(after.of(group).front(), first ? NodeId{70} : NodeId{6});
    of_first += first;
  }
  EXPECT_NEAR(static_cast<double>(of_first), 500, 80);
}

TEST(BlockChain, APutSaysWhereItsBlockStands) {
  const std::vector<base::TokenId> tokens = {1, 2, 3, 4, 5, 6, 7};
  const std::vector<base::Hash128> keys = {{10, 0}, {11, 0}, {12, 0}};
  const BlockChain chain{{1, 1}, {2, 2}, keys, tokens, 2};
  const proto::PutKv first = describe(chain, 0, 3, 5), last = describe(chain, 2, 4, 5);
  EXPECT_EQ(first.key, keys[0]);
  EXPECT_EQ(first.parent, chain.root);
  EXPECT_EQ(first.depth, 0u);
  EXPECT_EQ(first.tokens, (std::vector<uint32_t>{1, 2}));
  EXPECT_EQ(first.layer, 3u);
  EXPECT_EQ(first.layers, 5u);
  EXPECT_EQ(last.key, keys[2]);
  EXPECT_EQ(last.parent, keys[1]);
  EXPECT_EQ(last.depth, 2u);
  EXPECT_EQ(last.chain, 3u);
  EXPECT_EQ(last.space, chain.space);
  EXPECT_EQ(last.tokens, (std::vector<uint32_t>{5, 6}));
}

TEST(RateMeter, TellsTheRateOfLateAndForgetsIt) {
  RateMeter meter;
  base::Time now{seconds(10)};
  EXPECT_EQ(meter.value(now), 0);
  meter.add(100, 2, now);
  EXPECT_EQ(meter.value(now), 50);
  for (int i = 0; i < 100; ++i) meter.add(300, 2, now);
  EXPECT_NEAR(meter.value(now), 150, 1e-6);
  EXPECT_NEAR(meter.value(now + RateMeter::kFresh / 2), 150, 1e-6);
  EXPECT_EQ(meter.value(now + RateMeter::kFresh), 0);
}

}  // namespace
}  // namespace node
