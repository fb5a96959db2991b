// The half of BlockIndex that knows of the disk.
#include <algorithm>

#include "base/check.h"
#include "kvstore/block_index.h"

namespace kvstore {

namespace {

constexpr size_t kRemovalsOfBatch = 512;
// Bookkeeping of blocks that are on disk only may take this part of the RAM budget.
constexpr uint64_t kRecordsPart = 4;
// What an entry takes on disk beside its rows: key, pointer and place in the log.
constexpr uint64_t kDiskOverhead = 96;

}  // namespace

uint64_t BlockIndex::disk_cost(const Block& block) {
  uint64_t bytes = kDiskOverhead + block.tokens.size() * sizeof(uint32_t);
  for (const auto& entry : block.entries) bytes += kDiskOverhead + (entry ? entry->meta.bytes : 0);
  return bytes;
}

void BlockIndex::restore(BlockMeta meta) {
  next_generation_ = std::max(next_generation_, meta.generation + 1);
  const auto layers = static_cast<uint32_t>(meta.entries.size());
  const bool fits = layers > 0 && layers <= limits_.layers && !meta.tokens.empty() &&
                    meta.tokens.size() <= limits_.tokens_of_block;
  const auto known = blocks_.find(meta.key);
  if (!fits || known != blocks_.end()) {
    if (!fits || !adopt(known, meta)) removals_[meta.key] = layers;
    return;
  }
  Block block;
  block.tokens = std::move(meta.tokens);
  for (const EntryMeta& entry : meta.entries) block.entries.emplace_back(Entry{{}, entry});
  block.parent = meta.parent;
  block.space = meta.space;
  block.depth = meta.depth;
  block.chain = meta.chain;
  block.present = layers;
  block.uses = 1;
  block.on_disk = true;
  block.generation = meta.generation;
  bytes_ += record_cost(block);
  records_ += record_cost(block);
  disk_bytes_ += disk_cost(block);
  ++disk_blocks_;
  const auto at = blocks_.emplace(meta.key, std::move(block)).first;
  use(at->second);
  place(at);
  make_disk_room(0);
  trim_records();
}

bool BlockIndex::adopt(Blocks::iterator at, const BlockMeta& meta) {
  Block& block = at->second;
  bool same = block.tokens == meta.tokens && block.parent == meta.parent && !block.on_disk &&
              block.entries.size() == meta.entries.size();
  for (size_t layer = 0; same && layer < meta.entries.size(); ++layer)
    same = !block.entries[layer] || block.entries[layer]->meta == meta.entries[layer];
  if (!same) return false;
  unplace(at);
  for (size_t layer = 0; layer < meta.entries.size(); ++layer) {
    if (!block.entries[layer]) block.entries[layer] = Entry{{}, meta.entries[layer]};
  }
  block.present = static_cast<uint32_t>(meta.entries.size());
  block.on_disk = true;
  disk_bytes_ += disk_cost(block);
  ++disk_blocks_;
  place(at);
  make_disk_room(0);
  return true;
}

void BlockIndex::forget_disk() {
  for (auto at = blocks_.begin(); at != blocks_.end();) {
    const auto here = at++;
    if (!here->second.on_disk) continue;
    unplace(here);
    if (!leave_disk(here)) continue;
    place(here);
    write_again(here);
  }
  removals_.clear();
}

void BlockIndex::write_again(Blocks::iterator at) {
  if (at->second.present == at->second.entries.size()) remember_unwritten(at);
}

void BlockIndex::remember_unwritten(Blocks::iterator at) {
  if (at->second.on_disk || at->second.writing) return;
  // Entries of blocks that are gone are swept when they are the most.
  if (unwritten_.size() > 2 * blocks_.size() + 64) {
    std::erase_if(unwritten_, [this](const auto& named) {
      return meant(named.first, named.second) == blocks_.end();
    });
  }
  unwritten_.emplace_back(at->first, at->second.generation);
}

DiskBatch BlockIndex::next_batch(uint64_t most) {
  DiskBatch batch;
  while (!unwritten_.empty() && batch.bytes < most) {
    const auto [key, generation] = unwritten_.front();
    unwritten_.pop_front();
    const auto at = meant(key, generation);
    if (at == blocks_.end()) continue;
    Block& block = at->second;
    const bool whole = block.in_ram == block.entries.size();
    if (!whole || block.on_disk || block.writing || !make_disk_room(disk_cost(block))) continue;
    unplace(at);
    block.writing = true;
    place(at);
    disk_bytes_ += disk_cost(block);
    BlockWrite write;
    write.cost = disk_cost(block);
    write.meta = {key,         block.parent, block.space,  block.depth,
                  block.chain, generation,   block.tokens, {}};
    for (const auto& entry : block.entries) {
      write.meta.entries.push_back(entry->meta);
      write.rows.push_back(entry->rows);
      batch.bytes += entry->meta.bytes;
    }
    batch.writes.push_back(std::move(write));
    // Removed before it is written, never after.
    if (const auto old = removals_.find(key); old != removals_.end()) {
      batch.removals.push_back({key, old->second});
      removals_.erase(old);
    }
  }
  while (!removals_.empty() && batch.removals.size() < kRemovalsOfBatch) {
    batch.removals.push_back({removals_.begin()->first, removals_.begin()->second});
    removals_.erase(removals_.begin());
  }
  return batch;
}

void BlockIndex::wrote(const DiskBatch& batch, bool kept) {
  for (const BlockWrite& write : batch.writes) {
    const auto layers = static_cast<uint32_t>(write.meta.entries.size());
    const auto at = meant(write.meta.key, write.meta.generation);
    const bool whole = at != blocks_.end() && at->second.present == layers;
    const bool on_disk = kept && whole;  // else damaged in RAM meanwhile
    if (on_disk) ++disk_blocks_;
    if (!on_disk) disk_bytes_ -= write.cost;
    if (kept && !whole) removals_[write.meta.key] = layers;
    if (at == blocks_.end()) continue;
    Block& block = at->second;
    unplace(at);
    block.writing = false;
    block.on_disk = on_disk;
    place(at);
    if (foreign(block)) {
      drop(at);
    } else if (!kept && whole) {
      unwritten_.emplace_front(at->first, block.generation);
    }
  }
  if (kept) return;
  for (const BlockName& removal : batch.removals) removals_.emplace(removal.key, removal.layers);
}

void BlockIndex::came(const DiskRead& read, base::ByteView rows) {
  const auto at = meant(read.key, read.generation);
  if (at == blocks_.end() || !at->second.entries[read.layer]) return;
  Block& block = at->second;
  Entry& entry = *block.entries[read.layer];
  if (!entry.rows.empty() || entry.meta != read.meta) return;
  unplace(at);
  if (std::optional<base::Blob> kept = keep(rows, 0)) {
    add_rows(block, entry, std::move(*kept));
    ++counters_.promotions;
  }
  if (block.holders == 0) use(block);
  place(at);
}

void BlockIndex::bad(const DiskRead& read, bool damaged) {
  if (damaged) ++counters_.corrupt;
  const auto at = meant(read.key, read.generation);
  if (at == blocks_.end() || !at->second.on_disk) return;
  unplace(at);
  if (!leave_disk(at)) return;
  place(at);
  write_again(at);
}

bool BlockIndex::leave_disk(Blocks::iterator at) {
  Block& block = at->second;
  disk_bytes_ -= disk_cost(block);
  --disk_blocks_;
  block.on_disk = false;
  removals_[at->first] = static_cast<uint32_t>(block.entries.size());
  for (auto& entry : block.entries) {
    if (!entry || !entry->rows.empty()) continue;
    entry.reset();
    --block.present;
  }
  if (block.present > 0) return true;
  erase(at);
  return false;
}

void BlockIndex::evict_first_of_disk() {
  const auto first = blocks_.find(disk_order_.first());
  CHECK(first != blocks_.end(), "the eviction order names a block that is not here");
  floor_ = std::max(floor_, first->second.rank.priority);
  unplace(first);
  ++counters_.disk_evictions;
  if (leave_disk(first)) {
    place(first);
  } else {
    ++counters_.evictions;
  }
}

bool BlockIndex::make_disk_room(uint64_t bytes) {
  if (bytes > limits_.disk_bytes) return false;
  while (disk_bytes_ + bytes > limits_.disk_bytes && !disk_order_.empty()) evict_first_of_disk();
  return disk_bytes_ + bytes <= limits_.disk_bytes;
}

void BlockIndex::trim_records() {
  while (records_ > limits_.bytes / kRecordsPart && !disk_order_.empty()) evict_first_of_disk();
}

bool BlockIndex::foreign(const Block& block) const {
  return block.space != Hash128{} && space_ != Hash128{} && block.space != space_;
}

// Keys of another model, layout or dtype are asked for by nobody any more.
void BlockIndex::meet_space(const Hash128& space) {
  if (space == Hash128{} || space == space_) return;
  space_ = space;
  for (auto at = blocks_.begin(); at != blocks_.end();) {
    const auto here = at++;
    if (foreign(here->second) && !here->second.writing) drop(here);
  }
}

void BlockIndex::drop(Blocks::iterator at) {
  ++counters_.foreign;
  unplace(at);
  if (at->second.on_disk && !leave_disk(at)) return;
  leave_ram(at);
}

std::vector<DiskRead> BlockIndex::scrub(size_t blocks, uint64_t most) {
  std::vector<DiskRead> reads;
  uint64_t bytes = 0;
  for (size_t left = std::min(blocks, blocks_.size()); left > 0 && bytes < most; --left) {
    auto at = blocks_.upper_bound(scrubbed_to_);
    if (at == blocks_.end()) at = blocks_.begin();
    if (at == blocks_.end()) break;
    scrubbed_to_ = at->first;
    Block& block = at->second;
    const auto layers = static_cast<uint32_t>(block.entries.size());
    const uint64_t generation = block.generation;
    for (uint32_t layer = 0; layer < layers; ++layer) {
      if (!block.entries[layer]) continue;
      const Entry entry = *block.entries[layer];
      const bool in_ram = !entry.rows.empty();
      bytes += (in_ram ? entry.meta.bytes : 0) + (block.on_disk ? entry.meta.bytes : 0);
      ++counters_.scrubbed;
      if (block.on_disk) reads.push_back({at->first, layer, entry.meta, generation, 0});
      if (!in_ram || base::hash128(entry.rows.view()) == entry.meta.digest) continue;
      const bool last = !block.on_disk && block.present == 1;
      drop_bad_rows(at, layer);
      if (last) break;
    }
  }
  return reads;
}

}  // namespace kvstore
