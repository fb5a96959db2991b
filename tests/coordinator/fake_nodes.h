// Small perfect nodes around a real coordinator. They register as real nodes do and answer like
// prefill, decode and store, but the "model" is a hash of the tokens so far: a token lost, doubled
// or computed after a wrong prefix is a wrong token.
#pragma once
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "actor/actor.h"
#include "node/membership_client.h"
#include "proto/all.h"

namespace coordinator {

using base::TokenId;

inline constexpr uint32_t kVocab = 1000;
inline constexpr TokenId kEos = 7;

TokenId next_token(const std::vector<TokenId>& tokens, uint64_t seed);
// What every cluster must answer.
std::vector<TokenId> truth(const std::vector<TokenId>& prompt, uint64_t seed, uint32_t max_tokens);

// What the fakes do, changed by tests while they run. Counters of what they saw.
struct Knobs {
  base::Duration prefill_time = std::chrono::milliseconds(2);
  base::Duration step_time = std::chrono::milliseconds(1);
  uint32_t blocks_total = 1000;  // of each rank
  uint32_t refuse_reserves = 0;  // so many times "no room"
  uint32_t refuse_starts = 0;    // by the last stage
  uint32_t stage_jobs = 1000;    // prompts on one stage
  uint32_t fail_decodes = 0;     // so many sequences fail in place of their first step
  std::string fail_what = "numerical_error: logits are not finite";
  bool fail_without_cache = false;
  uint32_t preempt_decodes = 0;  // so many sequences give way in place of their first step
  bool lose_finish = false;      // the last token leaves without its finish reason
  bool mute_decode = false;      // ranks reserve but never emit
  uint32_t store_blocks = 0;     // leading blocks the store claims to have
  base::Hash128 decode_model{1, 1};
  uint32_t held_blocks = 0;              // that a rank says it has of each prompt
  std::vector<base::NodeId> slow_ranks;  // that every stage tells of

  uint32_t reserves = 0, starts = 0, lookups = 0, leases = 0;
  std::vector<uint32_t> cached_blocks;       // of each StartPrefill at stage 0
  std::vector<uint32_t> held;                // likewise
  std::vector<base::RequestId> reserved;     // in the order of success
  std::map<std::string, size_t> sequences;   // live ones, per rank
  std::map<std::string, size_t> prefilling;  // live ones, per stage
  uint32_t most_at_once = 0;                 // sequences on one rank
};

std::unique_ptr<actor::Actor> make_fake(proto::Role role, Knobs& knobs, const std::string& name);

}  // namespace coordinator
