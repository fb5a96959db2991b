// Owner of rows ↔ owner of experts, between decode ranks. A call without side effects: it may be
// computed twice.
#pragma once
#include "proto/common.h"

namespace proto {

// Blob: f32 [rows, hidden], the normalised rows. Pair i asks for expert pair_experts[i] on row
// pair_rows[i].
struct ExpertIn {
  static constexpr uint16_t kType = 40;
  static constexpr const char* kName = "ExpertIn";
  uint32_t layer = 0;
  uint32_t rows = 0;
  std::vector<uint16_t> pair_rows;
  std::vector<uint16_t> pair_experts;
  base::Hash128 digest;  // of the blob
  FIELDS(layer, rows, pair_rows, pair_experts, digest)
};
// Blob: f32 [pairs, hidden], unweighted outputs in the order asked.
struct ExpertOut {
  static constexpr uint16_t kType = 41;
  static constexpr const char* kName = "ExpertOut";
  Outcome outcome = Outcome::kOk;
  base::Hash128 digest;  // of the blob
  FIELDS(outcome, digest)
};

// How a decode rank stands to the plans of where experts are. Every second or so and whenever it
// changes, a plain send to the coordinator. Blob, once in an eighth of the window, else none: u32
// [layers, experts + 1], what this rank's rows asked of each expert in the window and, last of each
// layer, how many pairs it computed for anybody.
struct ExpertReport {
  static constexpr uint16_t kType = 42;
  static constexpr const char* kName = "ExpertReport";
  uint64_t active = 0;              // epoch that steps dispatch under; 0: no plan
  uint64_t held = 0;                // the newest plan here, active or to become it
  uint64_t ready = 0;               // the newest plan whose experts are all loaded here
  uint64_t settled = 0;             // the newest plan that alone decides what is loaded here
  uint32_t loaded = 0, wanted = 0;  // experts that `held` made load, and of how many
  base::Hash128 digest;             // of the blob
  FIELDS(active, held, ready, settled, loaded, wanted, digest)
};
// Coordinator → decode rank, plain, until its reports show that it is known. docs/PROTOCOL.md
// "Expert plans". Blob with kPrepare and kActive: u16 [layers, slots], the expert of each slot,
// slots rank by rank, those of rank r of R from ⌈r · slots / R⌉.
struct ExpertPlan {
  static constexpr uint16_t kType = 43;
  static constexpr const char* kName = "ExpertPlan";
  enum class Phase : uint8_t {
    kPrepare = 0,  // load your share
    kActive = 1,   // dispatch by it from the next step on
    kSettled = 2,  // nobody dispatches by an older one any more: let go what this one does not need
    kAborted = 3,  // will not become active: forget it
  };
  Phase phase = Phase::kPrepare;
  uint64_t epoch = 0;
  uint32_t slots = 0;  // of a layer
  std::vector<NodeId> ranks;
  base::Hash128 digest;  // of the blob
  FIELDS(phase, epoch, slots, ranks, digest)
};

}  // namespace proto
