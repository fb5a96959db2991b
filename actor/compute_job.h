// What an actor offloads: what it costs, whom it is for, and what it may be done together with.
#pragma once
#include <cstdint>
#include <functional>
#include <span>

#include "base/time.h"

namespace actor {

// Whom a job is for. When a compute thread is free, what waits begins in this order
// (job_queue.h); none is passed for ever.
enum class Turn : uint8_t {
  kOwn,        // this node's own work waits for it
  kAsked,      // other nodes wait for it
  kBackground  // nobody waits: packing, checking, compiling ahead
};
constexpr size_t kTurns = 3;

struct Cost {
  base::Duration modelled = std::chrono::microseconds(20);  // the simulated host's virtual time
  Turn turn = Turn::kOwn;

  Cost at(Turn of) const { return {modelled, of}; }
};

// A job that is done together with its company: those that wait at the moment when a thread is
// free for the first of them. None is waited for.
class JointJob {
 public:
  // Jobs of equal `number` are company, up to `most` in the sum of their sizes (one alone may be
  // larger). The unit of size is the users'.
  struct Company {
    uint64_t number = 0;
    size_t size = 0, most = 0;
  };
  virtual ~JointJob() = default;
  // Does the work of all of these; this is the first. On a compute thread.
  virtual void run(std::span<JointJob* const> all) = 0;

  // Set by the host when it is done: how long run() took, in the job that ran; 0 in its company.
  base::Duration took{};
};

// As hosts know a job: `run`, or `joint` with its company.
struct ComputeJob {
  uint64_t id = 0;
  Cost cost{};
  std::function<void()> run{};
  JointJob* joint = nullptr;
  JointJob::Company company{};
};

}  // namespace actor
