// A thousand requests of every kind, of which many clients leave at a chosen point of a request's
// life, over a network that loses, doubles and reorders: afterwards nothing of them is held
// anywhere, and who stayed has the tokens of one process.
#include <fmt/core.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>

#include "model/forward.h"
#include "prefill_node/prefill_actor.h"
#include "tests/sim/sim_cluster.h"

namespace simulation {
namespace {

using base::Rng;
using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr uint32_t kRequests = 1000;

// When a client leaves.
enum class Leaves : uint8_t {
  kNever,
  kAtOnce,      // before any node has heard of the request
  kInPrefill,   // while chunks of it compute
  kInTransfer,  // while KV is unacknowledged
  kInDecode     // after some tokens
};
constexpr size_t kPoints = 5;

struct Client {
  size_t index = 0;  // of the Outcome
  Leaves leaves = Leaves::kNever;
  uint32_t tokens = 0;  // kInDecode: after so many
  base::Time from{};    // kInPrefill, kInTransfer: not before
};

std::vector<base::TokenId> random_tokens(Rng& rng, uint64_t count, uint32_t vocab) {
  std::vector<base::TokenId> tokens(count);
  for (base::TokenId& token : tokens) token = static_cast<base::TokenId>(rng.below(vocab));
  return tokens;
}

class Crowd {
 public:
  Crowd(SimCluster& cluster, model::Engine& engine, uint64_t seed)
      : cluster_(cluster), engine_(engine), rng_(seed, /*stream=*/79) {}

  // Arrivals over some 30 s; one in eight asks for two or three answers to its prompt.
  void schedule() {
    milliseconds at{500};
    for (uint32_t asked = 0; asked < kRequests;) {
      const uint32_t n = rng_.below(8) == 0 ? 2 + static_cast<uint32_t>(rng_.below(2)) : 1;
      const coordinator::Submission made = submission();
      const auto leaves = rng_.chance(0.5) ? Leaves::kNever : Leaves(1 + rng_.below(kPoints - 1));
      const auto tokens = static_cast<uint32_t>(1 + rng_.below(made.sampling.max_tokens));
      const milliseconds patience(rng_.below(4));
      cluster_.host().at(at, [this, made, n, leaves, tokens, patience] {
        for (uint32_t choice = 0; choice < n; ++choice) {
          coordinator::Submission one = made;
          one.sampling.choice = choice;
          const size_t index = cluster_.submit(one);
          clients_.push_back({index, leaves, tokens, cluster_.host().now() + patience});
        }
        if (leaves == Leaves::kAtOnce) look();
      });
      asked += n;
      at += milliseconds(rng_.below(60));
    }
    last_ = at;
    watch(milliseconds(500));
  }

  bool over() const {
    return cluster_.host().now().time_since_epoch() > last_ && cluster_.all_over();
  }
  uint32_t left(Leaves point) const { return left_[static_cast<size_t>(point)]; }
  size_t asked() const { return clients_.size(); }

 private:
  // Prompts short and long, alone and with a prefix that others have; greedy, seeded and not.
  coordinator::Submission submission() {
    coordinator::Submission made;
    const uint32_t vocab = engine_.shape().vocab;
    if (rng_.chance(0.4)) {
      Rng shared(1 + rng_.below(4), /*stream=*/80);
      made.prompt = random_tokens(shared, 64 * (1 + shared.below(6)) + 5, vocab);
    }
    const uint64_t more = 1 + rng_.below(rng_.chance(0.2) ? 500 : 40);
    for (const base::TokenId token : random_tokens(rng_, more, vocab)) made.prompt.push_back(token);
    made.sampling.max_tokens = static_cast<uint32_t>(1 + rng_.below(rng_.chance(0.2) ? 150 : 30));
    made.sampling.temperature = rng_.chance(0.4) ? 0.0f : 0.9f;
    made.has_seed = rng_.chance(0.8);
    made.sampling.seed = made.has_seed ? rng_.next() : 0;
    return made;
  }

