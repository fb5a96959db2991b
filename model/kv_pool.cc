#include "model/kv_pool.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>

#include "base/check.h"

namespace model {

namespace {

// Pages come zeroed and only when touched, so a large pool costs nothing until it is used. Large
// ones come in huge pages: a sparse attention reads rows from all over the pool.
std::byte* reserve(size_t bytes) {
  constexpr size_t kLarge = size_t{64} << 20;
  void* memory = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  CHECK(memory != MAP_FAILED, "no address space for {} bytes of KV", bytes);
  if (bytes >= kLarge) ::madvise(memory, bytes, MADV_HUGEPAGE);
  return static_cast<std::byte*>(memory);
}

}  // namespace

KvPool::KvPool(uint32_t blocks, LayerRange layers, uint32_t row_bytes)
    : total_(blocks),
      row_bytes_(row_bytes),
      layers_(layers),
      taken_(blocks, false),
      ready_(static_cast<size_t>(blocks) * layers.count(), 0) {
  CHECK(layers.begin < layers.end && row_bytes > 0,
        "a pool keeps at least one layer of some bytes");
  memory_bytes_ = static_cast<size_t>(blocks) * layers.count() * entry_bytes();
  if (memory_bytes_ > 0) memory_ = reserve(memory_bytes_);
  free_.reserve(blocks);
  for (uint32_t i = blocks; i > 0; --i) free_.push_back(i - 1);  // the lowest id leaves first
}

KvPool::~KvPool() {
  if (memory_ != nullptr) ::munmap(memory_, memory_bytes_);
  if (derived_ != nullptr) ::munmap(derived_, ready_.size() * derived_bytes_);
}

void KvPool::reserve_derived(size_t bytes) {
  std::call_once(derived_once_, [&] {
    derived_bytes_ = bytes;
    derived_ = reserve(ready_.size() * bytes);
  });
  CHECK(bytes == derived_bytes_, "{} derived bytes asked of entries with {}", bytes,
        derived_bytes_);
}

base::Result<std::vector<BlockId>> KvPool::allocate(uint32_t blocks) {
  if (blocks > free_.size()) {
    return base::fail(base::Code::kExhausted, "{} KV blocks asked for, {} of {} free", blocks,
                      free_.size(), total_);
  }
  std::vector<BlockId> out(free_.rbegin(), free_.rbegin() + blocks);
  free_.resize(free_.size() - blocks);
  for (BlockId block : out) taken_[block] = true;
  return out;
}

void KvPool::release(std::span<const BlockId> blocks) {
  for (BlockId block : blocks) {
    CHECK(block < total_ && taken_[block], "KV block {} is released but not taken", block);
    taken_[block] = false;
    for (uint32_t layer = layers_.begin; layer < layers_.end; ++layer) changed(block, layer);
    free_.push_back(block);
  }
}

namespace {

// Calls f(row pointer, first row's index in the packed form, rows) for each run of rows inside one
// block.
template <class F>
void for_each_run(const KvView& kv, uint32_t layer, uint32_t begin, uint32_t count, F f) {
  uint32_t done = 0;
  while (done < count) {
    const uint32_t position = begin + done;
    CHECK(position >= kv.begin() && position / kBlockTokens - kv.first_block < kv.blocks.size(),
          "position {} is not in the {} blocks from position {} on", position, kv.blocks.size(),
          kv.begin());
    const uint32_t run = std::min(count - done, kBlockTokens - position % kBlockTokens);
    f(kv.row(layer, position), done, run);
    done += run;
  }
}

}  // namespace

void copy_rows_out(const KvView& kv, uint32_t layer, uint32_t begin, uint32_t count,
                   std::byte* out) {
  const size_t bytes = kv.pool->row_bytes();
  for_each_run(kv, layer, begin, count, [&](std::byte* row, uint32_t at, uint32_t rows) {
    std::memcpy(out + at * bytes, row, rows * bytes);
  });
}

void copy_rows_in(const KvView& kv, uint32_t layer, uint32_t begin, uint32_t count,
                  const std::byte* in) {
  const size_t bytes = kv.pool->row_bytes();
  for_each_run(kv, layer, begin, count, [&](std::byte* row, uint32_t at, uint32_t rows) {
    std::memcpy(row, in + at * bytes, rows * bytes);
    kv.pool->changed(kv.block((begin + at) / kBlockTokens), layer);
  });
}

}  // namespace model
