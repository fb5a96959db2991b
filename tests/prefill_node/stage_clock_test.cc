#include "prefill_node/stage_clock.h"

#include <gtest/gtest.h>

namespace prefill {
namespace {

using State = StageClock::State;

base::Time at(double seconds) {
  return base::Time{} +
         std::chrono::duration_cast<base::Duration>(std::chrono::duration<double>(seconds));
}

TEST(StageClock, CountsBusyAndBubbleAndLeavesOutIdleTime) {
  StageClock clock;
  clock.set(State::kBusy, at(5));
  clock.set(State::kBubble, at(8));
  clock.set(State::kIdle, at(9));
  const StageClock::Spent spent = clock.spent(at(100));
  EXPECT_EQ(spent.busy, std::chrono::seconds(3));
  EXPECT_EQ(spent.bubble, std::chrono::seconds(1));
}

TEST(StageClock, UtilisationIsTheBusyPartAndOneBeforeAnything) {
  StageClock clock;
  EXPECT_EQ(clock.utilisation(at(50)), 1);
  double now = 50;
  for (int i = 0; i < 100; ++i) {
    clock.set(State::kBusy, at(now));
    clock.set(State::kBubble, at(now += 0.3));
    now += 0.1;
  }
  EXPECT_NEAR(clock.utilisation(at(now)), 0.75, 0.02);
  clock.set(State::kIdle, at(now));
  EXPECT_NEAR(clock.utilisation(at(now + 1000)), 0.75, 0.02);
}

TEST(StageClock, UtilisationForgetsWhatWasLongAgo) {
  StageClock clock;
  clock.set(State::kBubble, at(0));
  clock.set(State::kBusy, at(1000));
  EXPECT_NEAR(clock.utilisation(at(1000)), 0, 1e-9);
  EXPECT_GT(clock.utilisation(at(1060)), 0.99);
}

}  // namespace
}  // namespace prefill
