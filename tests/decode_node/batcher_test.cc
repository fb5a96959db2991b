#include "decode_node/batcher.h"

#include <gtest/gtest.h>

namespace decode {
namespace {

Sequence made(uint64_t request, int32_t priority = 0, bool whole = false) {
  Sequence sequence;
  sequence.key = {RequestId{request}, 1};
  sequence.priority = priority;
  sequence.whole = whole;
  return sequence;
}

TEST(Batcher, ChoosesAllWhileTheyFitAndGoesRoundWhenTheyDoNot) {
  Sequence a = made(1), b = made(2), c = made(3);
  std::map<uint64_t, Sequence*> running{{1, &a}, {2, &b}};
  Batcher batcher(2);
  const auto next = [&] {
    std::vector<Sequence*> chosen;
    batcher.choose(running, chosen);
    return chosen;
  };
  using Chosen = std::vector<Sequence*>;
  EXPECT_EQ(next(), (Chosen{&a, &b}));
  EXPECT_EQ(next(), (Chosen{&a, &b}));
  running.emplace(3, &c);
  EXPECT_EQ(next(), (Chosen{&c, &a}));
  EXPECT_EQ(next(), (Chosen{&b, &c}));
  running.erase(2);
  EXPECT_EQ(next(), (Chosen{&a, &c}));
}

TEST(Batcher, TheLowerPriorityNumberGoesBeforeThenTheEarlierRequest) {
  EXPECT_TRUE(goes_before(made(9, -1), made(1, 0)));
  EXPECT_TRUE(goes_before(made(1, 3), made(2, 3)));
  EXPECT_FALSE(goes_before(made(2, 3), made(1, 3)));
}

TEST(Batcher, TheLastInOrderGivesWay) {
  Sequence a = made(1), b = made(2, 7), c = made(3);
  std::vector<Sequence*> all{&a, &b, &c};
  EXPECT_EQ(who_gives_way(all), &b);
  b.priority = 0;
  EXPECT_EQ(who_gives_way(all), &c);
}

TEST(Batcher, NobodyGivesWayAlone) {
  Sequence a = made(1), whole = made(2, 9, true);
  EXPECT_EQ(who_gives_way({}), nullptr);
  EXPECT_EQ(who_gives_way(std::vector<Sequence*>{&a}), nullptr);
  EXPECT_EQ(who_gives_way(std::vector<Sequence*>{&a, &whole}), nullptr);
}

std::vector<uint32_t> trimmed(std::vector<uint32_t> drafts, uint32_t rows) {
  trim_drafts(drafts, rows);
  return drafts;
}

TEST(Batcher, DraftsAreTakenFromWhoHasMostUntilTheRowsAreEnough) {
  using Drafts = std::vector<uint32_t>;
  EXPECT_EQ(trimmed({3, 1, 2}, 9), (Drafts{3, 1, 2}));
  EXPECT_EQ(trimmed({3, 1, 2}, 8), (Drafts{2, 1, 2}));
  EXPECT_EQ(trimmed({3, 1, 2}, 7), (Drafts{2, 1, 1}));
  EXPECT_EQ(trimmed({3, 3, 3}, 8), (Drafts{2, 2, 1}));
  EXPECT_EQ(trimmed({3, 1, 2}, 4), (Drafts{1, 0, 0}));
  EXPECT_EQ(trimmed({3, 1, 2}, 3), (Drafts{0, 0, 0}));
  EXPECT_EQ(trimmed({3, 1, 2}, 1), (Drafts{0, 0, 0}));  // every member has a row
  EXPECT_EQ(trimmed({}, 4), Drafts{});
}

}  // namespace
}  // namespace decode
