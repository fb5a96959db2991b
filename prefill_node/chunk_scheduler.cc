#include "prefill_node/chunk_scheduler.h"

#include <algorithm>

namespace prefill {

void ChunkScheduler::add(const JobKey& key) { turns_.push_back(key); }

void ChunkScheduler::remove(const JobKey& key) { std::erase(turns_, key); }

std::optional<JobKey> ChunkScheduler::next(const std::function<bool(const JobKey&)>& runnable) {
  const auto found = std::ranges::find_if(turns_, runnable);
  if (found == turns_.end()) return std::nullopt;
  const JobKey key = *found;
  turns_.erase(found);
  turns_.push_back(key);
  return key;
}

}  // namespace prefill
