#include "coordinator/waiting_queue.h"

#include <algorithm>

#include "base/check.h"

namespace coordinator {

void WaitingQueue::add(Entry entry) {
  remove(entry.id);
  const std::pair<uint64_t, RequestId> at{entry.arrival, entry.id};
  Level& level = levels_[entry.priority];
  (entry.again ? level.again : level.tenants[entry.tenant]).insert(at);
  if (!entry.again) {
    Tenant& tenant = tenants_[entry.tenant];
    if (tenant.waiting++ == 0) tenant.given = std::max(tenant.given, clock_);
  }
  all_.insert(at);
  entries_.emplace(entry.id, std::move(entry));
  first_.reset();
}

void WaitingQueue::remove(RequestId id) {
  const auto found = entries_.find(id);
  if (found == entries_.end()) return;
  const Entry& entry = found->second;
  const std::pair<uint64_t, RequestId> at{entry.arrival, entry.id};
  const auto level = levels_.find(entry.priority);
  if (entry.again) {
    level->second.again.erase(at);
  } else {
    const auto tenant = level->second.tenants.find(entry.tenant);
    tenant->second.erase(at);
    if (tenant->second.empty()) level->second.tenants.erase(tenant);
    --tenants_.at(entry.tenant).waiting;
    forget_tenants();
  }
  if (level->second.again.empty() && level->second.tenants.empty()) levels_.erase(level);
  all_.erase(at);
  entries_.erase(found);
  first_.reset();
}

RequestId WaitingQueue::first() {
  CHECK(!empty(), "nobody waits");
  if (!first_) first_ = choose();
  return *first_;
}

RequestId WaitingQueue::choose() const {
  if (turns_ + 1 == kTurnOfOldest) return all_.begin()->second;
  const Level& level = levels_.begin()->second;
  if (!level.again.empty()) return level.again.begin()->second;
  std::pair<uint64_t, std::pair<uint64_t, RequestId>> least{UINT64_MAX, {}};
  for (const auto& [tenant, waiting] : level.tenants)
    least = std::min(least, {tenants_.at(tenant).given, *waiting.begin()});
  return least.second.second;
}

void WaitingQueue::charge(const Entry& entry) {
  tenants_.at(entry.tenant).given += entry.cost;
  const uint64_t able = levels_.at(entry.priority).tenants.size();
  clock_ += std::max<uint64_t>(entry.cost / able, 1);
}

void WaitingQueue::forget_tenants() {
  std::erase_if(tenants_, [this](const auto& named) {
    return named.second.waiting == 0 && named.second.given <= clock_;
  });
}

void WaitingQueue::take_first() {
  const RequestId id = first();
  const Entry& entry = entries_.at(id);
  if (!entry.again) charge(entry);
  remove(id);
  turns_ = (turns_ + 1) % kTurnOfOldest;
}

}  // namespace coordinator
