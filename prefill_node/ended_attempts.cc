#include "prefill_node/ended_attempts.h"

namespace prefill {

proto::Outcome EndedAttempts::of(const JobKey& key) const {
  const auto found = ends_.find(key.request);
  if (found == ends_.end() || key.attempt > found->second.attempt) return proto::Outcome::kUnknown;
  const bool done = key.attempt == found->second.attempt && found->second.done;
  return done ? proto::Outcome::kOk : proto::Outcome::kStale;
}

void EndedAttempts::remember(const JobKey& key, bool done) {
  const auto found = ends_.find(key.request);
  if (found != ends_.end()) {
    const bool news = key.attempt > found->second.attempt;
    // A cancel that comes after the end takes back nothing but the kOk.
    const bool cancelled = key.attempt == found->second.attempt && !done;
    if (news || cancelled) found->second = {key.attempt, done};
    return;
  }
  if (ends_.size() == most_) {
    ends_.erase(order_.front());
    order_.pop_front();
  }
  ends_.emplace(key.request, End{key.attempt, done});
  order_.push_back(key.request);
}

void EndedAttempts::clear() {
  ends_.clear();
  order_.clear();
}

}  // namespace prefill
