// A link from a prefill stage to a decode rank that crawls but moves (R27), in virtual time: it is
// found out, requests go elsewhere and wait no longer than before, and it is used again later.
#include <fmt/core.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "decode_node/decode_actor.h"
#include "model/forward.h"
#include "tests/sim/sim_cluster.h"

namespace simulation {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr double kCrawl = 8'000;  // bytes a second; the KV of a request is some 15 kB with headers
constexpr milliseconds kFirst{1000}, kApart{100};
constexpr uint32_t kRequests = 600;  // 60 s of them
constexpr seconds kSlowFrom{5}, kSlowTo{30};
const char* const kSlow = "decode/0";  // of ranks that are idle alike it is taken first

class Load {
 public:
  explicit Load(bool crawls) {
    engine_ = model::make_oracle_engine({});
    ClusterOptions options;
    options.ranks = 3;
    options.on_log = [this](base::Level, std::string_view line) { note(line); };
    cluster_ = std::make_unique<SimCluster>(options, *engine_);
    actor::SimHost& host = cluster_->host();
    for (uint32_t i = 0; i < kRequests; ++i)
      host.at(kFirst + i * kApart, [this, i] { cluster_->submit(submission(i)); });
    if (crawls) {
      host.at(kSlowFrom, [&host] { host.throttle("prefill-1", "decode-0", kCrawl); });
      host.at(kSlowTo, [&host] { host.throttle("prefill-1", "decode-0", 0); });
    }
    const auto over = [this] {
      return cluster_->outcomes().size() == kRequests && cluster_->all_over() &&
             cluster_->held().empty();
    };
    EXPECT_TRUE(host.run_until(over, seconds(300))) << cluster_->held();
  }

  const Outcome& outcome(size_t index) const { return *cluster_->outcomes()[index]; }
  // Where its first token was taken up.
  std::string rank(size_t index) const {
    const auto found = ranks_.find(outcome(index).id.value);
    return found == ranks_.end() ? "" : found->second;
  }
  double first_token_ms(size_t index) const {
    return 1e3 * base::seconds(outcome(index).first - outcome(index).submitted);
  }
  // When the stage found the link slow, in seconds.
  const std::vector<double>& found_slow() const { return found_slow_; }
  model::Engine& engine() { return *engine_; }

 private:
  static coordinator::Submission submission(uint32_t seed) {
    base::Rng rng(seed, 4);
    coordinator::Submission made;
    for (uint32_t i = 0; i < 200; ++i)
      made.prompt.push_back(static_cast<base::TokenId>(rng.below(512)));
    made.sampling.max_tokens = 4;
    made.sampling.seed = seed;
    made.has_seed = true;
    return made;
  }
  // 12.345 decode/1 debug sequence.begin request=7 …
  void note(std::string_view line) {
    if (line.find(" kv.link.slow ") != line.npos)
      found_slow_.push_back(std::stod(std::string(line)));
    if (line.find(" sequence.begin ") == line.npos) return;
    const size_t name = line.find(' ') + 1, request = line.find("request=") + 8;
    ranks_[std::stoull(std::string(line.substr(request)))] =
        line.substr(name, line.find(' ', name) - name);
  }

  std::map<uint64_t, std::string> ranks_;
  std::vector<double> found_slow_;
  std::unique_ptr<model::Engine> engine_;
  std::unique_ptr<SimCluster> cluster_;
};

double p99(std::vector<double> values) {
  std::ranges::sort(values);
  return values[values.size() * 99 / 100];
}

TEST(SlowLink, IsAvoidedAndOtherPairsDoNotFeelIt) {
  Load usual(false), crawling(true);
  EXPECT_TRUE(usual.found_slow().empty());
  ASSERT_FALSE(crawling.found_slow().empty());
  const double found = crawling.found_slow().front();
  EXPECT_LT(found, 5 + 8);  // three late transfers in ten seconds
  std::vector<double> usual_ms, others_ms;
  uint32_t there_usually = 0, there_after = 0, there_again = 0;
  for (size_t i = 0; i < kRequests; ++i) {
    const Outcome& outcome = crawling.outcome(i);
    ASSERT_FALSE(outcome.error.has_value()) << i << ": " << outcome.error->what;
    EXPECT_EQ(outcome.tokens, usual.outcome(i).tokens) << i;
    const double at = base::seconds(outcome.submitted.time_since_epoch());
    const bool there = crawling.rank(i) == kSlow;
    if (at > found + 31) there_again += there;
    if (at < 5 || at >= 30) continue;
    usual_ms.push_back(usual.first_token_ms(i));
    there_usually += usual.rank(i) == kSlow;
    // A heartbeat later nobody is sent there; who was is moved on once, after two seconds.
    if (at > found + 0.5 && at < found + 30) there_after += there;
    const bool moved = outcome.usage.attempts > 1;
    if (!there && !moved) others_ms.push_back(crawling.first_token_ms(i));
  }
  EXPECT_GT(there_usually, 100u);
  EXPECT_EQ(there_after, 0u);
  fmt::print(
      "found slow {:.1f} s after it was; first token P99 {:.2f} ms usually, {:.2f} ms of {} "
      "of {} requests elsewhere\n",
      found - 5, p99(usual_ms), p99(others_ms), others_ms.size(), usual_ms.size());
  EXPECT_GT(others_ms.size(), usual_ms.size() * 8 / 10);
  EXPECT_LT(p99(others_ms), 1.1 * p99(usual_ms));
  EXPECT_EQ(crawling.found_slow().size(), 1u);  // after its rest it is well
  EXPECT_GT(there_again, 30u);
  for (size_t i = 0; i < kRequests; i += 97) {
    const Outcome& outcome = usual.outcome(i);
    EXPECT_EQ(outcome.tokens,
              model::generate(usual.engine(), outcome.asked.prompt, outcome.asked.sampling).tokens);
  }
}

}  // namespace
}  // namespace simulation
