// Replay: a trace of prompts through the BlockIndex, to learn what a policy and a size are worth.
// A trace file has one line a request: the numbers of the prompt's blocks, a run 5 6 7 8 written
// 5+3. Equal numbers are equal blocks after equal prefixes. '#' begins a comment line.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "base/result.h"
#include "kvstore/eviction.h"

namespace kvstore {

using Trace = std::vector<std::vector<uint32_t>>;  // [request][block]
base::Result<Trace> read_trace(const std::string& path);

struct ReplayOptions {
  uint64_t blocks = 0;  // of the store; 0: all fit
  const Policy* policy = &policies().front();
  // true: as a request of the cluster does it: look up and hold the prefix, put what was not found,
  // release. false: every block is put in order, found or not; the plain cache of the literature.
  bool leases = true;
};
struct Replayed {
  uint64_t asked = 0, hits = 0;  // blocks
  double cost = 0, saved = 0;    // of computing them, and of those that were found
  double hit_rate() const { return static_cast<double>(hits) / static_cast<double>(asked); }
  double saved_rate() const { return saved / cost; }
};
Replayed replay(const Trace& trace, const ReplayOptions& options);

}  // namespace kvstore
