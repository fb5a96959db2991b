// The scripts of the scenarios: what each does to a cluster, from a seed.
#pragma once
#include <chrono>
#include <vector>

#include "base/rng.h"
#include "tests/sim/sim_cluster.h"

namespace simulation {

using base::Rng;
using std::chrono::milliseconds;
using std::chrono::seconds;

// What a scenario does to a cluster, and what it promises.
struct Script {
  const char* name;
  const char* what;
  double loss = 0, duplicate = 0, reorder = 0;
  // Schedules faults on cluster.host() by draws from rng, during the first `span`.
  void (*faults)(SimCluster& cluster, Rng& rng, milliseconds span) = nullptr;
  bool quiet =
      false;  // nodes and links hold: no second attempt, nothing logged at warn, ready soon
  bool cancels = false;  // some clients leave
  seconds patience{};    // from asking to the end, for each request
  seconds limit{};       // of virtual time, for everything to be over
  bool shared = false;   // every prompt begins with one of two long prefixes
  bool disk = false;     // the store has one
  uint32_t stores = 1;
  double corrupt = 0;  // of messages with bulk frames
  uint32_t turns = 1;  // of a chat: each prompt is the former one, its answer and some more
  uint32_t sequence_ranks = 1;
  uint32_t mtp_steps = 0;
  bool constrained = false;  // two of three requests must keep to a grammar
  uint32_t kv_parallel = 1;  // above 1: 2 … this, by the seed, of four decode ranks; long prompts
  bool preempt = false;      // little KV for long answers, priorities, several steps at once
  bool rebalance = false;    // three decode ranks, skewed routing, experts follow the load
  bool tenants = false;      // two of them, whose prompts begin alike and who share nothing
};

const std::vector<Script>& scripts();

milliseconds between(Rng& rng, uint64_t least, uint64_t most);

}  // namespace simulation
