// HotGroups: how often each group of blocks was asked for lately, so that what everybody asks for
// gets more copies. Bounded: beyond kMost groups in half a window new ones are not counted. Pure.
#pragma once
#include <map>

#include "base/hash.h"
#include "base/time.h"

namespace coordinator {

class HotGroups {
 public:
  static constexpr size_t kMost = 8192;
  static constexpr base::Duration kHalf = std::chrono::seconds(30);

  // Counts one; returns how many there were in this half of a window and the one before.
  uint32_t use(const base::Hash128& group, base::Time now);

 private:
  using Uses = std::map<base::Hash128, uint32_t>;
  Uses now_, before_;
  base::Time begun_{};
};

}  // namespace coordinator
