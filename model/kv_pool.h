// KvPool: the KV memory of one node. Blocks of 64 tokens; a block has one entry per layer it is
// kept for; an entry is 64 rows; a row is all that one token leaves in one layer:   [attention 0:
// latent | rope key][attention 1: latent | rope key][index key] in the wire type (kv_layout.h).
// Rows are what travels between nodes and into the store. Ownership: allocate() gives blocks to one
// sequence, release() takes them back; the pool CHECKs double frees.
#pragma once
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <span>
#include <vector>

#include "base/bytes.h"
#include "base/result.h"

namespace model {

inline constexpr uint32_t kBlockTokens = 64;

struct LayerRange {
  uint32_t begin = 0, end = 0;
  uint32_t count() const { return end - begin; }
  bool operator==(const LayerRange&) const = default;
};

using BlockId = uint32_t;

class KvPool {
 public:
  // `blocks` blocks for `layers`, rows of row_bytes. Memory is reserved at once, touched on use.
  KvPool(uint32_t blocks, LayerRange layers, uint32_t row_bytes);
  KvPool(const KvPool&) = delete;
  KvPool& operator=(const KvPool&) = delete;
  ~KvPool();

  static uint32_t blocks_for(uint32_t tokens) { return (tokens + kBlockTokens - 1) / kBlockTokens; }
  // kExhausted when fewer are free; then nothing is allocated.
  base::Result<std::vector<BlockId>> allocate(uint32_t blocks);
  void release(std::span<const BlockId> blocks);

  // The entry's first row.  REQUIRES: layer in range
  std::byte* entry(BlockId block, uint32_t layer) {
    return memory_ + index(block, layer) * entry_bytes();
  }
  // What an engine derives from the 64 rows of an entry, kept beside it and never part of what
  // travels. `ready` is the engine's to set; it falls whenever a row of the entry is written or the
  // block changes hands. Threads may use different blocks at the same time.
  struct Derived {
    std::byte* data = nullptr;
    uint8_t& ready;
  };
  // Makes room for `bytes` an entry, the same in every call; costs memory when used. Any thread.
  void reserve_derived(size_t bytes);
  // REQUIRES: layer in range, room reserved
  Derived derived(BlockId block, uint32_t layer) {
    const size_t at = index(block, layer);
    return {derived_ + at * derived_bytes_, ready_[at]};
  }
  // Rows of the entry have changed.
  void changed(BlockId block, uint32_t layer) { ready_[index(block, layer)] = 0; }

  uint32_t row_bytes() const { return row_bytes_; }
  size_t entry_bytes() const { return static_cast<size_t>(row_bytes_) * kBlockTokens; }
  LayerRange layers() const { return layers_; }
  uint32_t used() const { return total_ - static_cast<uint32_t>(free_.size()); }
  uint32_t total() const { return total_; }

 private:
  size_t index(BlockId block, uint32_t layer) const {
    return static_cast<size_t>(block) * layers_.count() + (layer - layers_.begin);
  }

  const uint32_t total_, row_bytes_;
  const LayerRange layers_;
  std::byte* memory_ = nullptr;
  size_t memory_bytes_ = 0;
  std::vector<BlockId> free_;
  std::vector<bool> taken_;
  std::vector<uint8_t> ready_;  // [block, layer]
  std::once_flag derived_once_;
  std::byte* derived_ = nullptr;
  size_t derived_bytes_ = 0;  // of an entry
};

// Positions [begin, end) of a sequence.
struct KvRange {
  uint32_t begin = 0, end = 0;
  uint32_t count() const { return end - begin; }
  bool operator==(const KvRange&) const = default;
};

// One sequence's KV: its blocks in position order. Of a sequence that several ranks hold
// (kv_split.h) a run of them.
struct KvView {
  KvPool* pool = nullptr;
  std::span<const BlockId> blocks;
  uint32_t first_block = 0;  // of the sequence, that is here; positions before it are elsewhere
  uint32_t begin() const { return first_block * kBlockTokens; }  // the first position here
  BlockId block(uint32_t index) const { return blocks[index - first_block]; }
  // Where a row is about to be written.
  std::byte* write_row(uint32_t layer, uint32_t position) const {
    pool->changed(block(position / kBlockTokens), layer);
    return row(layer, position);
  }
  std::byte* row(uint32_t layer, uint32_t position) const {
    return pool->entry(block(position / kBlockTokens), layer) +
           static_cast<size_t>(position % kBlockTokens) * pool->row_bytes();
  }
};

// Rows [begin, begin + count) of a layer, packed. out / in: count × row_bytes.
void copy_rows_out(const KvView& kv, uint32_t layer, uint32_t begin, uint32_t count,
                   std::byte* out);
void copy_rows_in(const KvView& kv, uint32_t layer, uint32_t begin, uint32_t count,
                  const std::byte* in);

}  // namespace model
