// The cluster file: one TOML that describes every node of a cluster. Every process reads the whole
// file, so that a mistake anywhere is refused everywhere. Names and defaults are a contract with
// users (README, cluster/local.toml). It stands in base because each role reads its part and roles
// do not know each other.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "base/fault_point.h"
#include "base/result.h"

namespace base {

struct ClusterConfig {
  // [cluster]
  std::string name = "local";
  std::string model =
      "models/serval-tiny";       // a Hugging Face style folder, relative to the working directory
  std::string served_model_name;  // default: the model folder's last name
  std::string http = "127.0.0.1:8000";         // the coordinator's API
  std::string coordinator = "127.0.0.1:8100";  // the coordinator's address for nodes
  // [prefill]
  uint32_t prefill_stages = 2;       // CPP depth
  uint32_t sequence_parallel = 1;    // ranks per stage
  bool share_experts = false;        // by the ranks of a stage
  bool prefill_share_ngram = false;  // likewise
  std::string chunk = "dynamic";     // or fixed
  uint32_t chunk_tokens = 256;       // tokens of a prompt's first pipeline step
  uint64_t prefill_kv_bytes = 256u << 20;
  // [decode]
  uint32_t decode_ranks = 2;       // EP degree
  uint32_t kv_parallel = 1;        // ranks that hold a long prompt's KV, at most
  uint32_t redundant_experts = 0;  // copies of busy experts, in each layer, over all ranks
  std::string eplb = "off";        // or on
  uint32_t eplb_window_ms = 60'000;
  uint32_t eplb_interval_ms = 60'000;  // between plans
  double eplb_min_gain = 0.05;         // of balancedness; less is not worth a plan
  bool decode_share_ngram = false;     // n-gram tables, by the ranks
  uint32_t max_batch = 32;             // sequences per step and rank
  uint32_t micro_batches = 1;          // passes of a step under way at once
  uint32_t mtp_steps = 0;           // drafts of a sequence and step; at most what the model offers
  uint32_t max_rows = 0;            // of a step, drafts included; 0: twice max_batch, 32 at least
  uint32_t steps_per_schedule = 1;  // steps between two choices of who runs
  std::string reserve = "grow";     // or full: KV of the longest answer is held from the start
  uint64_t decode_kv_bytes = 512u << 20;
  // [kvstore]
  uint32_t kvstore_nodes = 1;  // 0: no prefix cache
  uint64_t kvstore_ram_bytes = 256u << 20;
  std::string kvstore_policy = "lru";  // or lfu, cost_aware
  std::string kvstore_disk;            // folder; empty: no disk tier
  uint64_t kvstore_disk_bytes = uint64_t{16} << 30;
  // [numerics]
  std::string numerics_mode = "invariant";     // or fast
  std::string numerics_kv = "bf16";            // or f32, int8
  std::string numerics_weights = "as_stored";  // or bf16, int8, int4
  uint32_t threads = 1;                        // compute threads per process
  bool hierarchical_index = false;             // of sparse attention, for very long contexts
  bool verify_products = true;                 // row checksums
  uint32_t scrub_ms = 60'000;                  // all weights in memory once in this time; 0: never
  // [transport]
  std::string bind = "127.0.0.1";  // address nodes listen on; port chosen by the system
  std::string same_host = "tcp";   // or "ipc": nodes of one host talk over ipc
  uint64_t max_message_bytes = 64u << 20;
  // [timing]
  uint32_t heartbeat_ms = 200;
  uint32_t heartbeat_misses = 5;  // a node is declared dead after (misses + 1) intervals of silence
  // [limits]
  uint32_t max_requests = 1024;  // admitted at once; more get 429
  uint32_t max_body_bytes = 32u << 20;
  uint32_t request_deadline_ms = 600'000;
  uint32_t max_context = 0;  // 0 = the model's
  // [placement]
  std::string placement = "kv_aware";  // or least_loaded, round_robin, random
  // [faults]
  std::string faults_text;        // inject = "decode-1:weight:40": node, point, passes before it
  std::vector<NodeFault> faults;  // the same, read
  // [log]
  std::string log_format = "text";  // or json
  std::string log_level = "info";

  // Reads and checks; the error text names every mistake with file:line:column.
  static Result<ClusterConfig> load(const std::string& path);
  static Result<ClusterConfig> parse(const std::string& text, const std::string& path);
  // The effective configuration as TOML with origins (--print-config).
  static Result<std::string> describe(const std::string& path);
};

}  // namespace base
