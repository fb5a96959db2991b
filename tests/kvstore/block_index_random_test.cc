// Seeded random operations on the index and on a model of it that does everything by searching.
#include <gtest/gtest.h>

#include <map>
#include <set>

#include "base/rng.h"
#include "kvstore/block_index.h"
#include "tests/kvstore/blocks.h"

namespace kvstore_test {
namespace {

using proto::Outcome;

class NaiveIndex {
 public:
  NaiveIndex(uint64_t budget, uint64_t entry_cost, uint64_t block_cost)
      : budget_(budget), entry_cost_(entry_cost), block_cost_(block_cost) {}

  Outcome put(uint32_t block, uint32_t layer) {
    if (blocks_.contains(block) && blocks_[block].layers.contains(layer)) {
      use(block);
      return Outcome::kOk;
    }
    const uint64_t cost = entry_cost_ + (blocks_.contains(block) ? 0 : block_cost_);
    const bool room = make_room(cost, block);
    if (room) blocks_[block].layers.insert(layer);
    if (blocks_.contains(block)) use(block);
    return room ? Outcome::kOk : Outcome::kNoRoom;
  }
  uint32_t lookup(uint64_t request, uint32_t attempt, const std::vector<uint32_t>& keys,
                  int64_t until) {
    if (released_.contains(request) && attempt <= released_[request]) return 0;
    end({request, attempt});
    std::vector<uint32_t> found;
    for (const uint32_t key : keys) {
      if (!blocks_.contains(key) || blocks_[key].layers.size() < kLayers) break;
      found.push_back(key);
    }
    if (!found.empty()) leases_[{request, attempt}] = {until, found};
    return static_cast<uint32_t>(found.size());
  }
  bool fetch(const std::vector<uint32_t>& keys, uint32_t layer) {
    for (const uint32_t key : keys) {
      if (!blocks_.contains(key) || !blocks_[key].layers.contains(layer)) return false;
      use(key);
    }
    return true;
  }
  void release(uint64_t request, uint32_t attempt) {
    for (uint32_t a = 0; a <= attempt; ++a) end({request, a});
    released_[request] = std::max(released_[request], attempt);
  }
  void expire(int64_t now) {
    std::vector<std::pair<uint64_t, uint32_t>> over;
    for (const auto& [id, lease] : leases_) {
      if (lease.first <= now) over.push_back(id);
    }
    for (const auto& id : over) end(id);
  }
  uint64_t bytes() const {
    uint64_t sum = 0;
    for (const auto& [key, block] : blocks_) sum += block_cost_ + entry_cost_ * block.layers.size();
    return sum;
  }
  size_t blocks() const { return blocks_.size(); }
  size_t leases() const { return leases_.size(); }

 private:
  struct Block {
    std::set<uint32_t> layers;
    uint64_t used = 0;
  };
  bool held(uint32_t block) const {
    for (const auto& [id, lease] : leases_) {
      for (const uint32_t key : lease.second) {
        if (key == block) return true;
      }
    }
    return false;
  }
  void use(uint32_t block) {
    if (!held(block)) blocks_[block].used = ++clock_;
  }
  void end(std::pair<uint64_t, uint32_t> id) {
    if (!leases_.contains(id)) return;
    const std::vector<uint32_t> keys = leases_[id].second;
    leases_.erase(id);
    for (auto key = keys.rbegin(); key != keys.rend(); ++key) use(*key);
  }
  bool make_room(uint64_t cost, uint32_t except) {
    while (bytes() + cost > budget_) {
      uint32_t oldest = 0;
      bool any = false;
      for (const auto& [key, block] : blocks_) {
        if (key == except || held(key)) continue;
        if (!any || block.used < blocks_[oldest].used) oldest = key;
        any = true;
      }
      if (!any) return false;
      blocks_.erase(oldest);
    }
    return true;
  }

  const uint64_t budget_, entry_cost_, block_cost_;
  std::map<uint32_t, Block> blocks_;
  std::map<std::pair<uint64_t, uint32_t>, std::pair<int64_t, std::vector<uint32_t>>> leases_;
  std::map<uint64_t, uint32_t> released_;
  uint64_t clock_ = 0;
};

void run(uint64_t seed) {
  base::Rng rng(seed);
  kvstore::IndexLimits limits;
  const uint64_t whole = block_cost();
  limits.bytes = whole * (2 + rng.below(8)) + rng.below(200);
  kvstore::BlockIndex index{limits};
  const uint64_t entry = kvstore::Arena::rounded(100);
  NaiveIndex naive(limits.bytes, entry, whole - entry * kLayers);
  int64_t now = 0;
  for (int step = 0; step < 3000; ++step) {
    now += static_cast<int64_t>(rng.below(20));
    const auto first = static_cast<uint32_t>(rng.below(14));
    std::vector<uint32_t> keys;
    for (uint32_t i = 0; i < 1 + rng.below(4); ++i) keys.push_back(first + i);
    const uint64_t request = 1 + rng.below(4);
    // Attempts rise, so that some are released, some are late and most are new.
    const auto attempt = static_cast<uint32_t>(static_cast<uint64_t>(step) / 20 + rng.below(4));
    const auto layer = static_cast<uint32_t>(rng.below(kLayers));
    const uint64_t kind = rng.below(10);
    if (kind < 4) {
      EXPECT_EQ(put_entry(index, first, layer), naive.put(first, layer)) << step;
    } else if (kind < 6) {
      for (uint32_t l = 0; l < kLayers; ++l)
        EXPECT_EQ(put_entry(index, first, l), naive.put(first, l)) << step;
    } else if (kind < 7) {
      const auto lease_ms = static_cast<uint32_t>(rng.below(300));
      EXPECT_EQ(index.lookup(lookup_of(request, attempt, keys, lease_ms), at_ms(now)),
                naive.lookup(request, attempt, keys, now + lease_ms))
          << step;
    } else if (kind < 8) {
      const kvstore::Fetched got = index.fetch(fetch_of(keys, layer));
      EXPECT_EQ(got.outcome == Outcome::kOk, naive.fetch(keys, layer)) << step;
      for (size_t i = 0; i < got.blobs.size(); ++i)
        EXPECT_EQ(got.digests[i], put_of(keys[i], layer).digest);
    } else if (kind < 9) {
      index.release({request}, attempt);
      naive.release(request, attempt);
    } else {
      index.expire(at_ms(now));
      naive.expire(now);
    }
    ASSERT_EQ(index.bytes(), naive.bytes()) << step;
    ASSERT_LE(index.bytes(), limits.bytes);
    ASSERT_EQ(index.blocks(), naive.blocks()) << step;
    ASSERT_EQ(index.leases(), naive.leases()) << step;
  }
  index.release_all();
  EXPECT_EQ(index.leases(), 0u);
}

TEST(BlockIndexRandom, TheIndexEqualsTheNaiveModel) {
  for (uint64_t seed = 1; seed <= 30; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    run(seed);
    if (testing::Test::HasFailure()) return;
  }
}

}  // namespace
}  // namespace kvstore_test
