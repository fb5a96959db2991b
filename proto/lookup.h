// Rows of the n-gram tables, between the ranks that share them. Calls without side effects.
#pragma once
#include "proto/common.h"

namespace proto {

// Entry i asks for row ids[i] of table tables[i].
struct NgramRows {
  static constexpr uint16_t kType = 44;
  static constexpr const char* kName = "NgramRows";
  std::vector<uint16_t> tables;
  std::vector<uint64_t> ids;
  FIELDS(tables, ids)
};
// Blob: f32 [entries, dim], widened, in the order asked.  kUnknown: no tables here.
struct NgramValues {
  static constexpr uint16_t kType = 45;
  static constexpr const char* kName = "NgramValues";
  Outcome outcome = Outcome::kOk;
  base::Hash128 digest;  // of the blob
  FIELDS(outcome, digest)
};

}  // namespace proto
