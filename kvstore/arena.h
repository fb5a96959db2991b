// Arena: the memory of the RAM tier, one mapping with huge pages advised, touched as it fills.
// Memory that a Blob refers to is taken back when the last copy of the Blob is gone, so what is on
// its way to a socket is never overwritten, whatever the index has done meanwhile.
//
// Best fit with coalescing: entries of one model are of one size, so nothing is lost to fragments.
// Single threaded, its Blobs included; the Blobs may outlive the Arena.
#pragma once
#include <optional>
#include <string_view>

#include "base/bytes.h"
#include "base/result.h"

namespace kvstore {

class Arena {
 public:
  static constexpr uint64_t kGrain = 64;  // sizes are rounded up to this
  static constexpr uint64_t rounded(uint64_t size) { return (size + kGrain - 1) / kGrain * kGrain; }

  // CHECKs that the address space can be had; try_reserve() tells beforehand.
  explicit Arena(uint64_t bytes);
  static base::Status try_reserve(uint64_t bytes);
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  // A copy of `bytes` in the arena; none when no free run is long enough.
  std::optional<base::Blob> keep(base::ByteView bytes);
  uint64_t capacity() const;
  uint64_t used() const;  // by Blobs that live, rounded
  size_t free_runs() const;
  // Whether the kernel gives this memory huge pages as it is touched.
  bool huge_pages() const;
  // The same of a kernel with this /sys/kernel/mm/transparent_hugepage/enabled, such as "always
  // [madvise] never".
  static bool gives_huge_pages(std::string_view enabled);

 private:
  class Memory;
  struct Extent;
  base::Blob whole_;  // owns the Memory, as does every Extent
  Memory* memory_;
};

}  // namespace kvstore
