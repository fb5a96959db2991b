// A whole cluster on the simulated host: the real actors of all four roles over one engine, and the
// record of what every request got.
#pragma once
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "actor/sim_host.h"
#include "base/cluster_config.h"
#include "coordinator/expert_balance.h"
#include "coordinator/gateway.h"
#include "grammar/grammar.h"
#include "kvstore/sim_disk.h"
#include "model/engine.h"

namespace simulation {

class SharedEngine;

struct ClusterOptions {
  uint64_t seed = 1;
  uint32_t stages = 2, sequence_ranks = 1, ranks = 2, stores = 1;
  uint32_t chunk_tokens = 16, max_batch = 8;
  bool dynamic_chunks = false, share_experts = false, share_ngram = false;
  uint32_t mtp_steps = 0;                      // of the decode ranks; the engine must offer them
  uint32_t micro_batches = 1, micro_rows = 1;  // of the decode ranks
  uint32_t kv_parallel = 1;
  uint32_t redundant_experts = 0;
  bool eplb = false;              // with window and interval of seconds
  uint64_t kv_bytes = 32u << 20;  // of each stage's rank, and of each decode rank
  uint64_t decode_kv_bytes = 0;   // where decode ranks have less; 0: as much
  uint32_t steps_per_schedule = 1, max_rows = 0;
  std::string reserve = "grow";
  uint32_t heartbeat_misses = 5;
  bool store_disk = false;  // stores of little RAM over a simulated disk
  uint64_t store_ram = 64u << 10, store_disk_bytes = 1u << 20;  // with store_disk
  // Of constrained requests; empty: that of simulated_vocabulary().
  std::function<base::Result<grammar::Vocabulary>()> make_vocabulary{};
  actor::SimNetwork network{};
  std::set<std::string> without_retry{};
  std::function<base::Duration()> job_cost{};  // actor::SimOptions
  std::function<void(base::Level, std::string_view)>
      on_log{};  // every line; default: kept for a failure's report
};

// For engines without a tokenizer: bytes, then pieces of JSON.
grammar::Vocabulary simulated_vocabulary(const model::Shape& shape);

// What one request's client saw.
struct Outcome {
  coordinator::Submission asked;
  base::RequestId id;
  std::vector<base::TokenId> tokens;
  uint32_t ends = 0;  // exactly one, or none when cancelled
  bool cancelled = false;
  base::FinishReason finish = base::FinishReason::kNone;
  std::optional<base::Error> error;
  coordinator::Usage usage;
  base::Time submitted{}, first{}, ended{};  // first: when its first token came
};

class SimCluster {
 public:
  // `engine` outlives the cluster; every node computes with it.
  SimCluster(const ClusterOptions& options, model::Engine& engine);
  ~SimCluster();

  actor::SimHost& host() { return *host_; }
  const std::vector<std::string>& nodes() const { return nodes_; }  // all but the coordinator
  bool ready();
  size_t ready_stores();

  // The disks of the stores, for their faults; they outlive the stores' lives.
  std::vector<std::unique_ptr<kvstore::SimMedium>>& disks() { return disks_; }
  // Makes a node's engine go wrong; nothing happens while the node has none.
  void inject(const std::string& node, base::FaultPoint fault);
  // Of a node's engine: experts it has, of all layers, and those that it loaded in a pass.
  uint64_t resident_experts(const std::string& node);
  uint64_t late_experts(const std::string& node);
  const coordinator::ExpertBalance& balance();

  // Decode ranks join and leave the running cluster. One that leaves ends its sequences first, or
  // is killed and never comes back.
  void join(uint32_t rank);
  void leave(uint32_t rank);
  void lose(uint32_t rank);
  bool has_rank(uint32_t rank);
  uint64_t tokens_of(uint32_t rank);  // that its present life emitted

  size_t submit(coordinator::Submission submission);  // now; the index of its Outcome
  void cancel(size_t index);
  const std::vector<std::unique_ptr<Outcome>>& outcomes() const { return outcomes_; }
  bool all_over() const;  // every request has ended or was cancelled

  // Of the decode ranks' present lives.
  struct Steps {
    uint64_t sequences = 0, tokens = 0, drafted = 0, accepted = 0, forced = 0;
    uint64_t rows_received = 0, rows_held = 0, shard_answers = 0;
  };
  Steps steps();

  uint64_t preemptions();  // that the coordinator knows of
  // A counter in the latest heartbeats of all nodes together.
  double told(const std::string& counter);

  // What is still held anywhere: empty when every ledger reads zero.
  std::string held();

 private:
  void add_nodes(const ClusterOptions& options, model::Engine& engine);
  void add_rank(const ClusterOptions& options, model::Engine& engine, uint32_t rank);
  void forget(const std::string& node);  // it is not one of nodes() any more
  coordinator::Gateway& gateway();

  const ClusterOptions options_;
  model::Engine& engine_;
  base::ClusterConfig config_;
  std::vector<std::unique_ptr<kvstore::SimMedium>> disks_;
  std::map<std::string, SharedEngine*> engines_;  // of the nodes that have one now
  std::unique_ptr<actor::SimHost> host_;
  std::vector<std::string> nodes_;
  std::vector<std::unique_ptr<Outcome>> outcomes_;
};

}  // namespace simulation
