#include "model/integrity.h"

#include <utility>

namespace model {

std::string Integrity::reason() const {
  const std::lock_guard lock(mutex_);
  return reason_;
}

void Integrity::break_down(std::string reason) {
  const std::lock_guard lock(mutex_);
  if (reason_.empty()) reason_ = std::move(reason);
  broken_.store(true, std::memory_order_release);
}

}  // namespace model
