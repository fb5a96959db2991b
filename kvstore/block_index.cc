#include "kvstore/block_index.h"

#include <algorithm>
#include <span>

#include "base/check.h"

namespace kvstore {

namespace {

// What the containers take beside the bytes themselves, roughly.
constexpr uint64_t kBlockOverhead = 384, kEntryOverhead = 64;

bool told(const Hash128& hash) { return hash != Hash128{}; }

}  // namespace

uint64_t BlockIndex::record_cost(const Block& block) {
  return kBlockOverhead + block.tokens.size() * sizeof(uint32_t) +
         block.entries.size() * kEntryOverhead;
}

// ------------------------------------------------------------------------------------- messages

bool BlockIndex::well_formed(const proto::PutKv& put, const base::Blob& blob) const {
  const bool shape = put.layers > 0 && put.layers <= limits_.layers && put.layer < put.layers &&
                     !put.tokens.empty() && put.tokens.size() <= limits_.tokens_of_block &&
                     !blob.empty() && blob.size() <= UINT32_MAX;
  return shape && (!told(put.bound) || put.bound == proto::bound_of(put)) &&
         base::hash128(blob.view()) == put.digest;
}

bool BlockIndex::same_block(const Block& block, const proto::PutKv& put) {
  const bool parents = !told(block.parent) || !told(put.parent) || block.parent == put.parent;
  return block.entries.size() == put.layers && block.tokens == put.tokens && parents;
}

proto::Outcome BlockIndex::put(const proto::PutKv& put, const base::Blob& blob) {
  if (!well_formed(put, blob)) {
    ++counters_.corrupt;
    return proto::Outcome::kCorrupt;
  }
  meet_space(put.space);
  auto at = blocks_.find(put.key);
  const bool known = at != blocks_.end();
  if (known && !same_block(at->second, put)) {
    ++counters_.no_room;
    return proto::Outcome::kNoRoom;
  }
  if (known && at->second.entries[put.layer]) {
    touch(at);
    return proto::Outcome::kOk;
  }

  // A block without its first entry is not in the index, so the one that grows is never evicted for
  // its own sake: it is in no order until it has grown.
  Block fresh;
  if (known) {
    unplace(at);
  } else {
    fresh.tokens = put.tokens;
    fresh.entries.resize(put.layers);
    fresh.parent = put.parent;
    fresh.space = put.space;
    fresh.depth = put.depth;
    fresh.chain = put.chain;
    fresh.uses = 1;
  }
  std::optional<base::Blob> rows = keep(blob.view(), known ? 0 : record_cost(fresh));
  ++(rows ? counters_.stored : counters_.no_room);
  if (rows && !known) {
    fresh.generation = next_generation_++;
    bytes_ += record_cost(fresh);
    records_ += record_cost(fresh);
    at = blocks_.emplace(put.key, std::move(fresh)).first;
  }
  if (rows) {
    Block& block = at->second;
    std::optional<Entry>& entry = block.entries[put.layer];
    entry = Entry{{}, {put.digest, static_cast<uint32_t>(blob.size())}};
    add_rows(block, *entry, std::move(*rows));
    const bool complete = ++block.present == block.entries.size();
    if (complete && limits_.disk_bytes > 0) remember_unwritten(at);
  }
  if (rows || known) {
    if (at->second.holders == 0) use(at->second);
    place(at);
  }
  return rows ? proto::Outcome::kOk : proto::Outcome::kNoRoom;
}

std::vector<BlockIndex::Blocks::iterator> BlockIndex::leading(const proto::LookupPrefix& asked,
                                                              size_t first, size_t count,
                                                              const Hash128& parent) {
  const size_t size = asked.tokens.size() / asked.keys.size();
  std::vector<Blocks::iterator> prefix;
  for (size_t i = first; i < first + count; ++i) {
    const auto at = blocks_.find(asked.keys[i]);
    if (at == blocks_.end()) break;
    const Block& block = at->second;
    const Hash128& before = i > first ? asked.keys[i - 1] : parent;
    const bool parents = !told(block.parent) || !told(before) || block.parent == before;
    const std::span<const uint32_t> tokens(asked.tokens.data() + i * size, size);
    const bool complete = block.present == block.entries.size();
    if (!complete || !parents || !std::ranges::equal(block.tokens, tokens)) break;
    prefix.push_back(at);
  }
  return prefix;
}

proto::PrefixFound BlockIndex::find(const proto::LookupPrefix& asked, base::Time now) {
  std::vector<proto::BlockRun> runs = asked.runs;
  const size_t count = asked.keys.size();
  if (runs.empty()) runs.push_back({static_cast<uint32_t>(count), asked.parent});
  proto::PrefixFound found;
  found.runs.resize(runs.size());
  const auto released = released_.find(asked.request);
  if (released != released_.end() && asked.attempt <= released->second) return found;
  const auto id = std::make_pair(asked.request, asked.attempt);
  if (const auto former = leases_.find(id); former != leases_.end()) end_lease(former);

  uint64_t in_runs = 0;
  for (const proto::BlockRun& run : runs) in_runs += run.blocks;
  const bool divides = count > 0 && asked.tokens.size() % count == 0 && in_runs == count;
  std::vector<std::pair<Blocks::iterator, uint32_t>> held;  // and the end of its chain
  if (divides && leases_.size() < limits_.leases) {
    size_t first = 0;
    for (size_t i = 0; i < runs.size(); first += runs[i++].blocks) {
      const auto prefix = leading(asked, first, runs[i].blocks, runs[i].parent);
      found.runs[i] = static_cast<uint32_t>(prefix.size());
      for (const auto& at : prefix)
        held.emplace_back(at, prefix.front()->second.depth + runs[i].blocks);
    }
  }
  counters_.hits += held.size();
  counters_.misses += count - held.size();
  found.blocks = found.runs.front();
  if (held.empty()) return found;

  Lease& lease = leases_[id];
  const base::Duration asked_for = std::chrono::milliseconds(asked.lease_ms);
  lease.until = now + std::min(asked_for, limits_.lease_most);
  for (const auto& [at, chain] : held) {
    Block& block = at->second;
    ++block.uses;
    block.chain = std::max(block.chain, chain);
    hold(lease, at);
  }
  return found;
}

Fetched BlockIndex::fetch(const proto::FetchKv& asked) {
  Fetched out;
  for (const Hash128& key : asked.keys) {
    const auto at = blocks_.find(key);
    if (at == blocks_.end() || asked.layer >= at->second.entries.size()) return {};
    Block& block = at->second;
    if (!block.entries[asked.layer]) return {};
    const Entry entry = *block.entries[asked.layer];
    const bool in_ram = !entry.rows.empty();
    if (in_ram && base::hash128(entry.rows.view()) != entry.meta.digest) {
      const bool elsewhere = block.on_disk;
      drop_bad_rows(at, asked.layer);
      if (!elsewhere) return {};
    }
    if (block.entries[asked.layer]->rows.empty())
      out.reads.push_back({key, asked.layer, entry.meta, block.generation, out.blobs.size()});
    touch(at);
    out.digests.push_back(entry.meta.digest);
    out.blobs.push_back(block.entries[asked.layer]->rows);
  }
  if (!asked.keys.empty()) out.outcome = proto::Outcome::kOk;
  return out;
}

// --------------------------------------------------------------------------------------- leases

void BlockIndex::release(RequestId request, uint32_t attempt) {
  auto at = leases_.lower_bound({request, 0});
  while (at != leases_.end() && at->first.first == request && at->first.second <= attempt)
    at = end_lease(at);
  const auto [kept, fresh] = released_.try_emplace(request, attempt);
  kept->second = std::max(kept->second, attempt);
  if (fresh) released_order_.push_back(request);
  if (released_order_.size() > limits_.released) {
    released_.erase(released_order_.front());
    released_order_.pop_front();
  }
}

void BlockIndex::expire(base::Time now) {
  for (auto at = leases_.begin(); at != leases_.end();)
    at = at->second.until <= now ? end_lease(at) : std::next(at);
}

void BlockIndex::release_all() {
  for (auto at = leases_.begin(); at != leases_.end();) at = end_lease(at);
}

void BlockIndex::hold(Lease& lease, Blocks::iterator at) {
  unplace(at);
  ++at->second.holders;
  lease.held.emplace_back(at->first, at->second.generation);
}

// The last block of the prefix is used first, so that it leaves first: without the blocks before
// it, it is worth nothing.
BlockIndex::Leases::iterator BlockIndex::end_lease(Leases::iterator lease) {
  const auto& held = lease->second.held;
  for (auto entry = held.rbegin(); entry != held.rend(); ++entry) {
    const auto at = meant(entry->first, entry->second);
    if (at == blocks_.end()) continue;
    Block& block = at->second;
    CHECK(block.holders > 0, "a lease ends on a block that nobody holds");
    if (--block.holders > 0) continue;
    use(block);
    place(at);
  }
  return leases_.erase(lease);
}

// --------------------------------------------------------------------------------------- orders

BlockIndex::Blocks::iterator BlockIndex::meant(const Hash128& key, uint64_t generation) {
  const auto at = blocks_.find(key);
  return at != blocks_.end() && at->second.generation == generation ? at : blocks_.end();
}

void BlockIndex::use(Block& block) {
  ++uses_;
  const Use use{uses_, block.uses, block.depth, block.chain, floor_};
  block.rank = {limits_.policy->priority(use), block.depth, uses_};
}

void BlockIndex::touch(Blocks::iterator at) {
  if (at->second.holders > 0) return;  // used again when the lease ends
  unplace(at);
  use(at->second);
  place(at);
}

void BlockIndex::unplace(Blocks::iterator at) {
  Block& block = at->second;
  if (block.in_ram_order) ram_order_.erase(at->first, block.rank);
  if (block.in_disk_order) disk_order_.erase(at->first, block.rank);
  block.in_ram_order = block.in_disk_order = false;
}

void BlockIndex::place(Blocks::iterator at) {
  Block& block = at->second;
  CHECK(!block.in_ram_order && !block.in_disk_order, "a block is placed twice");
  block.in_ram_order = block.holders == 0 && !block.writing && block.in_ram > 0;
  block.in_disk_order = block.holders == 0 && block.on_disk;
  if (block.in_ram_order) ram_order_.insert(at->first, block.rank);
  if (block.in_disk_order) disk_order_.insert(at->first, block.rank);
}

// ------------------------------------------------------------------------------------------ RAM

void BlockIndex::evict_first() {
  const auto first = blocks_.find(ram_order_.first());
  CHECK(first != blocks_.end(), "the eviction order names a block that is not here");
  floor_ = std::max(floor_, first->second.rank.priority);
  unplace(first);
  if (leave_ram(first)) {
    ++counters_.demotions;
    place(first);
    trim_records();
  } else {
    ++counters_.evictions;
  }
}

bool BlockIndex::make_room(uint64_t bytes) {
  if (bytes > limits_.bytes) return false;
  while (bytes_ + bytes > limits_.bytes && !ram_order_.empty()) evict_first();
  return bytes_ + bytes <= limits_.bytes;
}

std::optional<base::Blob> BlockIndex::keep(base::ByteView rows, uint64_t more) {
  if (!make_room(Arena::rounded(rows.size()) + more)) return std::nullopt;
  // Within the budget the arena may still be short: of rows that are being sent, or in fragments.
  std::optional<base::Blob> kept = arena_.keep(rows);
  while (!kept && !ram_order_.empty()) {
    evict_first();
    kept = arena_.keep(rows);
  }
  return kept;
}

void BlockIndex::add_rows(Block& block, Entry& entry, base::Blob rows) {
  bytes_ += Arena::rounded(rows.size());
  if (block.in_ram++ == 0) records_ -= record_cost(block);
  entry.rows = std::move(rows);
}

void BlockIndex::drop_rows(Block& block, Entry& entry) {
  bytes_ -= Arena::rounded(entry.rows.size());
  if (--block.in_ram == 0) records_ += record_cost(block);
  entry.rows = {};
}

bool BlockIndex::leave_ram(Blocks::iterator at) {
  Block& block = at->second;
  for (auto& entry : block.entries) {
    if (entry && !entry->rows.empty()) drop_rows(block, *entry);
  }
  if (block.on_disk) return true;
  erase(at);
  return false;
}

void BlockIndex::drop_bad_rows(Blocks::iterator at, uint32_t layer) {
  ++counters_.corrupt;
  Block& block = at->second;
  unplace(at);
  drop_rows(block, *block.entries[layer]);
  if (!block.on_disk) {
    block.entries[layer].reset();
    if (--block.present == 0) return erase(at);
  }
  place(at);
}

// REQUIRES: in no order, nothing in RAM, not on disk.
void BlockIndex::erase(Blocks::iterator at) {
  bytes_ -= record_cost(at->second);
  records_ -= record_cost(at->second);
  blocks_.erase(at);
}

}  // namespace kvstore
