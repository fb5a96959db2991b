// Blob: an immutable run of bytes with shared ownership. Copying a Blob copies a pointer; KV rows
// and hidden states travel as Blobs from the pool to the socket without a copy. The only use of
// shared_ptr in Serval.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

namespace base {

using Bytes = std::vector<std::byte>;
using ByteView = std::span<const std::byte>;

class Blob {
 public:
  Blob() = default;
  explicit Blob(Bytes bytes);                              // takes the buffer, no copy
  Blob(std::shared_ptr<const void> owner, ByteView view);  // bytes of somebody else's buffer
  static Blob copy_of(ByteView view);
  template <class T>  // e.g. a span of floats; copies
  static Blob of(std::span<const T> values) {
    return copy_of(std::as_bytes(values));
  }

  ByteView view() const { return view_; }
  size_t size() const { return view_.size(); }
  bool empty() const { return view_.empty(); }
  // The bytes as values of T; CHECKs that size is a multiple. The buffer is aligned for T by its
  // maker or copied.
  template <class T>
  std::vector<T> to_vector() const;

 private:
  std::shared_ptr<const void> owner_;
  ByteView view_;
};
using Blobs = std::vector<Blob>;

inline ByteView as_bytes(std::string_view text) {
  return std::as_bytes(std::span<const char>(text.data(), text.size()));
}

}  // namespace base

#include "base/bytes_inl.h"
