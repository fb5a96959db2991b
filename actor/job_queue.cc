#include "actor/job_queue.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace actor {

void JobQueue::add(ComputeJob job) {
  waiting_[static_cast<size_t>(job.cost.turn)].push_back(std::move(job));
}

bool JobQueue::empty() const {
  return std::ranges::all_of(waiting_, [](const auto& jobs) { return jobs.empty(); });
}

// The last turn that was passed often enough, else the first that has a job.
size_t JobQueue::next_turn() const {
  for (size_t turn = kTurns - 1; turn > 0; --turn) {
    if (!waiting_[turn].empty() && passed_[turn] >= kPassedMost[turn]) return turn;
  }
  size_t turn = 0;
  while (waiting_[turn].empty()) ++turn;
  return turn;
}

std::vector<ComputeJob> JobQueue::take() {
  CHECK(!empty(), "nothing waits for a compute thread");
  const size_t turn = next_turn();
  std::vector<ComputeJob> taken;
  taken.push_back(std::move(waiting_[turn].front()));
  waiting_[turn].pop_front();
  passed_[turn] = 0;
  if (taken.front().joint != nullptr) take_company(taken);
  for (size_t later = turn + 1; later < kTurns; ++later) {
    if (!waiting_[later].empty()) ++passed_[later];
  }
  return taken;
}

void JobQueue::take_company(std::vector<ComputeJob>& taken) {
  const JointJob::Company company = taken.front().company;
  size_t size = company.size;
  for (std::deque<ComputeJob>& jobs : waiting_) {
    std::deque<ComputeJob> left;
    for (ComputeJob& job : jobs) {
      const bool joins = job.joint != nullptr && job.company.number == company.number &&
                         size + job.company.size <= company.most;
      if (joins) size += job.company.size;
      (joins ? taken.emplace_back() : left.emplace_back()) = std::move(job);
    }
    jobs = std::move(left);
  }
}

void JobQueue::erase(uint64_t id) {
  for (std::deque<ComputeJob>& jobs : waiting_)
    std::erase_if(jobs, [id](const ComputeJob& job) { return job.id == id; });
}

void JobQueue::clear() {
  for (std::deque<ComputeJob>& jobs : waiting_) jobs.clear();
}

void run_together(std::span<ComputeJob> jobs) {
  if (jobs.empty()) return;
  if (jobs.front().joint == nullptr) return jobs.front().run();
  std::vector<JointJob*> all;
  for (const ComputeJob& job : jobs) all.push_back(job.joint);
  all.front()->run(all);
}

}  // namespace actor
