#include "model/aligned_buffer.h"

#include <sys/mman.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <tuple>
#include <utility>

#include "base/check.h"

namespace model {

// A run of huge pages that buffers are cut from, one behind the other. It lives until the last of
// them is gone and it is no longer the one to cut from.
struct Slab {
  std::byte* memory = nullptr;
  size_t used = 0;                   // guarded by `cutting`
  std::atomic<uint32_t> holders{1};  // buffers, and whoever cuts

  void release() {
    if (holders.fetch_sub(1, std::memory_order_acq_rel) > 1) return;
    std::free(memory);
    delete this;
  }
};

namespace {

constexpr size_t kLine = 64, kHuge = size_t{2} << 20;
constexpr size_t kSlab = size_t{32} << 20;
// Smaller ones are not worth huge pages, larger ones have their own.
constexpr size_t kLeastShared = size_t{64} << 10, kMostShared = size_t{8} << 20;
// One behind the other an overrun would stay unseen.
#if defined(__SANITIZE_ADDRESS__)
constexpr bool kShare = false;
#else
constexpr bool kShare = true;
#endif

std::mutex cutting;
Slab* current = nullptr;  // guarded by `cutting`

constexpr size_t round_up(size_t n, size_t unit) { return (n + unit - 1) / unit * unit; }

std::byte* allocate(size_t bytes, size_t alignment) {
  void* memory = std::aligned_alloc(alignment, round_up(bytes, alignment));
  CHECK(memory != nullptr, "no memory for {} bytes", bytes);
  if (alignment == kHuge) ::madvise(memory, round_up(bytes, alignment), MADV_HUGEPAGE);
  return static_cast<std::byte*>(memory);
}

// The slab that the bytes were cut from, held once more.
std::pair<Slab*, std::byte*> cut(size_t bytes) {
  const std::lock_guard lock(cutting);
  if (current == nullptr || kSlab - current->used < bytes) {
    if (current != nullptr) current->release();
    current = new Slab;
    current->memory = allocate(kSlab, kHuge);
  }
  current->holders.fetch_add(1, std::memory_order_relaxed);
  std::byte* const at = current->memory + current->used;
  current->used += round_up(bytes, kLine);
  return {current, at};
}

}  // namespace

AlignedBuffer::AlignedBuffer(size_t bytes) : bytes_(bytes) {
  if (bytes == 0) return;
  if (kShare && bytes >= kLeastShared && bytes <= kMostShared) {
    std::tie(slab_, memory_) = cut(bytes);
  } else {
    memory_ = allocate(bytes, bytes >= kHuge ? kHuge : kLine);
  }
  std::memset(memory_, 0, bytes);
}

AlignedBuffer::AlignedBuffer(AlignedBuffer&& other) noexcept
    : memory_(std::exchange(other.memory_, nullptr)),
      bytes_(std::exchange(other.bytes_, 0)),
      slab_(std::exchange(other.slab_, nullptr)) {}

AlignedBuffer& AlignedBuffer::operator=(AlignedBuffer&& other) noexcept {
  std::swap(memory_, other.memory_);
  std::swap(bytes_, other.bytes_);
  std::swap(slab_, other.slab_);
  return *this;
}

AlignedBuffer::~AlignedBuffer() {
  if (slab_ != nullptr) {
    slab_->release();
  } else {
    std::free(memory_);
  }
}

}  // namespace model
