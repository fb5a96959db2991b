// The published hit rates of an LRU cache on the Mooncake traces, reproduced by the store's own
// index and eviction code, to all digits that are published.
#include "kvstore/replay.h"

#include <fmt/core.h>
#include <gtest/gtest.h>

namespace kvstore_test {
namespace {

using kvstore::find_policy;
using kvstore::replay;
using kvstore::Trace;

Trace trace_of(const std::string& name) {
  auto trace = kvstore::read_trace(SERVAL_SOURCE_DIR "/tests/data/traces/" + name + ".txt");
  EXPECT_TRUE(trace) << trace.error().what;
  return trace ? *trace : Trace{};
}

struct Published {
  uint64_t blocks;
  const char *conversation, *synthetic;
};
constexpr Published kLru[] = {{1000, ".0445", ".0825"},   {5859, ".1355", ".3094"},
                              {10'000, ".2112", ".4235"}, {30'000, ".3257", ".6242"},
                              {50'000, ".3546", ".6396"}, {97'656, ".3635", ".6396"},
                              {0, ".3664", ".6396"}};

std::string digits(double rate) { return fmt::format("{:.4f}", rate).substr(1); }

TEST(Replay, ThePlainLruHasThePublishedHitRates) {
  const Trace conversation = trace_of("conversation"), synthetic = trace_of("synthetic");
  ASSERT_EQ(conversation.size(), 12'031u);
  ASSERT_EQ(synthetic.size(), 3'993u);
  for (const Published& row : kLru) {
    const kvstore::ReplayOptions options{row.blocks, find_policy("lru"), false};
    const auto a = replay(conversation, options), b = replay(synthetic, options);
    EXPECT_EQ(a.asked, 288'500u);
    EXPECT_EQ(b.asked, 121'877u);
    EXPECT_EQ(digits(a.hit_rate()), row.conversation) << row.blocks;
    EXPECT_EQ(digits(b.hit_rate()), row.synthetic) << row.blocks;
  }
}

// Leases hold what a request uses, and its tail leaves first: never worse than the plain cache.
TEST(Replay, AsRequestsUseItTheStoreIsNoWorse) {
  for (const char* name : {"conversation", "synthetic"}) {
    const Trace trace = trace_of(name);
    for (const uint64_t blocks : {1000u, 10'000u, 50'000u}) {
      const double plain = replay(trace, {blocks, find_policy("lru"), false}).hit_rate();
      const double leased = replay(trace, {blocks, find_policy("lru"), true}).hit_rate();
      EXPECT_GE(leased, plain) << name << blocks;
      EXPECT_LE(leased, plain + 0.0015) << name << blocks;
    }
  }
}

TEST(Replay, CostAwareSavesMoreWorkThanLruWhereRoomIsShort) {
  for (const char* name : {"conversation", "synthetic"}) {
    const Trace trace = trace_of(name);
    for (const uint64_t blocks : {1000u, 10'000u}) {
      const double lru = replay(trace, {blocks, find_policy("lru"), true}).saved_rate();
      const double aware = replay(trace, {blocks, find_policy("cost_aware"), true}).saved_rate();
      EXPECT_GT(aware, lru) << name << blocks;
    }
  }
}

TEST(Replay, AFileThatIsNoTraceIsRefused) {
  EXPECT_FALSE(kvstore::read_trace("/nowhere"));
  EXPECT_FALSE(kvstore::read_trace(SERVAL_SOURCE_DIR "/tests/kvstore/CMakeLists.txt"));
}

}  // namespace
}  // namespace kvstore_test
