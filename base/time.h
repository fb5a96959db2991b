// Time as actors see it: nanoseconds since the host started, monotonic; virtual in simulation.
#pragma once
#include <chrono>

namespace base {
using Duration = std::chrono::nanoseconds;
struct Clock {  // never read directly: only a host makes a Time
  using duration = Duration;
  using rep = duration::rep;
  using period = duration::period;
  using time_point = std::chrono::time_point<Clock>;
  static constexpr bool is_steady = true;
};
using Time = Clock::time_point;
inline double seconds(Duration d) { return std::chrono::duration<double>(d).count(); }
using namespace std::chrono_literals;
}  // namespace base
