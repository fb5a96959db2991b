#include "prefill_node/ended_attempts.h"

#include <gtest/gtest.h>

namespace {

using prefill::EndedAttempts;
using proto::Outcome;

TEST(EndedAttempts, ADoneAttemptIsOkAndLowerOnesAreStale) {
  EndedAttempts ended;
  EXPECT_EQ(ended.of({{1}, 2}), Outcome::kUnknown);
  ended.done({{1}, 2});
  EXPECT_EQ(ended.of({{1}, 1}), Outcome::kStale);
  EXPECT_EQ(ended.of({{1}, 2}), Outcome::kOk);
  EXPECT_EQ(ended.of({{1}, 3}), Outcome::kUnknown);
  EXPECT_EQ(ended.of({{2}, 2}), Outcome::kUnknown);
}

TEST(EndedAttempts, ACancelComesBeforeOrAfterTheEnd) {
  EndedAttempts ended;
  ended.dropped({{1}, 2});
  EXPECT_EQ(ended.of({{1}, 2}), Outcome::kStale);
  ended.done({{1}, 2});
  EXPECT_EQ(ended.of({{1}, 2}), Outcome::kStale);
  ended.done({{2}, 2});
  ended.dropped({{2}, 2});
  EXPECT_EQ(ended.of({{2}, 2}), Outcome::kStale);
  ended.dropped({{2}, 1});  // a late one
  EXPECT_EQ(ended.of({{2}, 2}), Outcome::kStale);
  ended.done({{2}, 3});
  EXPECT_EQ(ended.of({{2}, 3}), Outcome::kOk);
}

TEST(EndedAttempts, OnlyTheLastRequestsAreRemembered) {
  EndedAttempts ended(3);
  for (uint64_t request = 1; request <= 4; ++request) ended.done({{request}, 1});
  EXPECT_EQ(ended.of({{1}, 1}), Outcome::kUnknown);
  for (uint64_t request = 2; request <= 4; ++request)
    EXPECT_EQ(ended.of({{request}, 1}), Outcome::kOk);
  ended.clear();
  EXPECT_EQ(ended.of({{4}, 1}), Outcome::kUnknown);
}

}  // namespace
