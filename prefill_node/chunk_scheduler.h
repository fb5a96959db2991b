// ChunkScheduler: whose chunk is computed next. Fair by cost (weighted fair queueing, equal
// weights): a clock tells how much a job that always could run would have had; a job's next chunk
// is due at its start on this clock plus its cost, and the one that is due first runs. So a short
// prompt goes before a long one's next chunk, each of n long ones gets an n-th of the stage, and
// nobody is overtaken for ever. Pure.
#pragma once
#include <cstdint>
#include <functional>
#include <map>
#include <optional>

#include "prefill_node/job_key.h"

namespace prefill {

class ChunkScheduler {
 public:
  void add(const JobKey& key);     // as one that has had nothing yet and is owed nothing
  void remove(const JobKey& key);  // may be unknown
  // Cost of a job's next chunk; nothing when it has none to compute now.
  using CostOf = std::function<std::optional<uint64_t>(const JobKey&)>;
  // The job whose chunk is due first among those that can run; it has had its turn.
  std::optional<JobKey> next(const CostOf& cost_of);
  size_t size() const { return jobs_.size(); }

 private:
  struct Job {
    uint64_t start = 0;  // of its next chunk, on the clock
    uint64_t turn = 0;   // equals go by who has waited longest
  };
  std::map<JobKey, Job> jobs_;
  uint64_t fair_ = 0;  // the clock, in cost
  uint64_t turns_ = 0;
};

}  // namespace prefill
