// An index with a simulated disk under it, driven without a host: what an actor does in time is
// done here at once.
#pragma once
#include <algorithm>

#include "kvstore/block_index.h"
#include "kvstore/sim_disk.h"
#include "tests/kvstore/blocks.h"

namespace kvstore_test {

// Rows so large that bookkeeping is small beside them.
inline constexpr size_t kRowBytes = 4096;
inline base::Blob rows_of(uint32_t block, uint32_t layer) {
  return blob_of(block, layer, kRowBytes);
}
inline proto::Outcome put_row(kvstore::BlockIndex& index, uint32_t block, uint32_t layer) {
  return index.put(put_of(block, layer, kRowBytes), rows_of(block, layer));
}
inline void put_rows(kvstore::BlockIndex& index, uint32_t block) {
  for (uint32_t layer = 0; layer < kLayers; ++layer) put_row(index, block, layer);
}

class Tiers {
 public:
  Tiers(const kvstore::IndexLimits& limits, kvstore::SimMedium& medium)
      : index(limits), tier(kvstore::make_sim_disk(medium)) {
    auto found = tier->open();
    if (!found) return;
    std::ranges::sort(found->blocks, {}, &kvstore::BlockMeta::generation);
    for (kvstore::BlockMeta& meta : found->blocks) index.restore(std::move(meta));
  }
  // Writes all there is; false as soon as the disk refuses.
  bool flush() {
    while (index.has_unwritten()) {
      const kvstore::DiskBatch batch = index.next_batch(20'000);
      if (batch.empty()) break;
      const bool kept = tier->write(batch).has_value();
      index.wrote(batch, kept);
      if (!kept) return false;
    }
    return true;
  }
  kvstore::Fetched fetch(const std::vector<uint32_t>& blocks, uint32_t layer) {
    kvstore::Fetched got = index.fetch(fetch_of(blocks, layer));
    if (!finish(got)) return {};
    return got;
  }
  bool finish(kvstore::Fetched& got) {
    auto rows = tier->read(got.reads);
    bool all = true;
    for (size_t i = 0; i < rows.size(); ++i) {
      all = all && rows[i].has_value();
      if (rows[i]) {
        index.came(got.reads[i], *rows[i]);
        got.blobs[got.reads[i].at] = base::Blob(std::move(*rows[i]));
      } else {
        index.bad(got.reads[i], rows[i].error().code != base::Code::kIo);
      }
    }
    return all;
  }
  uint32_t lookup(uint64_t request, const std::vector<uint32_t>& blocks) {
    return index.lookup(lookup_of(request, 1, blocks), at_ms(0));
  }

  kvstore::BlockIndex index;
  std::unique_ptr<kvstore::DiskTier> tier;
};

inline kvstore::IndexLimits tier_limits(uint64_t ram_blocks, uint64_t disk_bytes = 64 << 20) {
  static const uint64_t cost = [] {
    kvstore::BlockIndex index{kvstore::IndexLimits{}};
    put_rows(index, 0);
    return index.bytes();
  }();
  kvstore::IndexLimits limits;
  limits.bytes = ram_blocks * cost;
  limits.disk_bytes = disk_bytes;
  return limits;
}

}  // namespace kvstore_test
