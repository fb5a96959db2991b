// `serval verify DIR`: runs a checkpoint against its reference outputs (golden.safetensors, or
// reference.safetensors of the built-in model) and reports every tensor: the largest difference,
// the tolerance, or that no check knows it.
#pragma once
#include <string>
#include <vector>

#include "base/result.h"
#include "model/engine.h"

namespace model {

struct VerifyRow {
  enum class Verdict : uint8_t { kPassed, kFailed, kNotYetChecked };
  std::string tensor;
  Verdict verdict = Verdict::kFailed;
  double largest_difference = 0;  // 0 for discrete tensors that are equal
  double tolerance = 0;           // 0: must be equal
  std::string note;               // where the largest difference is, or what is missing
};
struct VerifyReport {
  std::vector<VerifyRow> rows;
  bool passed() const;  // no row failed
};
enum class EngineKind : uint8_t { kLocal, kReference };
base::Result<VerifyReport> verify(const std::string& folder, EngineKind engine);

}  // namespace model
