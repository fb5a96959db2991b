// Every repetition of a call is needed: without it, one of the first seeds of a scenario breaks a
// promise. The table is that of docs/SIMULATION.md.
#include <gtest/gtest.h>

#include "tests/sim/scenario.h"

namespace simulation {
namespace {

struct Row {
  const char* label;
  const char* scenario;
  uint64_t seeds = 20;  // more where the fault it mends is rare
};
void PrintTo(const Row& row, std::ostream* out) { *out << row.label; }

class RetryTest : public ::testing::TestWithParam<Row> {};

TEST_P(RetryTest, WithoutItASeedFails) {
  RunOptions options;
  options.scenario = GetParam().scenario;
  options.without_retry = {GetParam().label};
  for (options.seed = 1; options.seed <= GetParam().seeds; ++options.seed) {
    const RunResult result = run(options);
    if (result.verdict != Verdict::kOk) {
      RecordProperty("seed", static_cast<int>(options.seed));
      RecordProperty("why", result.why);
      return;
    }
  }
  FAIL() << GetParam().seeds << " seeds of '" << GetParam().scenario
         << "' hold without the repetition of '" << GetParam().label << "'";
}

INSTANTIATE_TEST_SUITE_P(Labels, RetryTest,
                         ::testing::Values(Row{"hello", "lossy"}, Row{"kv.reserve", "lossy"},
                                           Row{"prefill.start", "lossy"},
                                           Row{"stage.input", "lossy"},
                                           Row{"sequence.kv", "shared"}, Row{"kv.hold", "spread"},
                                           Row{"kv.question", "spread"}, Row{"kv.layer", "lossy"},
                                           Row{"kv.commit", "lossy"}, Row{"store.fetch", "lossy"},
                                           Row{"token.out", "lossy"}, Row{"expert.rows", "lossy"},
                                           Row{"attempt.failed", "store", 200},
                                           Row{"cancel", "cancels"}, Row{"store.release", "lossy"}),
                         [](const auto& info) {
                           std::string name = info.param.label;
                           for (char& c : name) c = c == '.' ? '_' : c;
                           return name;
                         });

}  // namespace
}  // namespace simulation
