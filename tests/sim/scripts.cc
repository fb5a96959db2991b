#include "tests/sim/scripts.h"

#include <algorithm>
#include <iterator>

namespace simulation {

namespace {

void no_faults(SimCluster&, Rng&, milliseconds) {}

void kill_and_restart(SimCluster& cluster, const std::string& name, milliseconds at,
                      milliseconds down) {
  cluster.host().at(at, [&cluster, name] { cluster.host().kill(name); });
  cluster.host().at(at + down, [&cluster, name] { cluster.host().restart(name); });
}

// A decode rank is killed and restarted; a random side of the nodes is cut off for a while.
void partition_and_kill(SimCluster& cluster, Rng& rng, milliseconds span) {
  const auto most = static_cast<uint64_t>(span.count());
  const std::string rank = fmt::format("decode-{}", rng.below(2));
  kill_and_restart(cluster, rank, between(rng, 300, most), between(rng, 200, 2000));
  std::set<std::string> side;
  for (const std::string& node : cluster.nodes()) {
    if (rng.chance(0.4)) side.insert(node);
  }
  const milliseconds lasts = between(rng, 200, 3000);
  cluster.host().at(between(rng, 300, most),
                    [&cluster, side, lasts] { cluster.host().partition(side, lasts); });
}

// Every kind of node goes down once, some twice.
void kill_everything(SimCluster& cluster, Rng& rng, milliseconds span) {
  for (const std::string& node : cluster.nodes()) {
    const auto most = static_cast<uint64_t>(span.count());
    kill_and_restart(cluster, node, between(rng, 300, most), between(rng, 100, 1500));
  }
}

// Every rank of every prefill stage goes down; sometimes two of a stage at once.
void kill_prefill(SimCluster& cluster, Rng& rng, milliseconds span) {
  const auto most = static_cast<uint64_t>(span.count());
  for (const std::string& node : cluster.nodes()) {
    if (!node.starts_with("prefill")) continue;
    kill_and_restart(cluster, node, between(rng, 300, most), between(rng, 100, 3000));
  }
}

// Nodes freeze and come back, longer and shorter than it takes to be declared dead.
void pauses(SimCluster& cluster, Rng& rng, milliseconds span) {
  for (const std::string& node : cluster.nodes()) {
    const milliseconds lasts = between(rng, 100, 4000);
    cluster.host().at(between(rng, 300, static_cast<uint64_t>(span.count())),
                      [&cluster, node, lasts] { cluster.host().pause(node, lasts); });
  }
}

// The store dies over and over, so that promised blocks are missing when they are fetched.
void store_dies(SimCluster& cluster, Rng& rng, milliseconds span) {
  for (milliseconds at{1200}; at < span; at += between(rng, 900, 1800)) {
    kill_and_restart(cluster, "kvstore-0", at, milliseconds(50));
  }
}

// One of three stores after another leaves, empty when it comes back.
void stores_come_and_go(SimCluster& cluster, Rng& rng, milliseconds span) {
  for (milliseconds at{700}; at < span; at += between(rng, 300, 900)) {
    kill_and_restart(cluster, fmt::format("kvstore-{}", rng.below(3)), at, between(rng, 50, 1500));
  }
}

// Every decode rank goes down, some in the middle of a plan.
void kill_ranks(SimCluster& cluster, Rng& rng, milliseconds span) {
  const auto most = static_cast<uint64_t>(span.count());
  for (const std::string& node : cluster.nodes()) {
    if (!node.starts_with("decode")) continue;
    kill_and_restart(cluster, node, between(rng, 500, most), between(rng, 100, 1500));
  }
}

// Two ranks join, one leaves in order, one leaves or dies for good, and one of those that stay is
// killed and comes back: 2, 4, 3, 2 ranks (R20).
void ranks_come_and_go(SimCluster& cluster, Rng& rng, milliseconds span) {
  for (const uint32_t rank : {2u, 3u})
    cluster.host().at(between(rng, 300, 900), [&cluster, rank] { cluster.join(rank); });
  const auto first = static_cast<uint32_t>(rng.below(4));
  const auto second = static_cast<uint32_t>((first + 1 + rng.below(3)) % 4);
  cluster.host().at(between(rng, 1500, 2300), [&cluster, first] { cluster.leave(first); });
  const bool dies = rng.chance(0.5);
  cluster.host().at(between(rng, 2500, 3500), [&cluster, second, dies] {
    dies ? cluster.lose(second) : cluster.leave(second);
  });
  uint32_t stays = 0;
  while (stays == first || stays == second) ++stays;
  kill_and_restart(cluster, fmt::format("decode-{}", stays),
                   between(rng, 1000, static_cast<uint64_t>(span.count())),
                   between(rng, 100, 1500));
}

// No KV goes from one stage to one rank while all hear the coordinator (R23).
void stage_and_rank_apart(SimCluster& cluster, Rng& rng, milliseconds span) {
  const std::string stage = fmt::format("prefill-{}", rng.below(2));
  const std::string rank = fmt::format("decode-{}", rng.below(2));
  const auto most = static_cast<uint64_t>(span.count());
  const milliseconds lasts = between(rng, 500, 20'000);
  cluster.host().at(between(rng, 300, most), [&cluster, stage, rank, lasts] {
    cluster.host().cut(stage, rank, lasts);
    cluster.host().cut(rank, stage, lasts);
  });
}

// KV goes from one stage to one rank at a crawl, which moves all the same (R27).
void stage_and_rank_slow(SimCluster& cluster, Rng& rng, milliseconds span) {
  const std::string stage = fmt::format("prefill-{}", rng.below(2));
  const std::string rank = fmt::format("decode-{}", rng.below(2));
  const auto most = static_cast<uint64_t>(span.count());
  const double rate = 2'000 + 20'000 * rng.uniform();  // a message of KV is some 300 bytes
  const milliseconds begin = between(rng, 300, most), end = begin + between(rng, 3000, 30'000);
  cluster.host().at(begin,
                    [&cluster, stage, rank, rate] { cluster.host().throttle(stage, rank, rate); });
  cluster.host().at(end, [&cluster, stage, rank] { cluster.host().throttle(stage, rank, 0); });
}

// A weight flips in one node after another, each found by its row checksums; a row of one step or
// chunk becomes NaN. Once: a request whose arithmetic fails twice is told so.
void bad_arithmetic(SimCluster& cluster, Rng& rng, milliseconds span) {
  const auto most = static_cast<uint64_t>(span.count());
  const auto computes = [](const std::string& node) { return !node.starts_with("kvstore"); };
  std::vector<std::string> nodes;
  std::ranges::copy_if(cluster.nodes(), std::back_inserter(nodes), computes);
  for (const std::string& node : nodes) {
    const milliseconds at = between(rng, 300, most);
    cluster.host().at(at, [&cluster, node] { cluster.inject(node, base::FaultPoint::kWeightBit); });
    // By then it has ended itself; one without work since dies with its fault unseen.
    cluster.host().at(at + between(rng, 300, 1500),
                      [&cluster, node] { cluster.host().restart(node); });
  }
  const std::string node = nodes[rng.below(nodes.size())];
  cluster.host().at(between(rng, 300, most),
                    [&cluster, node] { cluster.inject(node, base::FaultPoint::kHiddenNan); });
}

// The store's disk does all that disks do, and the store dies in between: what it serves is right
// or nothing.
void disk_fails(SimCluster& cluster, Rng& rng, milliseconds span) {
  kvstore::SimMedium& disk = *cluster.disks().front();
  const auto sometimes = [&rng](double most) { return rng.chance(0.5) ? most * rng.uniform() : 0; };
  for (milliseconds at{100}; at < span; at += between(rng, 300, 900)) {
    kvstore::SimDiskFaults faults;
    faults.write_error = sometimes(0.5);
    faults.read_error = sometimes(0.2);
    faults.torn = sometimes(0.1);
    faults.lost = sometimes(0.1);
    faults.rot = sometimes(0.1);
    faults.slow = sometimes(0.3);
    faults.capacity = rng.chance(0.2) ? 20'000 : UINT64_MAX;
    faults.will_not_open = rng.chance(0.1);
    cluster.host().at(at, [&disk, faults] { disk.faults = faults; });
    if (rng.chance(0.3)) kill_and_restart(cluster, "kvstore-0", at, milliseconds(50));
  }
  cluster.host().at(span, [&disk] { disk.faults = {}; });
}

// Of the KV's way from stages to ranks.
std::vector<Script> kv_scripts() {
  return {
      {.name = "slow",
       .what = "KV from a prefill stage to a decode rank crawls at 2 to 22 kB/s for up to 30 s",
       .loss = 0.02,
       .duplicate = 0.02,
       .reorder = 0.02,
       .faults = stage_and_rank_slow,
       .patience = seconds(60),
       .limit = seconds(300),
       .stores = 2},
      {.name = "held",
       .what =
           "prompts of two tenants that begin alike; deaths, 2 % loss, half of the clients leave",
       .loss = 0.02,
       .duplicate = 0.05,
       .reorder = 0.05,
       .faults = kill_everything,
       .cancels = true,
       .patience = seconds(120),
       .limit = seconds(300),
       .shared = true,
       .tenants = true},
      {.name = "drafts_held",
       .what = "the same with three drafts a step and two ranks a stage, nobody leaves",
       .loss = 0.02,
       .duplicate = 0.05,
       .reorder = 0.05,
       .faults = kill_ranks,
       .patience = seconds(120),
       .limit = seconds(300),
       .shared = true,
       .sequence_ranks = 2,
       .mtp_steps = 3,
       .tenants = true},
  };
}

// Of ranks that hold parts of a sequence.
std::vector<Script> shard_scripts() {
  return {{.name = "spread",
           .what = "1 % loss, long prompts' KV on several decode ranks, no node fails",
           .loss = 0.01,
           .duplicate = 0.05,
           .reorder = 0.05,
           .faults = no_faults,
           .quiet = true,
           .patience = seconds(60),
           .limit = seconds(120),
           .kv_parallel = 4},
          {.name = "shards",
           .what = "lossy, KV on several decode ranks, every node killed and restarted, half leave",
           .loss = 0.02,
           .duplicate = 0.05,
           .reorder = 0.05,
           .faults = kill_everything,
           .cancels = true,
           .patience = seconds(120),
           .limit = seconds(300),
           .corrupt = 0.01,
           .kv_parallel = 4}};
}

// Of ranks that share work.
std::vector<Script> group_scripts() {
  return {
      {.name = "sequence",
       .what = "lossy, two ranks a stage, each killed and restarted",
       .loss = 0.10,
       .duplicate = 0.05,
       .reorder = 0.05,
       .faults = kill_prefill,
       .patience = seconds(60),
       .limit = seconds(300),
       .sequence_ranks = 2},
      {.name = "shared",
       .what = "5 % loss, three ranks a stage, no node fails",
       .loss = 0.05,
       .duplicate = 0.05,
       .reorder = 0.05,
       .faults = no_faults,
       .quiet = true,
       .patience = seconds(60),
       .limit = seconds(120),
       .sequence_ranks = 3},
      {.name = "drafts",
       .what = "three drafts a step, chats of two turns, every node killed and restarted",
       .loss = 0.05,
       .duplicate = 0.05,
       .reorder = 0.05,
       .faults = kill_everything,
       .patience = seconds(120),
       .limit = seconds(300),
       .stores = 2,
       .corrupt = 0.02,
       .turns = 2,
       .mtp_steps = 3},
      {.name = "grammar",
       .what = "2 % loss, every node killed and restarted, most requests constrained by a grammar",
       .loss = 0.02,
       .duplicate = 0.02,
       .reorder = 0.02,
       .faults = kill_everything,
       .patience = seconds(60),
       .limit = seconds(300),
       .constrained = true},
      {.name = "preempt",
       .what = "lossy, KV for few of the answers that begin alike, priorities, some leave, ranks "
               "killed",
       .loss = 0.02,
       .duplicate = 0.05,
       .reorder = 0.05,
       .faults = kill_ranks,
       .cancels = true,
       .patience = seconds(120),
       .limit = seconds(300),
       .shared = true,
       .corrupt = 0.01,
       .mtp_steps = 3,
       .constrained = true,
       .preempt = true},
  };
}

// Of decode ranks and their experts that come, go and move.
std::vector<Script> rank_scripts() {
  return {
      {.name = "elastic",
       .what = "2 % loss, decode ranks join, leave in order and die: 2, 4, 3, 2 of them",
       .loss = 0.02,
       .duplicate = 0.02,
       .reorder = 0.02,
       .faults = ranks_come_and_go,
       .patience = seconds(60),
       .limit = seconds(300),
       .constrained = true},
      {.name = "balance",
       .what = "1 % loss, busy experts get copies and move, no node fails",
       .loss = 0.01,
       .duplicate = 0.05,
       .reorder = 0.05,
       .faults = no_faults,
       .quiet = true,
       .patience = seconds(60),
       .limit = seconds(120),
       .rebalance = true},
      {.name = "rebalance",
       .what = "lossy, busy experts move while every decode rank is killed and restarted",
       .loss = 0.01,
       .duplicate = 0.05,
       .reorder = 0.05,
       .faults = kill_ranks,
       .patience = seconds(60),
       .limit = seconds(300),
       .corrupt = 0.02,
       .rebalance = true},
  };
}

}  // namespace

milliseconds between(Rng& rng, uint64_t least, uint64_t most) {
  return milliseconds(static_cast<int64_t>(least + rng.below(most - least + 1)));
}

const std::vector<Script>& scripts() {
  static const std::vector<Script> all = [] {
    std::vector<Script> made = {
        {"calm", "no faults", 0, 0, 0, no_faults, true, false, seconds(2), seconds(60), false},
        {"lossy", "10 % loss, 5 % duplicates, 5 % reordered: costs time, never an attempt", 0.10,
         0.05, 0.05, no_faults, true, false, seconds(60), seconds(120), false},
        {"faults", "lossy, a partition, a decode rank killed and restarted", 0.10, 0.05, 0.05,
         partition_and_kill, false, false, seconds(120), seconds(300), false},
        {"deaths", "every node but the coordinator killed and restarted", 0.02, 0.02, 0.02,
         kill_everything, false, false, seconds(60), seconds(300), false},
        {"pauses", "every node but the coordinator frozen for up to 4 s", 0.02, 0.02, 0.02, pauses,
         false, false, seconds(60), seconds(300), false},
        {"store", "20 % loss, the store killed again and again under shared prefixes", 0.20, 0.05,
         0.05, store_dies, false, false, seconds(120), seconds(300), true},
        {"arithmetic", "weights flip in every node that computes, a row becomes NaN", 0.02, 0.02,
         0.02, bad_arithmetic, false, false, seconds(60), seconds(300), false},
        {"disk", "10 % loss, the store's disk full, ill, slow and rotten, the store killed", 0.10,
         0.05, 0.05, disk_fails, false, false, seconds(60), seconds(120), true, true},
        {.name = "turns",
         .what = "chats of three turns over three stores that come and go, 2 % of bulk corrupt",
         .loss = 0.05,
         .duplicate = 0.05,
         .reorder = 0.05,
         .faults = stores_come_and_go,
         .patience = seconds(200),
         .limit = seconds(300),
         .stores = 3,
         .corrupt = 0.02,
         .turns = 3},
        {.name = "apart",
         .what = "a prefill stage and a decode rank do not reach each other",
         .loss = 0.02,
         .duplicate = 0.02,
         .reorder = 0.02,
         .faults = stage_and_rank_apart,
         .patience = seconds(15),
         .limit = seconds(300),
         .stores = 2},
        {"cancels", "lossy, and half of the clients leave", 0.10, 0.05, 0.05, no_faults, false,
         true, seconds(60), seconds(120), false},
    };
    std::ranges::move(kv_scripts(), std::back_inserter(made));
    std::ranges::move(group_scripts(), std::back_inserter(made));
    std::ranges::move(shard_scripts(), std::back_inserter(made));
    std::ranges::move(rank_scripts(), std::back_inserter(made));
    return made;
  }();
  return all;
}

}  // namespace simulation
