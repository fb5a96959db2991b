// A Blob of bytes that its maker sets, all of them, without clearing them before.
#pragma once
#include "base/bytes.h"

namespace base {

// `size` bytes, set by write(first byte).
template <class Write>
Blob made_blob(size_t size, Write write) {
  auto bytes = std::make_shared_for_overwrite<std::byte[]>(size);
  write(bytes.get());
  const ByteView view(bytes.get(), size);
  return Blob(std::move(bytes), view);
}

}  // namespace base
