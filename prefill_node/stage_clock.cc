#include "prefill_node/stage_clock.h"

#include <cmath>

namespace prefill {

namespace {
constexpr double kFade_s = 10;
}

void StageClock::advance(base::Time now) {
  const base::Duration passed = now - since_;
  since_ = now;
  if (state_ == State::kIdle || passed <= base::Duration{0}) return;
  const double seconds = base::seconds(passed);
  const double kept = std::exp(-seconds / kFade_s);
  const double added = kFade_s * (1 - kept);
  recent_ = recent_ * kept + added;
  recent_busy_ *= kept;
  if (state_ == State::kBusy) {
    spent_.busy += passed;
    recent_busy_ += added;
  } else {
    spent_.bubble += passed;
  }
}

void StageClock::set(State state, base::Time now) {
  advance(now);
  state_ = state;
}

StageClock::Spent StageClock::spent(base::Time now) {
  advance(now);
  return spent_;
}

double StageClock::utilisation(base::Time now) {
  advance(now);
  return recent_ == 0 ? 1 : recent_busy_ / recent_;
}

}  // namespace prefill
