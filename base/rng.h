// Counter-based randomness: a pure function of (seed, stream, counter), the same on every machine,
// so a draw depends on what it is for and never on how many draws came before it. Philox4x32-10
// (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
#pragma once
#include <cstdint>

namespace base {

uint64_t random_at(uint64_t seed, uint64_t stream, uint64_t counter);
// Uniform in [0, 1), 53 bits.
double uniform_at(uint64_t seed, uint64_t stream, uint64_t counter);

// A sequence of draws for hosts and tests: counter 0, 1, 2 … of one stream.
class Rng {
 public:
  explicit Rng(uint64_t seed, uint64_t stream = 0) : seed_(seed), stream_(stream) {}
  uint64_t next() { return random_at(seed_, stream_, counter_++); }
  double uniform() { return uniform_at(seed_, stream_, counter_++); }
  // Uniform in [0, bound), bound > 0.
  uint64_t below(uint64_t bound);
  bool chance(double p) { return uniform() < p; }

 private:
  uint64_t seed_, stream_, counter_ = 0;
};

}  // namespace base
