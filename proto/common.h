// Answers and small types that several conversations share.
#pragma once
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "base/generation.h"
#include "base/hash.h"
#include "base/ids.h"
#include "proto/codec.h"
#include "proto/fields.h"

namespace proto {

using base::NodeId;
using base::RequestId;

// Actor numbers; one actor a process.
enum ActorId : uint16_t { kCoordinator = 1, kPrefill = 2, kDecode = 3, kKvstore = 4 };
// The coordinator's node id is fixed: nodes must be able to address it before they know anything.
inline constexpr NodeId kCoordinatorNode{1};

enum class Role : uint8_t { kNone = 0, kCoordinator = 1, kPrefill = 2, kDecode = 3, kKvstore = 4 };

// How a receiver disposed of a request-scoped message.
enum class Outcome : uint8_t {
  kOk = 0,
  kNoRoom = 1,  // a bound is reached; nothing was changed
  kStale = 2,  // a later attempt or an end is known here; the sender drops its work on this attempt
  kUnknown = 3,  // nothing is known here of this request (a restarted node); the attempt is lost
  kCorrupt = 4,  // digest or size wrong; nothing was changed, send again
  kMissing = 5,  // not in the store
};

// An acknowledgement that has nothing to add.
struct Done {
  static constexpr uint16_t kType = 1;
  static constexpr const char* kName = "Done";
  Outcome outcome = Outcome::kOk;
  FIELDS(outcome)
};

// base::Sampling on the wire.
struct SamplingFields {
  float temperature = 1, top_p = 1;
  uint32_t top_k = 0;
  float min_p = 0, frequency_penalty = 0, presence_penalty = 0, repetition_penalty = 1;
  uint64_t seed = 0;
  uint32_t choice = 0, max_tokens = 0, min_tokens = 0;
  bool ignore_eos = false;
  int32_t top_logprobs = -1;
  std::vector<uint32_t> stop_tokens;
  std::vector<std::pair<uint32_t, float>> logit_bias;
  uint8_t grammar_kind = 0;  // base::GrammarKind
  std::string grammar_text;
  FIELDS(temperature, top_p, top_k, min_p, frequency_penalty, presence_penalty, repetition_penalty,
         seed, choice, max_tokens, min_tokens, ignore_eos, top_logprobs, stop_tokens, logit_bias,
         grammar_kind, grammar_text)  // append only
};
SamplingFields to_wire(const base::Sampling& sampling);
base::Sampling from_wire(const SamplingFields& fields);
// Values that base::Sampling can have.
bool plausible(const SamplingFields& fields);

}  // namespace proto
