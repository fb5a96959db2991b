#pragma once
#include <cstring>

#include "base/check.h"

namespace base {
template <class T>
std::vector<T> Blob::to_vector() const {
  static_assert(std::is_trivially_copyable_v<T>);
  CHECK(view_.size() % sizeof(T) == 0, "{} bytes are no whole number of values", view_.size());
  std::vector<T> out(view_.size() / sizeof(T));
  if (!out.empty()) std::memcpy(out.data(), view_.data(), view_.size());
  return out;
}
}  // namespace base
