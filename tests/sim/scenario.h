// A scenario is a load, a script of faults drawn from the seed, and what must hold afterwards.
// Everything a run does follows from (scenario, seed, retries left out), so a failure is replayed
// by naming the three.
#pragma once
#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include "base/hash.h"

namespace simulation {

// Exit codes of the simulate program, and the kinds of failure.
enum class Verdict : uint8_t { kOk = 0, kCorrectness = 3, kLiveness = 4 };

struct RunOptions {
  std::string scenario = "faults";
  uint64_t seed = 1;
  std::set<std::string> without_retry{};
  bool print_log = false;
};

struct RunResult {
  Verdict verdict = Verdict::kOk;
  std::string why;  // of a failure
  base::Hash128 trace;
  uint32_t requests = 0, tokens = 0, attempts = 0;
  uint32_t cached = 0;  // tokens of prompts
  uint32_t plans = 0;   // for experts, that became active
  uint64_t held = 0;    // KV rows that decode ranks had already, of their lives at the end
  uint64_t preemptions = 0;
  double virtual_seconds = 0;
  double slowest_seconds = 0;  // request, from asking to the end
  std::string log;             // the last lines, of a failure
};

RunResult run(const RunOptions& options);

struct ScenarioInfo {
  const char* name;
  const char* what;
};
const std::vector<ScenarioInfo>& scenarios();

}  // namespace simulation
