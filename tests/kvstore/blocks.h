// Blocks for tests: key, tokens and blobs follow from a number.
#pragma once
#include <string>

#include "kvstore/block_index.h"

namespace kvstore_test {

inline constexpr uint32_t kLayers = 3, kTokens = 4;

inline base::Hash128 key_of(uint32_t block) { return {block, 77}; }
inline std::vector<uint32_t> tokens_of(uint32_t block) {
  return std::vector<uint32_t>(kTokens, block + 1);
}
inline base::Blob blob_of(uint32_t block, uint32_t layer, size_t size = 100) {
  return base::Blob(base::Bytes(size, static_cast<std::byte>(block * 16 + layer)));
}
inline proto::PutKv put_of(uint32_t block, uint32_t layer, size_t size = 100) {
  proto::PutKv put;
  put.key = key_of(block);
  put.layer = layer;
  put.layers = kLayers;
  put.tokens = tokens_of(block);
  put.digest = base::hash128(blob_of(block, layer, size).view());
  return put;
}
inline proto::Outcome put_entry(kvstore::BlockIndex& index, uint32_t block, uint32_t layer) {
  return index.put(put_of(block, layer), blob_of(block, layer));
}
inline void put_block(kvstore::BlockIndex& index, uint32_t block) {
  for (uint32_t layer = 0; layer < kLayers; ++layer) put_entry(index, block, layer);
}
inline proto::LookupPrefix lookup_of(uint64_t request, uint32_t attempt,
                                     const std::vector<uint32_t>& blocks,
                                     uint32_t lease_ms = 1000) {
  proto::LookupPrefix asked;
  asked.request = {request};
  asked.attempt = attempt;
  asked.lease_ms = lease_ms;
  for (const uint32_t block : blocks) {
    asked.keys.push_back(key_of(block));
    for (const uint32_t token : tokens_of(block)) asked.tokens.push_back(token);
  }
  return asked;
}
inline proto::FetchKv fetch_of(const std::vector<uint32_t>& blocks, uint32_t layer) {
  proto::FetchKv asked;
  asked.layer = layer;
  for (const uint32_t block : blocks) asked.keys.push_back(key_of(block));
  return asked;
}
// A bit of the stored rows turns over, as in failing memory. REQUIRES: the entry is in RAM.
inline void flip_bit(kvstore::BlockIndex& index, uint32_t block, uint32_t layer, size_t bit) {
  const kvstore::Fetched got = index.fetch(fetch_of({block}, layer));
  auto* const bytes = const_cast<std::byte*>(got.blobs.at(0).view().data());
  bytes[bit / 8] ^= static_cast<std::byte>(1u << bit % 8);
}
inline base::Time at_ms(int64_t ms) { return base::Time(std::chrono::milliseconds(ms)); }

// What one complete block costs.
inline uint64_t block_cost() {
  kvstore::BlockIndex index{kvstore::IndexLimits{}};
  put_block(index, 0);
  return index.bytes();
}

}  // namespace kvstore_test
