#include "base/rng.h"

#include <array>

#include "base/check.h"

namespace base {
namespace {

using Words = std::array<uint32_t, 4>;
__extension__ using Uint128 = unsigned __int128;

// Philox4x32-10: ten rounds over the 128-bit counter, the key bumped by Weyl constants between.
Words philox(Words x, uint32_t key0, uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53u} * x[0];
    const uint64_t b = uint64_t{0xCD9E8D57u} * x[2];
    x = {static_cast<uint32_t>(b >> 32) ^ x[1] ^ key0, static_cast<uint32_t>(b),
         static_cast<uint32_t>(a >> 32) ^ x[3] ^ key1, static_cast<uint32_t>(a)};
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return x;
}

}  // namespace

// The seed is the key; the counter is the low half of Philox's counter, the stream the high half.
uint64_t random_at(uint64_t seed, uint64_t stream, uint64_t counter) {
  const Words x = philox({static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32),
                          static_cast<uint32_t>(stream), static_cast<uint32_t>(stream >> 32)},
                         static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
  return (uint64_t{x[1]} << 32) | x[0];
}

double uniform_at(uint64_t seed, uint64_t stream, uint64_t counter) {
  return static_cast<double>(random_at(seed, stream, counter) >> 11) * 0x1p-53;
}

// Multiply and shift, rejecting the few draws that would favour some values (Lemire, "Fast random
// integer generation in an interval", TOMACS 2019).
uint64_t Rng::below(uint64_t bound) {
  CHECK(bound > 0, "nothing is below 0");
  const uint64_t reject_under = (0 - bound) % bound;
  while (true) {
    const Uint128 product = static_cast<Uint128>(next()) * bound;
    if (static_cast<uint64_t>(product) >= reject_under) return static_cast<uint64_t>(product >> 64);
  }
}

}  // namespace base
