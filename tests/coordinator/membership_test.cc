#include "coordinator/membership.h"

#include <gtest/gtest.h>

namespace coordinator {
namespace {

using proto::Hello;
using proto::NodeState;
using proto::Role;
using std::chrono::milliseconds;
using Verdict = proto::HelloReply::Verdict;

Time at(int64_t ms) { return Time{milliseconds(ms)}; }

class MembershipTest : public ::testing::Test {
 protected:
  static MembershipOptions options() {
    MembershipOptions o;
    o.stages = 2;
    o.ranks = 2;
    o.stores = 1;
    o.stage_layers = {{0, 3}, {3, 5}};
    o.model = {1, 1};
    o.layout = {2, 2};
    o.arithmetic = {3, 3};
    o.coordinator_life = 77;
    return o;
  }
  static Hello hello(Role role, const std::string& name) {
    Hello h;
    h.role = role;
    h.name = name;
    h.endpoint = "sim://" + name;
    if (role != Role::kKvstore) {
      h.model = {1, 1};
      h.layout = {2, 2};
      h.arithmetic = {3, 3};
    }
    return h;
  }
  proto::HelloReply join(uint64_t node, Role role, const std::string& name, int64_t ms = 0) {
    return members_.hello(NodeId{node}, hello(role, name), at(ms)).reply;
  }
  Membership::BeatAnswer beat(uint64_t node, int64_t ms, NodeState state = NodeState::kReady,
                              uint64_t epoch = 0) {
    proto::Heartbeat b;
    b.state = state;
    b.view_epoch = epoch;
    return members_.heartbeat(NodeId{node}, b, at(ms));
  }
  // Ticks every 50 ms up to `ms`, so that the coordinator itself never stands still.
  std::vector<std::string> deaths_until(int64_t ms) {
    std::vector<std::string> names;
    for (; ticked_ <= ms; ticked_ += 50) {
      for (const Member& m : members_.tick(at(ticked_)).died) names.push_back(m.name);
    }
    return names;
  }

