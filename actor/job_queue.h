// JobQueue: the jobs of a node that wait for a compute thread, and which of them begins when one is
// free. A job is chosen then and not before, so what came meanwhile may go first or come along.
// Both hosts ask it; no Context, no clock.
//
//   by turn         own work, then what other nodes ask for, then background; in each the oldest.
//                   While own work runs questions gather, and more of them go in company
//   not for ever    each turn is passed by at most kPassedMost jobs
//   in company      a joint job takes along those of its company that wait, whatever their turn
#pragma once
#include <array>
#include <cstddef>
#include <deque>
#include <vector>

#include "actor/compute_job.h"

namespace actor {

class JobQueue {
 public:
  // Jobs of earlier turns that may begin while the oldest of a turn waits. A pass has three a
  // layer.
  static constexpr std::array<uint32_t, kTurns> kPassedMost{0, 3, 64};

  void add(ComputeJob job);
  bool empty() const;
  // Those that begin now, together.  REQUIRES: not empty
  std::vector<ComputeJob> take();
  void erase(uint64_t id);
  void clear();

 private:
  size_t next_turn() const;
  void take_company(std::vector<ComputeJob>& taken);

  std::array<std::deque<ComputeJob>, kTurns> waiting_;
  std::array<uint32_t, kTurns> passed_{};  // the oldest of each turn, since it is that
};

// Runs what take() gave. Destroys no closure.
void run_together(std::span<ComputeJob> jobs);

}  // namespace actor
