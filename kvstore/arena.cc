#include "kvstore/arena.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>

#include "base/check.h"

namespace kvstore {

namespace {

constexpr uint64_t kPage = 2u << 20;

uint64_t whole_pages(uint64_t bytes) { return (bytes + kPage - 1) / kPage * kPage; }

void* map(uint64_t bytes) {
  return ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                -1, 0);
}

std::string system_setting() {
  std::ifstream file("/sys/kernel/mm/transparent_hugepage/enabled");
  std::string line;
  std::getline(file, line);
  return line;
}

}  // namespace

bool Arena::gives_huge_pages(std::string_view enabled) {
  return enabled.find("[always]") != enabled.npos || enabled.find("[madvise]") != enabled.npos;
}

// The mapping and its free runs. Offsets are from the first huge page boundary inside the mapping.
class Arena::Memory {
 public:
  explicit Memory(uint64_t bytes)
      : mapped_(whole_pages(bytes) + kPage), capacity_(rounded(bytes)), base_(map(mapped_)) {
    CHECK(base_ != MAP_FAILED, "{} bytes of address space cannot be had: {}", mapped_,
          std::strerror(errno));
    const auto address = reinterpret_cast<uintptr_t>(base_);
    first_ = static_cast<std::byte*>(base_) + (whole_pages(address) - address);
    // A hint; without it it works too. Kernels that never give any accept it as well.
    huge_pages_ = ::madvise(first_, whole_pages(bytes), MADV_HUGEPAGE) == 0 &&
                  gives_huge_pages(system_setting());
    if (capacity_ > 0) add(0, capacity_);
  }
  ~Memory() { ::munmap(base_, mapped_); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  std::optional<uint64_t> take(uint64_t size) {
    const auto fit = by_size_.lower_bound({size, 0});
    if (fit == by_size_.end()) return std::nullopt;
    const auto [run, offset] = *fit;
    remove(offset, run);
    if (run > size) add(offset + size, run - size);
    used_ += size;
    return offset;
  }
  void give_back(uint64_t offset, uint64_t size) {
    used_ -= size;
    const auto after = by_offset_.lower_bound(offset);
    if (after != by_offset_.end() && after->first == offset + size) {
      const uint64_t more = after->second;
      remove(offset + size, more);
      size += more;
    }
    const auto next = by_offset_.lower_bound(offset);
    if (next != by_offset_.begin()) {
      const auto [before, run] = *std::prev(next);
      if (before + run == offset) {
        remove(before, run);
        offset = before;
        size += run;
      }
    }
    add(offset, size);
  }
  std::byte* at(uint64_t offset) const { return first_ + offset; }
  uint64_t capacity() const { return capacity_; }
  uint64_t used() const { return used_; }
  size_t free_runs() const { return by_offset_.size(); }
  bool huge_pages() const { return huge_pages_; }

 private:
  void add(uint64_t offset, uint64_t size) {
    by_offset_.emplace(offset, size);
    by_size_.emplace(size, offset);
  }
  void remove(uint64_t offset, uint64_t size) {
    by_offset_.erase(offset);
    by_size_.erase({size, offset});
  }

  const uint64_t mapped_, capacity_;
  void* const base_;
  std::byte* first_;
  std::map<uint64_t, uint64_t> by_offset_;           // free runs: offset, size
  std::set<std::pair<uint64_t, uint64_t>> by_size_;  // the same: size, offset
  uint64_t used_ = 0;
  bool huge_pages_ = false;
};

// Owned by the Blobs of one entry.
struct Arena::Extent {
  Extent(base::Blob w, Memory* m, uint64_t o, uint64_t s)
      : whole(std::move(w)), memory(m), offset(o), size(s) {}
  ~Extent() { memory->give_back(offset, size); }
  Extent(const Extent&) = delete;
  Extent& operator=(const Extent&) = delete;

  const base::Blob whole;
  Memory* const memory;
  const uint64_t offset, size;
};

Arena::Arena(uint64_t bytes) {
  auto memory = std::make_shared<Memory>(bytes);
  memory_ = memory.get();
  whole_ = base::Blob(std::move(memory), {});
}

base::Status Arena::try_reserve(uint64_t bytes) {
  const uint64_t size = whole_pages(bytes) + kPage;
  void* const at = map(size);
  if (at == MAP_FAILED) {
    return base::fail(base::Code::kInvalidArgument,
                      "[kvstore] ram: {} bytes of address space cannot be had: {}", bytes,
                      std::strerror(errno));
  }
  ::munmap(at, size);
  return {};
}

std::optional<base::Blob> Arena::keep(base::ByteView bytes) {
  const uint64_t size = rounded(bytes.size());
  if (size == 0) return base::Blob();
  const std::optional<uint64_t> offset = memory_->take(size);
  if (!offset) return std::nullopt;
  std::byte* const to = memory_->at(*offset);
  std::memcpy(to, bytes.data(), bytes.size());
  return base::Blob(std::make_shared<Extent>(whole_, memory_, *offset, size),
                    base::ByteView(to, bytes.size()));
}

uint64_t Arena::capacity() const { return memory_->capacity(); }
uint64_t Arena::used() const { return memory_->used(); }
size_t Arena::free_runs() const { return memory_->free_runs(); }
bool Arena::huge_pages() const { return memory_->huge_pages(); }

}  // namespace kvstore