  Membership members_{options()};
  int64_t ticked_ = 0;
};

TEST(MembershipRanks, TheRanksOfAStageHaveItsLayersAndOneIsEnoughToRun) {
  MembershipOptions options;
  options.stages = 2;
  options.sequence_ranks = 3;
  options.stage_layers = {{0, 3}, {3, 5}};
  Membership members(options);
  for (uint64_t i = 0; i < 6; ++i) {
    Hello hello;
    hello.role = Role::kPrefill;
    hello.name = "prefill-" + std::to_string(i);
    hello.endpoint = "sim://" + hello.name;
    const proto::HelloReply reply = members.hello(NodeId{10 + i}, hello, at(0)).reply;
    EXPECT_EQ(reply.position, i);
    EXPECT_EQ(reply.positions, 6u);
    EXPECT_EQ(reply.layer_begin, i < 3 ? 0u : 3u);
    EXPECT_EQ(reply.layer_end, i < 3 ? 3u : 5u);
  }
  const auto ready = [&](uint64_t node) {
    proto::Heartbeat beat;
    beat.state = NodeState::kReady;
    members.heartbeat(NodeId{node}, beat, at(1));
  };
  ready(12);
  EXPECT_EQ(members.missing().front(), "no prefill stage 1");
  ready(15);
  ready(14);
  EXPECT_EQ(members.missing(), (std::vector<std::string>{"no decode rank"}));
  ASSERT_EQ(members.ready_in_stage(1).size(), 2u);
  EXPECT_EQ(members.ready_in_stage(1)[0]->node, NodeId{14});
}

TEST_F(MembershipTest, GivesPositionsInOrderOfArrival) {
  const auto first = join(10, Role::kPrefill, "prefill-0");
  EXPECT_EQ(first.verdict, Verdict::kWelcome);
  EXPECT_EQ(first.position, 0u);
  EXPECT_EQ(first.positions, 2u);
  EXPECT_EQ(first.layer_end, 3u);
  EXPECT_EQ(first.coordinator_life, 77u);
  const auto second = join(11, Role::kPrefill, "prefill-1");
  EXPECT_EQ(second.position, 1u);
  EXPECT_EQ(second.layer_begin, 3u);
  EXPECT_EQ(second.layer_end, 5u);
  EXPECT_EQ(join(20, Role::kDecode, "decode-0").position, 0u);
}

TEST_F(MembershipTest, AnswersTheSameLifeTheSame) {
  const auto first = join(10, Role::kPrefill, "prefill-0");
  join(11, Role::kPrefill, "prefill-1");
  const uint64_t epoch = members_.epoch();
  const auto again = join(10, Role::kPrefill, "prefill-0");
  EXPECT_EQ(again.verdict, Verdict::kWelcome);
  EXPECT_EQ(again.position, first.position);
  EXPECT_EQ(members_.epoch(), epoch);
}

TEST_F(MembershipTest, RefusesDifferentDigestsNamingBoth) {
  Hello h = hello(Role::kDecode, "decode-0");
  h.model = {9, 9};
  const auto reply = members_.hello(NodeId{20}, h, at(0)).reply;
  EXPECT_EQ(reply.verdict, Verdict::kRefused);
  EXPECT_NE(reply.reason.find(base::Hash128({9, 9}).hex()), std::string::npos) << reply.reason;
  EXPECT_NE(reply.reason.find(base::Hash128({1, 1}).hex()), std::string::npos) << reply.reason;
  EXPECT_NE(reply.reason.find("model"), std::string::npos);
  h = hello(Role::kDecode, "decode-0");
  h.layout = {9, 9};
  EXPECT_NE(members_.hello(NodeId{20}, h, at(0)).reply.reason.find("layout"), std::string::npos);
  h = hello(Role::kPrefill, "prefill-0");
  h.arithmetic = {9, 9};
  EXPECT_NE(members_.hello(NodeId{20}, h, at(0)).reply.reason.find("arithmetic"),
            std::string::npos);
  EXPECT_TRUE(members_.members().empty());
  EXPECT_EQ(members_.epoch(), 0u);
}

TEST_F(MembershipTest, RefusesAForeignProtocolNamingBothRanges) {
  Hello h = hello(Role::kDecode, "decode-0");
  h.protocol_min = 7;
  h.protocol_max = 9;
  const auto reply = members_.hello(NodeId{20}, h, at(0)).reply;
  EXPECT_EQ(reply.verdict, Verdict::kRefused);
  EXPECT_EQ(reply.reason, "the node speaks protocol 7 to 9, the coordinator 1 to 1");
}

TEST_F(MembershipTest, RefusesNonsense) {
  EXPECT_EQ(join(1, Role::kDecode, "decode-0").verdict, Verdict::kRefused);
  EXPECT_EQ(join(0, Role::kDecode, "decode-0").verdict, Verdict::kRefused);
  EXPECT_EQ(join(20, Role::kDecode, "").verdict, Verdict::kRefused);
  EXPECT_EQ(join(20, Role::kCoordinator, "me").verdict, Verdict::kRefused);
  EXPECT_EQ(join(20, static_cast<Role>(99), "me").verdict, Verdict::kRefused);
}

TEST_F(MembershipTest, AStoreNeedsNoModel) {
  EXPECT_EQ(join(30, Role::kKvstore, "kvstore-0").verdict, Verdict::kWelcome);
}

TEST_F(MembershipTest, KeepsASpareUntilAPositionIsFree) {
  join(20, Role::kDecode, "decode-0");
  join(21, Role::kDecode, "decode-1");
  EXPECT_EQ(join(22, Role::kDecode, "decode-2").verdict, Verdict::kNoPosition);
  EXPECT_TRUE(beat(22, 10).reply.known);
  beat(21, 1000);
  EXPECT_EQ(deaths_until(1250), std::vector<std::string>{"decode-0"});
  const auto reply = join(22, Role::kDecode, "decode-2", 1260);
  EXPECT_EQ(reply.verdict, Verdict::kWelcome);
  EXPECT_EQ(reply.position, 0u);
}

TEST_F(MembershipTest, TakesDecodeRanksBeyondTheConfiguredOnesUpToItsBound) {
  MembershipOptions options = members_.options();
  options.ranks_most = 4;
  Membership members(options);
  const auto ask = [&](uint64_t id, const char* name) {
    return members.hello(NodeId{id}, hello(Role::kDecode, name), at(0)).reply;
  };
  EXPECT_EQ(ask(20, "decode-0").positions, 2u);
  EXPECT_EQ(ask(23, "decode-3").position, 3u) << "before the configured ones are all here";
  EXPECT_EQ(ask(23, "decode-3").positions, 4u);
  EXPECT_EQ(ask(21, "decode-99").position, 1u);
  EXPECT_EQ(ask(22, "another").position, 2u);
  EXPECT_EQ(ask(24, "decode-4").verdict, Verdict::kNoPosition);
}

TEST_F(MembershipTest, ARestartEndsTheFormerLifeAndComesHome) {
  join(20, Role::kDecode, "decode-0");
  join(21, Role::kDecode, "decode-1");
  const auto answer = members_.hello(NodeId{99}, hello(Role::kDecode, "decode-1"), at(10));
  ASSERT_EQ(answer.change.died.size(), 1u);
  EXPECT_EQ(answer.change.died[0].node, NodeId{21});
  EXPECT_TRUE(answer.change.epoch_raised);
  EXPECT_EQ(answer.reply.verdict, Verdict::kWelcome);
  EXPECT_EQ(answer.reply.position, 1u);
  EXPECT_EQ(members_.find(NodeId{21}), nullptr);
}

TEST_F(MembershipTest, BothRestartedNodesComeHomeInAnyOrder) {
  join(20, Role::kDecode, "decode-0");
  join(21, Role::kDecode, "decode-1");
  EXPECT_EQ(deaths_until(2000).size(), 2u);
  EXPECT_EQ(join(41, Role::kDecode, "decode-1", 2000).position, 1u);
  EXPECT_EQ(join(40, Role::kDecode, "decode-0", 2000).position, 0u);
}

TEST_F(MembershipTest, DeclaresASilentNodeDeadAfterSixIntervals) {
  join(20, Role::kDecode, "decode-0");
  beat(20, 100);
  EXPECT_TRUE(deaths_until(1300).empty());
  EXPECT_EQ(deaths_until(1350), std::vector<std::string>{"decode-0"});
  EXPECT_EQ(members_.deaths(), 1u);
}

TEST_F(MembershipTest, HasLessPatienceWhenTheConnectionIsDown) {
  join(20, Role::kDecode, "decode-0");
  beat(20, 100);
  members_.connection_down(NodeId{20});
  EXPECT_TRUE(deaths_until(500).empty());
  EXPECT_EQ(deaths_until(550), std::vector<std::string>{"decode-0"});
}

TEST_F(MembershipTest, AHeartbeatRestoresPatience) {
  join(20, Role::kDecode, "decode-0");
  beat(20, 100);
  members_.connection_down(NodeId{20});
  beat(20, 300);
  EXPECT_TRUE(deaths_until(1500).empty());
}

TEST_F(MembershipTest, TimeInWhichTheCoordinatorStoodStillIsNobodysSilence) {
  join(20, Role::kDecode, "decode-0");
  beat(20, 100);
  EXPECT_TRUE(deaths_until(100).empty());
  EXPECT_TRUE(members_.tick(at(10'000)).died.empty());
  ticked_ = 10'050;
  EXPECT_TRUE(deaths_until(11'200).empty());
  EXPECT_EQ(deaths_until(11'300).size(), 1u);
}

TEST_F(MembershipTest, TellsADeadLifeSoForAMinute) {
  join(20, Role::kDecode, "decode-0");
  EXPECT_EQ(deaths_until(1250).size(), 1u);
  EXPECT_FALSE(beat(20, 1300).reply.known);
  EXPECT_EQ(join(20, Role::kDecode, "decode-0", 1300).verdict, Verdict::kNewLife);
  std::vector<NodeId> unlinked;
  for (; ticked_ <= 62'000; ticked_ += 50) {
    for (NodeId node : members_.tick(at(ticked_)).unlink) unlinked.push_back(node);
  }
  EXPECT_EQ(unlinked, std::vector<NodeId>{NodeId{20}});
}

TEST_F(MembershipTest, AStrangersHeartbeatIsUnknown) { EXPECT_FALSE(beat(20, 0).reply.known); }

TEST_F(MembershipTest, RaisesTheEpochOnEveryChangeAndOnlyThen) {
  join(20, Role::kDecode, "decode-0");
  EXPECT_EQ(members_.epoch(), 1u);
  EXPECT_FALSE(beat(20, 10, NodeState::kLoading, 1).change.epoch_raised);
  EXPECT_TRUE(beat(20, 20, NodeState::kReady, 1).change.epoch_raised);
  EXPECT_EQ(members_.epoch(), 2u);
  EXPECT_TRUE(beat(20, 30, NodeState::kReady, 1).send_view);
  EXPECT_FALSE(beat(20, 40, NodeState::kReady, 2).send_view);
  EXPECT_EQ(members_.view().epoch, 2u);
  ASSERT_EQ(members_.view().nodes.size(), 1u);
  EXPECT_EQ(members_.view().nodes[0].state, NodeState::kReady);
}

TEST_F(MembershipTest, AHeartbeatThatWasOvertakenChangesNothing) {
  join(20, Role::kDecode, "decode-0");
  proto::Heartbeat loading, ready;
  loading.progress = 3;
  ready.progress = 4;
  ready.state = NodeState::kReady;
  members_.heartbeat(NodeId{20}, ready, at(10));
  const auto answer = members_.heartbeat(NodeId{20}, loading, at(20));
  EXPECT_TRUE(answer.reply.known);
  EXPECT_FALSE(answer.change.epoch_raised);
  EXPECT_TRUE(members_.find(NodeId{20})->ready());
}

TEST_F(MembershipTest, SaysWhatIsMissing) {
  EXPECT_EQ(members_.missing(), (std::vector<std::string>{"no prefill stage 0",
                                                          "no prefill stage 1", "no decode rank"}));
  join(10, Role::kPrefill, "prefill-0");
  join(11, Role::kPrefill, "prefill-1");
  join(20, Role::kDecode, "decode-0");
  beat(10, 10);
  beat(20, 10);
  EXPECT_EQ(members_.missing(), std::vector<std::string>{"no prefill stage 1"});
  beat(11, 20);
  EXPECT_TRUE(members_.missing().empty());
}

TEST_F(MembershipTest, ANameThatEndsInAFreePositionGetsIt) {
  EXPECT_EQ(join(10, Role::kPrefill, "prefill-1").position, 1u);
  EXPECT_EQ(join(11, Role::kPrefill, "prefill-0").position, 0u);
  EXPECT_EQ(join(12, Role::kDecode, "decode-7").position, 0u);  // there is no 7
  EXPECT_EQ(join(13, Role::kDecode, "decode-0").position, 1u);  // taken
}

}  // namespace
}  // namespace coordinator
