#include "kvstore/block_index.h"

#include <algorithm>
#include <span>

#include "base/check.h"

namespace kvstore {

namespace {
// What the containers take beside the bytes themselves, roughly.
constexpr uint64_t kBlockOverhead = 256, kEntryOverhead = 64;
}  // namespace

uint64_t BlockIndex::cost_of(const base::Blob& blob) { return blob.size(); }

uint64_t BlockIndex::cost_of(const Block& block) {
  return kBlockOverhead + block.tokens.size() * sizeof(uint32_t) +
         block.entries.size() * kEntryOverhead;
}

bool BlockIndex::matches(const Block& block, const proto::PutKv& put) const {
  return block.entries.size() == put.layers && block.tokens == put.tokens;
}

proto::Outcome BlockIndex::put(const proto::PutKv& put, const base::Blob& blob) {
  const bool well_formed = put.layers > 0 && put.layers <= limits_.layers &&
                           put.layer < put.layers && !put.tokens.empty() &&
                           put.tokens.size() <= limits_.tokens_of_block && !blob.empty();
  if (!well_formed || base::hash128(blob.view()) != put.digest) {
    ++counters_.corrupt;
    return proto::Outcome::kCorrupt;
  }
  auto at = blocks_.find(put.key);
  const bool known = at != blocks_.end();
  if (known && !matches(at->second, put)) {
    ++counters_.no_room;
    return proto::Outcome::kNoRoom;
  }
  if (known && at->second.entries[put.layer]) {
    touch(at);
    return proto::Outcome::kOk;
  }

  // A block without its first entry is not in the index, so the one that grows is never evicted for
  // its own sake: it is out of the order until it has grown.
  Block fresh;
  if (!known) {
    fresh.tokens = put.tokens;
    fresh.entries.resize(put.layers);
    fresh.generation = next_generation_++;
  }
  if (known && at->second.holders == 0) order_.erase(at->second.place);
  const uint64_t cost = cost_of(blob) + (known ? 0 : cost_of(fresh));
  const bool room = make_room(cost);
  if (room && !known) at = blocks_.emplace(put.key, std::move(fresh)).first;
  if (room) {
    at->second.entries[put.layer] = Entry{blob, put.digest};
    ++at->second.present;
    bytes_ += cost;
  }
  if ((room || known) && at->second.holders == 0)
    at->second.place = order_.insert(order_.end(), put.key);
  ++(room ? counters_.stored : counters_.no_room);
  return room ? proto::Outcome::kOk : proto::Outcome::kNoRoom;
}

bool BlockIndex::make_room(uint64_t bytes) {
  if (bytes > limits_.bytes) return false;
  while (bytes_ + bytes > limits_.bytes && !order_.empty()) {
    const auto oldest = blocks_.find(order_.front());
    CHECK(oldest != blocks_.end(), "the eviction order names a block that is not here");
    ++counters_.evictions;
    erase(oldest);
  }
  return bytes_ + bytes <= limits_.bytes;
}

uint32_t BlockIndex::lookup(const proto::LookupPrefix& asked, base::Time now) {
  const auto released = released_.find(asked.request);
  if (released != released_.end() && asked.attempt <= released->second) return 0;
  const auto id = std::make_pair(asked.request, asked.attempt);
  if (const auto former = leases_.find(id); former != leases_.end()) end_lease(former);

  const size_t count = asked.keys.size();
  std::vector<Blocks::iterator> found;
  const bool well_formed = count > 0 && asked.tokens.size() % count == 0;
  if (well_formed && leases_.size() < limits_.leases) {
    const size_t size = asked.tokens.size() / count;
    for (size_t i = 0; i < count; ++i) {
      const auto at = blocks_.find(asked.keys[i]);
      if (at == blocks_.end() || at->second.present < at->second.entries.size()) break;
      const std::span<const uint32_t> tokens(asked.tokens.data() + i * size, size);
      if (!std::ranges::equal(at->second.tokens, tokens)) break;
      found.push_back(at);
    }
  }
  counters_.hits += found.size();
  counters_.misses += count - found.size();
  if (found.empty()) return 0;

  Lease& lease = leases_[id];
  const base::Duration asked_for = std::chrono::milliseconds(asked.lease_ms);
  lease.until = now + std::min(asked_for, limits_.lease_most);
  for (const auto& at : found) hold(lease, at);
  return static_cast<uint32_t>(found.size());
}

Fetched BlockIndex::fetch(const proto::FetchKv& asked) {
  Fetched out;
  bool all = !asked.keys.empty();
  for (const Hash128& key : asked.keys) {
    const auto at = blocks_.find(key);
    if (at == blocks_.end() || asked.layer >= at->second.entries.size() ||
        !at->second.entries[asked.layer]) {
      all = false;
      break;
    }
    const Entry entry = *at->second.entries[asked.layer];
    if (base::hash128(entry.blob.view()) != entry.digest) {
      ++counters_.corrupt;
      drop_entry(at, asked.layer);
      all = false;
      break;
    }
    touch(at);
    out.digests.push_back(entry.digest);
    out.blobs.push_back(entry.blob);
  }
  if (!all) return Fetched{};
  out.outcome = proto::Outcome::kOk;
  return out;
}

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

void BlockIndex::touch(Blocks::iterator at) {
  Block& block = at->second;
  if (block.holders == 0) order_.splice(order_.end(), order_, block.place);
}

void BlockIndex::hold(Lease& lease, Blocks::iterator at) {
  Block& block = at->second;
  if (block.holders++ == 0) order_.erase(block.place);
  lease.held.emplace_back(at->first, block.generation);
}

// The last block of the prefix enters the order first: without the blocks before it, it is worth
// nothing.
BlockIndex::Leases::iterator BlockIndex::end_lease(Leases::iterator lease) {
  const auto& held = lease->second.held;
  for (auto entry = held.rbegin(); entry != held.rend(); ++entry) {
    const auto at = blocks_.find(entry->first);
    if (at == blocks_.end() || at->second.generation != entry->second) continue;
    Block& block = at->second;
    CHECK(block.holders > 0, "a lease ends on a block that nobody holds");
    if (--block.holders == 0) block.place = order_.insert(order_.end(), at->first);
  }
  return leases_.erase(lease);
}

void BlockIndex::drop_entry(Blocks::iterator at, uint32_t layer) {
  Block& block = at->second;
  bytes_ -= cost_of(block.entries[layer]->blob);
  block.entries[layer].reset();
  if (--block.present == 0) erase(at);
}

void BlockIndex::erase(Blocks::iterator at) {
  Block& block = at->second;
  for (const auto& entry : block.entries) {
    if (entry) bytes_ -= cost_of(entry->blob);
  }
  bytes_ -= cost_of(block);
  if (block.holders == 0) order_.erase(block.place);
  blocks_.erase(at);
}

}  // namespace kvstore
