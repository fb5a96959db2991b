#include "prefill_node/link_watch.h"

#include <gtest/gtest.h>

namespace prefill {
namespace {

using namespace std::chrono_literals;
using base::Duration;
using base::NodeId;
using base::Time;

constexpr NodeId kSlow{7}, kFast{8};

class LinkWatchTest : public ::testing::Test {
 protected:
  void acknowledged(NodeId rank, Duration after, int times = 8) {
    for (int i = 0; i < times; ++i) watch.acknowledged(rank, after);
  }
  // Of transfers that are late, at these times.
  bool lates(NodeId rank, std::initializer_list<Duration> times) {
    bool found = false;
    for (const Duration at : times) found = watch.late(rank, Time(at)) || found;
    return found;
  }
  LinkWatch watch;
};

TEST_F(LinkWatchTest, ALinkIsSlowWhenTransfersAreLateInThreeSecondsOfTen) {
  acknowledged(kFast, 1ms);
  acknowledged(kSlow, 300ms);
  EXPECT_FALSE(lates(kSlow, {1s, 1100ms, 1900ms, 2500ms, 3400ms}));  // two seconds
  EXPECT_FALSE(watch.rests(kSlow, Time(4s)));
  EXPECT_TRUE(lates(kSlow, {10900ms}));
  EXPECT_TRUE(watch.rests(kSlow, Time(11s)));
  EXPECT_EQ(watch.resting(Time(11s)), std::vector<NodeId>{kSlow});
  EXPECT_FALSE(watch.rests(kFast, Time(11s)));
}

TEST_F(LinkWatchTest, ThreeInMoreThanTenSecondsAreNotEnough) {
  acknowledged(kFast, 1ms);
  acknowledged(kSlow, 300ms);
  EXPECT_FALSE(lates(kSlow, {1s, 6s, 11500ms, 17s, 22s}));
  EXPECT_TRUE(lates(kSlow, {23500ms, 24500ms}));
}

TEST_F(LinkWatchTest, ALossyLinkIsNotASlowOne) {
  acknowledged(kFast, 1ms);
  acknowledged(kSlow, 1s, 7);
  acknowledged(kSlow, 1ms, 1);
  EXPECT_FALSE(lates(kSlow, {1s, 2s, 3s, 4s}));
  acknowledged(kSlow, 1s, 7);  // that one is still among the last eight
  EXPECT_FALSE(lates(kSlow, {5s, 6s, 7s}));
  acknowledged(kSlow, 1s, 1);
  EXPECT_TRUE(lates(kSlow, {8s}));
}

TEST_F(LinkWatchTest, LinksThatAreAllAlikeAreAllUsed) {
  acknowledged(kFast, 100ms);
  acknowledged(kSlow, 390ms);
  EXPECT_FALSE(lates(kSlow, {1s, 2s, 3s, 4s}));
  EXPECT_FALSE(lates(kFast, {1s, 2s, 3s, 4s}));
  acknowledged(kSlow, 400ms);
  EXPECT_TRUE(lates(kSlow, {5s}));
}

TEST_F(LinkWatchTest, TheOnlyLinkKnownRestsSoThatOthersAreTried) {
  EXPECT_FALSE(lates(kSlow, {1s, 2s, 3s}));  // nothing was ever acknowledged: it is silent
  acknowledged(kSlow, 300ms);
  EXPECT_TRUE(lates(kSlow, {4s}));
  EXPECT_FALSE(watch.has_better(kSlow, Time(5s)));
  acknowledged(kFast, 1ms, 1);
  EXPECT_TRUE(watch.has_better(kSlow, Time(5s)));
}

TEST_F(LinkWatchTest, ARestEndsAndIsTwiceAsLongWhenTheLinkIsSlowAgainSoon) {
  acknowledged(kFast, 1ms);
  acknowledged(kSlow, 300ms);
  Duration at = 0s;
  for (const Duration rest : {30s, 60s, 120s, 240s, 300s, 300s}) {
    EXPECT_TRUE(lates(kSlow, {at + 1s, at + 2s, at + 3s})) << rest.count();
    at += 3s + rest;
    EXPECT_TRUE(watch.rests(kSlow, Time(at - 1ms)));
    EXPECT_FALSE(lates(kSlow, {at - 3s, at - 2s, at - 1s}));  // while it rests nothing counts
    EXPECT_FALSE(watch.rests(kSlow, Time(at)));
  }
  at += 301s;  // well for as long as it had rested
  EXPECT_TRUE(lates(kSlow, {at + 1s, at + 2s, at + 3s}));
  EXPECT_FALSE(watch.rests(kSlow, Time(at + 33s)));
}

TEST_F(LinkWatchTest, ARankThatRestsIsNoBetterOne) {
  acknowledged(kFast, 100ms);
  acknowledged(kSlow, 1s);
  EXPECT_TRUE(watch.has_better(kSlow, Time(1s)));
  acknowledged(NodeId{9}, 1ms);
  EXPECT_TRUE(lates(kFast, {1s, 2s, 3s}));
  watch.forget(NodeId{9});
  EXPECT_FALSE(watch.has_better(kSlow, Time(4s)));
  EXPECT_TRUE(watch.has_better(kSlow, Time(40s)));
}

TEST_F(LinkWatchTest, ASlowLinkIsNotFilledWithRepetitions) {
  EXPECT_EQ(watch.retry(kSlow), 250ms);
  acknowledged(kSlow, 1ms);
  EXPECT_EQ(watch.retry(kSlow), 250ms);
  acknowledged(kSlow, 300ms);
  EXPECT_EQ(watch.retry(kSlow), 1200ms);
  acknowledged(kSlow, 5s);
  EXPECT_EQ(watch.retry(kSlow), 2s);
  watch.forget(kSlow);
  EXPECT_EQ(watch.retry(kSlow), 250ms);
}

}  // namespace
}  // namespace prefill
