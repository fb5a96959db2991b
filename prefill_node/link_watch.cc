#include "prefill_node/link_watch.h"

#include <algorithm>

namespace prefill {

using base::Duration;
using base::NodeId;
using base::Time;

std::optional<Duration> LinkWatch::pace(const Link& link) {
  if (link.delays.empty()) return std::nullopt;
  return std::ranges::min(link.delays);
}

void LinkWatch::acknowledged(NodeId rank, Duration after) {
  std::deque<Duration>& delays = links_[rank].delays;
  delays.push_back(after);
  if (delays.size() > kPaceOf) delays.pop_front();
}

bool LinkWatch::late(NodeId rank, Time now) {
  Link& link = links_[rank];
  if (now < link.rests_until) return false;
  if (!link.lates.empty() && now - link.lates.back() < kLateApart) return false;
  link.lates.push_back(now);
  if (link.lates.size() > kLates) link.lates.pop_front();
  if (link.lates.size() < kLates || now - link.lates.front() > kWindow) return false;
  const bool alone = links_.size() == 1;
  if (pace(link).value_or(Duration{0}) < kPaceGood) return false;
  if (!alone && !has_better(rank, now)) return false;
  const bool soon = link.rest > Duration{0} && now < link.rests_until + link.rest;
  link.rest = soon ? std::min(2 * link.rest, kRestMost) : kRest;
  link.rests_until = now + link.rest;
  link.lates.clear();
  return true;
}

Duration LinkWatch::retry(NodeId rank) const {
  const auto found = links_.find(rank);
  if (found == links_.end()) return kRetryLeast;
  return std::clamp(kFarBehind * pace(found->second).value_or(Duration{0}), kRetryLeast,
                    kRetryMost);
}

bool LinkWatch::rests(NodeId rank, Time now) const {
  const auto found = links_.find(rank);
  return found != links_.end() && now < found->second.rests_until;
}

std::vector<NodeId> LinkWatch::resting(Time now) const {
  std::vector<NodeId> ranks;
  for (const auto& [rank, link] : links_)
    if (now < link.rests_until) ranks.push_back(rank);
  return ranks;
}

bool LinkWatch::has_better(NodeId rank, Time now) const {
  const auto found = links_.find(rank);
  if (found == links_.end()) return false;
  const auto own = pace(found->second);
  return own && std::ranges::any_of(links_, [&](const auto& entry) {
           const auto& [other, link] = entry;
           const auto its = pace(link);
           return other != rank && now >= link.rests_until && its && kFarBehind * *its <= *own;
         });
}

}  // namespace prefill