  void watch(milliseconds at) {
    look();
    const milliseconds next = at + milliseconds(1);
    if (!over()) cluster_.host().at(next, [this, next] { watch(next); });
  }
  // Who is at the point at which it leaves, leaves.
  void look() {
    uint32_t jobs = 0, unacknowledged = 0;
    for (const std::string& name : cluster_.nodes()) {
      if (!name.starts_with("prefill")) continue;
      const auto* stage = static_cast<prefill::PrefillActor*>(cluster_.host().actor(name));
      jobs += stage->ledger().jobs;
      unacknowledged += stage->ledger().unacknowledged;
    }
    for (Client& client : clients_) {
      const Outcome& outcome = *cluster_.outcomes()[client.index];
      if (client.leaves == Leaves::kNever || outcome.ends > 0) continue;
      const bool waits = outcome.tokens.empty() && cluster_.host().now() >= client.from;
      const bool there =
          client.leaves == Leaves::kAtOnce ||
          (client.leaves == Leaves::kInPrefill && waits && jobs > 0) ||
          (client.leaves == Leaves::kInTransfer && waits && unacknowledged > 0) ||
          (client.leaves == Leaves::kInDecode && outcome.tokens.size() >= client.tokens);
      if (!there) continue;
      cluster_.cancel(client.index);
      ++left_[static_cast<size_t>(client.leaves)];
      client.leaves = Leaves::kNever;
    }
  }

  SimCluster& cluster_;
  model::Engine& engine_;
  Rng rng_;
  std::vector<Client> clients_;
  std::array<uint32_t, kPoints> left_{};
  base::Duration last_{};
};

// The outcome of each who stayed is whole; what anybody got is right.
void expect_right(const Outcome& got, model::Engine& engine) {
  EXPECT_EQ(got.ends, got.cancelled ? 0u : 1u);
  EXPECT_FALSE(got.error.has_value()) << got.error->what;
  if (got.asked.has_seed || got.asked.sampling.temperature == 0) {
    const model::Generated want = model::generate(engine, got.asked.prompt, got.asked.sampling);
    ASSERT_LE(got.tokens.size(), want.tokens.size());
    EXPECT_TRUE(std::equal(got.tokens.begin(), got.tokens.end(), want.tokens.begin()));
    if (!got.cancelled) {
      EXPECT_EQ(got.tokens.size(), want.tokens.size());
    }
  } else {
    EXPECT_LE(got.tokens.size(), got.asked.sampling.max_tokens);
  }
}

class MixedRequests : public ::testing::TestWithParam<uint32_t> {};

TEST_P(MixedRequests, LeaveEveryLedgerAtZero) {
  const std::unique_ptr<model::Engine> engine = model::make_oracle_engine({});
  ClusterOptions options;
  options.seed = 400 + GetParam();
  options.sequence_ranks = GetParam();
  options.stores = 2;
  options.chunk_tokens = 64;
  options.heartbeat_misses = 20;  // no node fails: none may be taken for dead
  options.network.loss = options.network.duplicate = options.network.reorder = 0.02;
  SimCluster cluster(options, *engine);
  ASSERT_TRUE(cluster.host().run_until([&] { return cluster.ready(); }, seconds(3)));
  const auto open_calls = [&] {
    size_t open = cluster.host().open_calls("coordinator");
    for (const std::string& name : cluster.nodes()) open += cluster.host().open_calls(name);
    return open;
  };
  size_t calls_under_load = 0;
  std::string held_under_load;
  cluster.host().at(seconds(10), [&] {
    calls_under_load = open_calls();
    held_under_load = cluster.held();
  });
  Crowd crowd(cluster, *engine, options.seed);
  crowd.schedule();
  ASSERT_TRUE(cluster.host().run_until([&] { return crowd.over(); }, seconds(300)));
  EXPECT_GE(crowd.asked(), kRequests);
  EXPECT_GT(calls_under_load, 0u);
  EXPECT_FALSE(held_under_load.empty());

  cluster.host().network().loss = 0;
  const base::Duration soon = cluster.host().now().time_since_epoch() + seconds(8);
  EXPECT_TRUE(
      cluster.host().run_until([&] { return cluster.held().empty() && open_calls() == 0; }, soon))
      << cluster.held() << open_calls() << " calls";

  uint32_t cached = 0;
  for (const auto& outcome : cluster.outcomes()) {
    expect_right(*outcome, *engine);
    cached += outcome->usage.cached_tokens;
  }
  EXPECT_GT(cached, 5000u);
  for (const Leaves point :
       {Leaves::kAtOnce, Leaves::kInPrefill, Leaves::kInTransfer, Leaves::kInDecode})
    EXPECT_GE(crowd.left(point), 50u) << static_cast<int>(point);
  EXPECT_TRUE(cluster.host().error_lines().empty()) << cluster.host().error_lines().front();
}

INSTANTIATE_TEST_SUITE_P(Ranks, MixedRequests, ::testing::Values(1u, 2u),
                         [](const auto& info) { return fmt::format("sp{}", info.param); });

}  // namespace
}  // namespace simulation
