// SimDisk: the DiskTier of the simulated host and of tests: a medium in memory that outlives the
// node, and the faults of real disks, drawn from a seed.
#pragma once
#include <map>
#include <memory>
#include <string>

#include "base/rng.h"
#include "kvstore/disk_tier.h"

namespace kvstore {

// Probabilities are per call, but `torn`, `lost` and `rot`, which are per entry.
struct SimDiskFaults {
  double write_error = 0;  // EIO: nothing of the batch is kept
  double read_error = 0;   // EIO, per entry
  double torn = 0;         // the written rows are cut short
  double lost = 0;         // the write is acknowledged, the rows are not there
  double rot = 0;          // a bit of the written rows or record flips
  double slow = 0;         // the call takes up to slow_most
  base::Duration slow_most = std::chrono::seconds(3);
  uint64_t capacity = UINT64_MAX;  // ENOSPC beyond
  bool will_not_open = false;
  bool hoards = false;  // reclaim() does nothing
};

// What is on the platter. Outlives the tiers made of it; one at a time.
struct SimMedium {
  explicit SimMedium(uint64_t seed) : rng(seed, /*stream=*/78) {}
  std::map<std::string, std::string> values;
  SimDiskFaults faults{};
  base::Rng rng;
  uint64_t bytes = 0;
  uint64_t garbage = 0;  // of what was removed or overwritten, until reclaim()
  uint64_t writes = 0, reads = 0, injected = 0;
};

std::unique_ptr<DiskTier> make_sim_disk(SimMedium& medium);

}  // namespace kvstore
