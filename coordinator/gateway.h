// The two halves of the coordinator meet here. The actor side (Gateway) knows requests as token
// ids: admission, attempts, placement, the token log. The front end (HTTP) knows them as text: chat
// format, tokenizer, detokenizer, stop strings, JSON. Simulations use the Gateway directly.
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/generation.h"
#include "base/ids.h"
#include "base/result.h"
#include "coordinator/latency.h"

namespace coordinator {

using base::RequestId;
using base::TokenId;

struct Submission {
  std::vector<TokenId> prompt;  // at least one
  base::Sampling sampling;      // seed and max_tokens may be 0: set at admission
  bool has_seed = false;
  uint32_t deadline_ms = 0;  // 0: the configured one
  std::string salt;          // prefix-cache tenant; part of every block key
  std::string tenant;        // who shares with whom while requests wait: a name of the API key
  int32_t priority = 0;      // lower is earlier
};

struct Usage {
  uint32_t prompt_tokens = 0, completion_tokens = 0, cached_tokens = 0, attempts = 0;
};

// Where the tokens of one request go. Called on the reactor thread.
class TokenSink {
 public:
  virtual ~TokenSink() = default;
  // Each token exactly once, in order. logprobs is empty or of equal size.
  virtual void tokens(std::span<const TokenId> tokens,
                      std::span<const base::TokenLogprobs> logprobs) = 0;
  // Exactly once, last. `error` is null on success; a refusal is an end with an error before any
  // token: kExhausted (queue full: 429), kUnavailable (no cluster: 503), kContextLength (400),
  // kDeadline (408), kInternal (500).
  virtual void end(base::FinishReason reason, const base::Error* error, const Usage& usage) = 0;
};

struct NodeStatus {
  std::string name, role, state, endpoint;
  uint64_t node = 0;
  uint32_t position = 0, pid = 0, load_percent = 0;
  uint32_t running = 0, waiting = 0, blocks_used = 0, blocks_total = 0;
  double heartbeat_age_s = 0;
  std::vector<std::pair<std::string, double>> counters;
};
struct ClusterStatus {
  std::string name, model;
  uint64_t epoch = 0;
  bool ready = false;
  std::vector<std::string> missing;  // reasons while not ready: "no prefill stage 1"
  bool draining = false;
  uint32_t running = 0, waiting = 0;  // requests
  std::vector<NodeStatus> nodes;      // the coordinator itself first
  std::vector<std::pair<std::string, double>>
      counters;  // of the coordinator; names as in /metrics without prefix
  // By the decode ranks in the window, of each layer: largest share over the mean, minus 1. Empty
  // where experts are not balanced.
  std::vector<double> expert_imbalance;
  Latencies latency;
};

class Gateway {
 public:
  virtual ~Gateway() = default;
  // Admits or refuses (through sink->end). The sink lives until end() or cancel().
  virtual RequestId submit(Submission submission, std::unique_ptr<TokenSink> sink) = 0;
  // The client is gone or has enough (stop string): frees everything everywhere; the sink is
  // destroyed uncalled.
  virtual void cancel(RequestId request) = 0;
  virtual ClusterStatus status() const = 0;
  // Refuses new work; running requests go on.
  virtual void drain() = 0;
};

}  // namespace coordinator
