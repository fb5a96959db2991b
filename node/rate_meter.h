// RateMeter: what was done a second, lately. Each measurement counts for a fifth less than the one
// after it; a rate that was not measured for kFresh is not known any more. Pure.
#pragma once
#include "base/time.h"

namespace node {

class RateMeter {
 public:
  static constexpr base::Duration kFresh = std::chrono::seconds(30);

  void add(double amount, double seconds, base::Time now) {
    amount_ = amount_ * kKept + amount;
    seconds_ = seconds_ * kKept + seconds;
    measured_ = now;
  }
  // 0: not known.
  double value(base::Time now) const {
    return seconds_ > 0 && now - measured_ < kFresh ? amount_ / seconds_ : 0;
  }

 private:
  static constexpr double kKept = 0.8;
  double amount_ = 0, seconds_ = 0;
  base::Time measured_{};
};

}  // namespace node
