#include "model/draft_length.h"

#include "base/check.h"

namespace model {

namespace {

// The estimate moves 1/n of its way to `target`, and never stands still before it.
uint32_t towards(uint32_t estimate, uint32_t target, uint32_t n) {
  const uint32_t gap = target > estimate ? target - estimate : estimate - target;
  const uint32_t step = (gap + n - 1) / n;
  return target > estimate ? estimate + step : estimate - step;
}

}  // namespace

uint32_t DraftLength::steps() const {
  uint64_t reached = kOne;
  for (uint32_t step = 0; step < most_; ++step) {
    reached = reached * chances_[step] / kOne;
    if (reached < kWorth) return step;
  }
  return most_;
}

void DraftLength::add(uint32_t drafted, uint32_t accepted) {
  CHECK(accepted <= drafted && drafted <= most_, "{} of {} drafts accepted, at most {}", accepted,
        drafted, most_);
  for (uint32_t step = 0; step < most_; ++step) {
    if (step >= drafted) {
      chances_[step] = towards(chances_[step], kFirst, kRest);
    } else if (step <= accepted) {  // later ones were never asked
      chances_[step] = towards(chances_[step], step < accepted ? kOne : 0, kRecent);
    }
  }
}

}  // namespace model
