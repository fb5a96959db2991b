#include "kvstore/arena.h"

#include <gtest/gtest.h>

#include <fstream>
#include <map>
#include <memory>
#include <string>

#include "base/hash.h"
#include "base/rng.h"

namespace kvstore_test {
namespace {

using kvstore::Arena;

base::Bytes pattern(uint64_t seed, size_t size) {
  base::Bytes bytes(size);
  base::Rng rng(seed);
  for (std::byte& b : bytes) b = static_cast<std::byte>(rng.next());
  return bytes;
}

TEST(Arena, KeepsCopiesAndTakesMemoryBackWithTheLastBlob) {
  Arena arena(1 << 20);
  base::Bytes bytes = pattern(1, 1000);
  std::optional<base::Blob> kept = arena.keep(bytes);
  ASSERT_TRUE(kept);
  EXPECT_TRUE(std::ranges::equal(kept->view(), bytes));
  EXPECT_EQ(arena.used(), 1024u);
  base::Blob copy = *kept;
  kept.reset();
  EXPECT_EQ(arena.used(), 1024u);
  copy = {};
  EXPECT_EQ(arena.used(), 0u);
  EXPECT_EQ(arena.free_runs(), 1u);
}

TEST(Arena, IsFullAtItsCapacityAndNotBefore) {
  Arena arena(64 * 10);
  std::vector<base::Blob> kept;
  for (int i = 0; i < 10; ++i) {
    std::optional<base::Blob> blob = arena.keep(pattern(3, 50));
    ASSERT_TRUE(blob) << i;
    kept.push_back(*blob);
  }
  EXPECT_FALSE(arena.keep(pattern(3, 1)));
  kept.erase(kept.begin() + 4);
  EXPECT_FALSE(arena.keep(pattern(3, 65)));
  EXPECT_TRUE(arena.keep(pattern(3, 64)));
}

// What is on its way to a socket keeps its bytes whatever comes and goes.
TEST(Arena, MemoryThatSomebodyStillReadsIsNeverGivenAnew) {
  Arena arena(64 * 8);
  const std::optional<base::Blob> read = arena.keep(pattern(7, 64));
  const base::Bytes before(read->view().begin(), read->view().end());
  for (uint64_t i = 0; i < 1000; ++i) {
    std::vector<base::Blob> others;
    while (std::optional<base::Blob> other = arena.keep(pattern(i, 64))) others.push_back(*other);
    EXPECT_EQ(others.size(), 7u);
  }
  EXPECT_TRUE(std::ranges::equal(read->view(), before));
}

TEST(Arena, ItsBlobsOutliveIt) {
  auto arena = std::make_unique<Arena>(4096);
  const base::Blob kept = *arena->keep(pattern(5, 100));
  arena.reset();
  EXPECT_TRUE(std::ranges::equal(kept.view(), pattern(5, 100)));
}

TEST(Arena, RandomUseNeverMixesBytesAndEndsInOneFreeRun) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    base::Rng rng(seed);
    Arena arena(64 * 400);
    std::map<uint64_t, base::Blob> live;
    uint64_t used = 0;
    for (uint64_t step = 0; step < 2000; ++step) {
      if (live.empty() || rng.chance(0.55)) {
        const base::Bytes bytes = pattern(step, 1 + rng.below(2000));
        std::optional<base::Blob> blob = arena.keep(bytes);
        if (!blob) continue;
        used += Arena::rounded(bytes.size());
        live.emplace(step, std::move(*blob));
      } else {
        auto at = live.begin();
        std::advance(at, static_cast<long>(rng.below(live.size())));
        ASSERT_TRUE(std::ranges::equal(at->second.view(), pattern(at->first, at->second.size())));
        used -= Arena::rounded(at->second.size());
        live.erase(at);
      }
      ASSERT_EQ(arena.used(), used);
    }
    live.clear();
    EXPECT_EQ(arena.used(), 0u);
    EXPECT_EQ(arena.free_runs(), 1u);
  }
}

TEST(Arena, SaysWhetherTheKernelGivesHugePages) {
  EXPECT_TRUE(Arena::gives_huge_pages("always [madvise] never"));
  EXPECT_TRUE(Arena::gives_huge_pages("[always] madvise never"));
  EXPECT_FALSE(Arena::gives_huge_pages("always madvise [never]"));
  EXPECT_FALSE(Arena::gives_huge_pages(""));  // a kernel without them has no such file
  std::ifstream file("/sys/kernel/mm/transparent_hugepage/enabled");
  std::string line;
  std::getline(file, line);
  EXPECT_EQ(Arena(1 << 20).huge_pages(), Arena::gives_huge_pages(line));
}

TEST(Arena, BeginsAtAHugePageSoThatNoneIsCut) {
  Arena arena(8u << 20);
  const std::optional<base::Blob> all = arena.keep(base::Bytes(8u << 20));
  ASSERT_TRUE(all);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(all->view().data()) % (2u << 20), 0u);
}

TEST(Arena, TooMuchIsRefusedWithASentence) {
  EXPECT_TRUE(Arena::try_reserve(1 << 20));
  const base::Status refused = Arena::try_reserve(uint64_t{1} << 60);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, base::Code::kInvalidArgument);
}

}  // namespace
}  // namespace kvstore_test
