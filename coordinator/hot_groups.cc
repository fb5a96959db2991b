#include "coordinator/hot_groups.h"

#include <utility>

namespace coordinator {

uint32_t HotGroups::use(const base::Hash128& group, base::Time now) {
  if (now - begun_ >= kHalf) {
    before_ = now - begun_ < 2 * kHalf ? std::exchange(now_, {}) : Uses{};
    now_.clear();
    begun_ = now;
  }
  const auto former = before_.find(group);
  const uint32_t past = former == before_.end() ? 0 : former->second;
  auto at = now_.find(group);
  if (at == now_.end()) {
    if (now_.size() >= kMost) return past;
    at = now_.emplace(group, 0).first;
  }
  return past + ++at->second;
}

}  // namespace coordinator
