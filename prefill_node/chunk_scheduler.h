// ChunkScheduler: whose chunk is computed next. Round robin over the jobs, one chunk a turn, so
// that a short prompt is not behind the whole of a long one. Pure.
#pragma once
#include <deque>
#include <functional>
#include <optional>

#include "prefill_node/job_key.h"

namespace prefill {

class ChunkScheduler {
 public:
  void add(const JobKey& key);     // its first turn comes after everybody's next one
  void remove(const JobKey& key);  // may be unknown
  // The next job whose turn it is and that has something to compute; its next turn is the last.
  std::optional<JobKey> next(const std::function<bool(const JobKey&)>& runnable);
  size_t size() const { return turns_.size(); }

 private:
  std::deque<JobKey> turns_;
};

}  // namespace prefill
