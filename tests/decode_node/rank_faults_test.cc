// Lost, doubled, late and damaged messages; ranks that die, hang or are cut off.
#include "tests/decode_node/rank_fixture.h"
#include "tests/model/wrapped_engine.h"

namespace decode {
namespace {

// Calls `dies` as its rank has sent rows away in a pass and computes those it kept: between
// dispatch and combine (R04).
class DyingEngine final : public model::testing::WrappedEngine {
 public:
  DyingEngine(std::unique_ptr<model::Engine> inner, int passes, std::function<void()> dies)
      : WrappedEngine(*inner), owned_(std::move(inner)), left_(passes), dies_(std::move(dies)) {}
  void route(uint32_t layer, model::Pass& pass) override {
    WrappedEngine::route(layer, pass);
    if (layer == 1 && --left_ == 0) dispatching_ = true;
  }
  void experts(uint32_t layer, std::span<const float> x, std::span<const uint16_t> rows,
               std::span<const uint16_t> experts, std::span<float> out) override {
    if (std::exchange(dispatching_, false)) dies_();
    WrappedEngine::experts(layer, x, rows, experts, out);
  }

 private:
  const std::unique_ptr<model::Engine> owned_;
  int left_;
  bool dispatching_ = false;
  const std::function<void()> dies_;
};

TEST_F(RankTest, LossDuplicatesAndReorderingChangeNoToken) {
  for (uint64_t seed = 1; seed <= 6; ++seed) {
    SCOPED_TRACE(seed);
    build({.seed = seed, .ranks = 2});
    disturb_network();
    for (const Request& request : mixed_requests(8)) submit_at(kReady + 2s, request);
    sim->run_until([] { return false; }, kReady + 2s + 10ms);
    ASSERT_TRUE(run(300s));
    expect_oracle_tokens_up_to(8);
    sim->network() = {};
    expect_idle(2);
  }
}

TEST_F(RankTest, TheSameSeedGivesTheSameTrace) {
  base::Hash128 traces[2];
  for (base::Hash128& trace : traces) {
    build({.seed = 11, .ranks = 2});
    sim->network().loss = 0.05;
    for (const Request& request : mixed_requests(6)) submit_at(kReady, request);
    ASSERT_TRUE(run(120s));
    trace = sim->trace_hash();
  }
  EXPECT_EQ(traces[0], traces[1]);
}

TEST_F(RankTest, DamagedKvIsSentAgainAndNeverUsed) {
  build({.ranks = 1});
  Request request = plain_request(1, 100, 30);
  request.corrupt_rows = 5;
  submit_at(kReady, request);
  ASSERT_TRUE(run(60s));
  expect_oracle_tokens(1);
  EXPECT_EQ(rank(0).counters().corrupt, 5u);
  EXPECT_EQ(cluster().request(1).attempt, 1u);
  expect_idle(1);
}

TEST_F(RankTest, ACommitThatDoesNotMatchFailsTheAttemptAndForbidsTheCache) {
  build({.ranks = 1});
  Request request = plain_request(1, 100, 30);
  request.wrong_chain = true;
  submit_at(kReady, request);
  ASSERT_TRUE(run(60s));
  ASSERT_EQ(cluster().request(1).failures.size(), 1u);
  EXPECT_TRUE(cluster().request(1).failures[0].without_cache);
  EXPECT_EQ(cluster().request(1).failures[0].code, static_cast<uint16_t>(base::Code::kCorrupt));
  EXPECT_EQ(cluster().request(1).attempt, 2u);
  expect_oracle_tokens(1);
  expect_idle(1);
}

TEST_F(RankTest, WhenARankDiesTheOtherGoesOnWithTheSameTokens) {
  for (uint64_t seed = 1; seed <= 6; ++seed) {
    SCOPED_TRACE(seed);
    build({.seed = seed, .ranks = 2});
    sim->network().loss = seed % 2 == 0 ? 0.1 : 0.0;
    sim->network().duplicate = seed % 2 == 0 ? 0.1 : 0.0;
    submit_plain(6, 30, 400);
    sim->at(kReady + 70ms + seed * 731us, [this] { sim->kill("decode-1"); });
    ASSERT_TRUE(run(300s));
    expect_oracle_tokens_up_to(6);
    EXPECT_GT(rank(0).counters().expert_redispatched, 0u);
    sim->network() = {};
    expect_idle(1);
  }
}

TEST_F(RankTest, ARankThatDiesBetweenDispatchAndCombineHoldsNobodyUp) {
  for (const int passes : {1, 2, 20}) {
    SCOPED_TRACE(passes);
    std::optional<base::Time> died;
    const auto engine = [&]() -> std::unique_ptr<model::Engine> {
      return std::make_unique<DyingEngine>(model::make_oracle_engine(oracle), passes, [&] {
        died = sim->now();
        sim->at(sim->now().time_since_epoch(), [this] { sim->kill("decode-0"); });
      });
    };
    build({.ranks = 2, .make_engine = engine, .engine_of = "decode-0"});
    submit_plain(6, 30, 400);
    sim->run_until([&] { return died.has_value(); }, kReady + 30s);
    ASSERT_TRUE(died.has_value());
    const uint64_t steps = rank(1).counters().steps;
    sim->run_until([&] { return rank(1).counters().steps >= steps + 2; }, kReady + 60s);
    // The fake coordinator sees a death by six silent heartbeats; the rest is the view's way and
    // two steps. (The real one is told of the lost connection and needs two.)
    EXPECT_LE(sim->now() - *died, 1200ms + 100ms) << "the step waits for nothing but the view";
    ASSERT_TRUE(run(300s));
    expect_oracle_tokens_up_to(6);
    sim->run_for(5s);
    EXPECT_EQ(rank(1).ledger(), Ledger{});
  }
}

TEST_F(RankTest, ARestartedRankTakesItsShareAgain) {
  build({.ranks = 2});
  submit_plain(6, 30, 600);
  sim->at(kReady + 60ms, [this] { sim->kill("decode-1"); });
  sim->at(kReady + 90ms, [this] { sim->restart("decode-1"); });
  for (uint32_t id = 7; id <= 10; ++id) submit_at(kReady + 4s, plain_request(id, 30, 100));
  sim->run_until([] { return false; }, kReady + 5s);
  ASSERT_TRUE(run(300s));
  expect_oracle_tokens_up_to(10);
  EXPECT_GT(rank(1).counters().expert_rows_received, 0u);
  EXPECT_GT(rank(1).counters().tokens, 0u);
  expect_idle(2);
}

TEST_F(RankTest, ARankThatHangsIsGoneRoundAndStartsANewLifeWhenItWakes) {
  build({.ranks = 2});
  submit_plain(6, 30, 600);
  sim->at(kReady + 60ms, [this] { sim->pause("decode-1", 4s); });
  ASSERT_TRUE(run(300s));
  expect_oracle_tokens_up_to(6);
  sim->run_for(6s);
  EXPECT_EQ(cluster().ready_ranks(), 2u);  // it is back, as another life
  expect_idle(2);
}

TEST_F(RankTest, RanksThatCannotReachEachOtherComputeAllExpertsThemselves) {
  build({.ranks = 2});
  submit_plain(6, 30, 200);
  sim->at(kReady + 30ms, [this] {
    sim->cut("decode-0", "decode-1", 60s);
    sim->cut("decode-1", "decode-0", 60s);
  });
  ASSERT_TRUE(run(30s));
  for (uint32_t id = 1; id <= 6; ++id) {
    expect_oracle_tokens(id);
    EXPECT_EQ(cluster().request(id).attempt, 1u);
  }
  expect_idle(2);
}

TEST_F(RankTest, ANewLifeInTheMiddleOfAStepFreesEverythingAndServesOn) {
  build({.ranks = 2});
  submit_plain(6, 30, 600);
  // Cut off long enough to be declared dead, while it goes on stepping.
  sim->at(kReady + 60ms, [this] { sim->partition({"decode-1"}, 3s); });
  ASSERT_TRUE(run(300s));
  expect_oracle_tokens_up_to(6);
  for (uint32_t id = 7; id <= 10; ++id) submit_at(kReady + 40s, plain_request(id, 30, 100));
  sim->run_until([] { return false; }, kReady + 41s);
  ASSERT_TRUE(run(300s));
  for (uint32_t id = 7; id <= 10; ++id) expect_oracle_tokens(id);
  EXPECT_EQ(cluster().ready_ranks(), 2u);
  expect_idle(2);
}

}  // namespace
}  // namespace decode
