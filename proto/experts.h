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

}  // namespace proto
