#include "base/rendezvous.h"

#include <fmt/core.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "base/rng.h"

namespace base {
namespace {

constexpr size_t kKeys = 20'000;

std::vector<Hash128> keys() {
  std::vector<Hash128> made(kKeys);
  Rng rng(5);
  for (Hash128& key : made) key = {rng.next(), rng.next()};
  return made;
}

std::vector<Site> sites(size_t count) {
  std::vector<Site> made;
  for (size_t i = 0; i < count; ++i) made.push_back({site_id(fmt::format("kvstore-{}", i))});
  return made;
}

TEST(Rendezvous, KeysAreDealtEvenly) {
  const std::vector<Site> five = sites(5);
  std::vector<double> got(5);
  for (const Hash128& key : keys()) ++got[sites_of(key, five)[0]];
  // A fair share is 4000 with a standard deviation of 57.
  for (const double count : got) EXPECT_NEAR(count, kKeys / 5.0, 5 * 57);
}

TEST(Rendezvous, ASiteGetsKeysByItsWeight) {
  std::vector<Site> three = sites(3);
  three[1].weight = 3;
  three[2].weight = 0;
  std::vector<double> got(3);
  for (const Hash128& key : keys()) ++got[sites_of(key, three)[0]];
  EXPECT_NEAR(got[1] / kKeys, 0.75, 0.02);
  EXPECT_EQ(got[2], 0);
}

TEST(Rendezvous, WhoLeavesOrJoinsMovesOnlyWhatIsItsOwn) {
  const std::vector<Site> before = sites(6);
  std::vector<Site> after = before;
  after.erase(after.begin() + 2);
  size_t moved = 0;
  for (const Hash128& key : keys()) {
    const uint64_t from = before[sites_of(key, before)[0]].id;
    const uint64_t to = after[sites_of(key, after)[0]].id;
    if (from != to) ++moved;
    EXPECT_TRUE(from == to || from == before[2].id);
  }
  EXPECT_NEAR(static_cast<double>(moved) / kKeys, 1.0 / 6, 0.015);
}

TEST(Rendezvous, ChangingAWeightMovesKeysToOrFromThatSiteOnly) {
  const std::vector<Site> before = sites(4);
  std::vector<Site> after = before;
  after[1].weight = 2;
  for (const Hash128& key : keys()) {
    const size_t from = sites_of(key, before)[0], to = sites_of(key, after)[0];
    EXPECT_TRUE(from == to || to == 1);
  }
}

TEST(Rendezvous, CopiesAreOnDifferentSitesAndMoreOfThemMoveNothing) {
  const std::vector<Site> five = sites(5);
  for (const Hash128& key : keys()) {
    const std::vector<size_t> one = sites_of(key, five, 1), three = sites_of(key, five, 3);
    ASSERT_EQ(three.size(), 3u);
    EXPECT_EQ(one[0], three[0]);
    EXPECT_TRUE(three[0] != three[1] && three[1] != three[2] && three[0] != three[2]);
  }
  // When the first dies the second is the first: where the copy is, is where it is looked for.
  const Hash128 key{1, 2};
  const std::vector<size_t> two = sites_of(key, five, 2);
  std::vector<Site> left = five;
  left.erase(left.begin() + static_cast<std::ptrdiff_t>(two[0]));
  EXPECT_EQ(left[sites_of(key, left)[0]].id, five[two[1]].id);
}

TEST(Rendezvous, TheOrderInWhichSitesAreListedDoesNotMatter) {
  const std::vector<Site> five = sites(5);
  const std::vector<Site> turned(five.rbegin(), five.rend());
  for (const Hash128& key : keys())
    EXPECT_EQ(five[sites_of(key, five)[0]].id, turned[sites_of(key, turned)[0]].id);
}

TEST(Rendezvous, PlacementIsTheSameOnEveryMachine) {
  const std::vector<Site> five = sites(5);
  EXPECT_EQ(sites_of(Hash128{1, 2}, five, 5), (std::vector<size_t>{0, 2, 4, 3, 1}));
}

TEST(Rendezvous, NoSitesHoldNothing) {
  EXPECT_TRUE(sites_of(Hash128{1, 2}, {}, 3).empty());
  EXPECT_EQ(sites_of(Hash128{1, 2}, sites(2), 9).size(), 2u);
}

TEST(Rendezvous, AGroupOfBlocksStandsTogether) {
  std::vector<Hash128> chain(40);
  for (size_t i = 0; i < chain.size(); ++i) chain[i] = {i, 0};
  EXPECT_EQ(group_key(chain, 0), chain[0]);
  EXPECT_EQ(group_key(chain, 15), chain[0]);
  EXPECT_EQ(group_key(chain, 39), chain[32]);
}

TEST(Rendezvous, HotBlocksGetMoreCopies) {
  EXPECT_EQ(copies_of(0, 5), 1u);
  EXPECT_EQ(copies_of(15, 5), 1u);
  EXPECT_EQ(copies_of(16, 5), 2u);
  EXPECT_EQ(copies_of(64, 5), 3u);
  EXPECT_EQ(copies_of(UINT32_MAX, 5), 5u);
  EXPECT_EQ(copies_of(UINT32_MAX, 0), 0u);
}

}  // namespace
}  // namespace base
