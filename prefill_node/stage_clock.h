// StageClock: what a stage does with its time. Busy: a pass computes. Bubble: there are requests,
// but what they need is not here (rows of the stage before, room at the next one, cached blocks,
// acknowledgements). Idle: there is nothing to do. Pure.
#pragma once
#include "base/time.h"

namespace prefill {

class StageClock {
 public:
  enum class State : uint8_t { kIdle, kBubble, kBusy };

  // From now on the stage is in `state`.
  void set(State state, base::Time now);
  struct Spent {
    base::Duration busy{}, bubble{};
  };
  Spent spent(base::Time now);
  // Busy part of the time with requests, over about the last ten seconds of it; 1 before any.
  double utilisation(base::Time now);

 private:
  void advance(base::Time now);

  State state_ = State::kIdle;
  base::Time since_{};
  Spent spent_;
  double recent_busy_ = 0, recent_ = 0;  // seconds, fading
};

}  // namespace prefill
