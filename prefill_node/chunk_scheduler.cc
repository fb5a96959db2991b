#include "prefill_node/chunk_scheduler.h"

#include <algorithm>
#include <tuple>

namespace prefill {

void ChunkScheduler::add(const JobKey& key) { jobs_[key] = {fair_, turns_++}; }

void ChunkScheduler::remove(const JobKey& key) { jobs_.erase(key); }

std::optional<JobKey> ChunkScheduler::next(const CostOf& cost_of) {
  std::optional<JobKey> chosen;
  uint64_t chosen_due = 0, chosen_turn = 0, chosen_cost = 0, able = 0;
  for (const auto& [key, job] : jobs_) {
    const std::optional<uint64_t> cost = cost_of(key);
    if (!cost) continue;
    ++able;
    const uint64_t due = job.start + *cost;
    if (chosen && std::tie(due, job.turn) >= std::tie(chosen_due, chosen_turn)) continue;
    chosen = key;
    chosen_due = due;
    chosen_turn = job.turn;
    chosen_cost = *cost;
  }
  if (!chosen) return std::nullopt;
  // One that could not run for long is due in the past: it goes first once, and saves up nothing.
  fair_ += std::max<uint64_t>(chosen_cost / able, 1);
  jobs_[*chosen] = {std::max(fair_, chosen_due), turns_++};
  return chosen;
}

}  // namespace prefill
