// Latencies of requests as histograms with fixed buckets, seconds.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>

#include "base/time.h"

namespace coordinator {

struct Histogram {
  // Upper bounds in seconds; a last bucket without bound follows.
  static constexpr std::array<double, 17> kBounds = {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05,
                                                     0.1,   0.25,   0.5,   1.0,  2.5,   5.0,
                                                     10.0,  30.0,   60.0,  120., 600.0};
  std::array<uint64_t, kBounds.size() + 1> counts{};  // not cumulative
  uint64_t count = 0;
  double sum = 0.0;

  void add(base::Duration value, uint64_t times = 1) {
    const double seconds = base::seconds(value);
    size_t bucket = 0;
    while (bucket < kBounds.size() && seconds > kBounds[bucket]) ++bucket;
    counts[bucket] += times;
    count += times;
    sum += seconds * static_cast<double>(times);
  }
};

struct Latencies {
  Histogram first_token;  // submission → first token
  Histogram inter_token;  // between tokens; a batch of n that arrives together counts n equal gaps
  Histogram request;      // submission → end, of requests that finished
  Histogram queue;        // submission → first reservation
};

}  // namespace coordinator
