// Ranks that draft: the tokens of one process without drafts, fewer steps, and no trace of them in
// what a request sees, whatever happens to the ranks.
#include "tests/decode_node/poisoned_engine.h"
#include "tests/decode_node/rank_fixture.h"

namespace decode {
namespace {

class DraftingRankTest : public RankTest {
 protected:
  DraftingRankTest() { oracle.mtp_steps = 3; }
};

TEST_F(DraftingRankTest, OneAndTwoRanksEmitWhatOneProcessGeneratesAndDraftTheSame) {
  for (const uint32_t ranks : {1u, 2u}) {
    build({.ranks = ranks, .mtp_steps = 3, .max_rows = 100});
    for (const Request& request : mixed_requests(16, 90)) submit_at(kReady, request);
    ASSERT_TRUE(run(60s));
    model::DraftCounters alone;
    uint64_t tokens = 0;
    for (uint32_t id = 1; id <= 16; ++id) {
      expect_oracle_tokens(id);
      const Request& request = cluster().request(id);
      model::GenerateOptions options;
      options.mtp_steps = 3;
      options.adapt = true;
      alone.add(
          model::generate(cluster().engine(), request.prompt, request.sampling, options).drafts);
      tokens += request.emitted.size() - 1;
    }
    Counters all;
    for (uint32_t i = 0; i < ranks; ++i) {
      const Counters& counters = rank(i).counters();
      all.drafted += counters.drafted;
      all.accepted += counters.accepted;
      all.step_tokens += counters.step_tokens;
      all.step_sequences += counters.step_sequences;
      EXPECT_EQ(counters.batch_rows, counters.step_sequences + counters.drafted);
    }
    EXPECT_EQ(all.drafted, alone.drafted);
    EXPECT_EQ(all.accepted, alone.accepted);
    EXPECT_EQ(all.step_tokens, tokens);
    EXPECT_EQ(all.step_tokens, all.step_sequences + all.accepted);
    EXPECT_GT(all.accepted * 4, all.step_tokens) << "drafts save a quarter of the steps at least";
    expect_idle(ranks);
  }
}

TEST_F(DraftingRankTest, NoStepHasMoreRowsThanAllowedAndTheTokensAreTheSame) {
  for (const uint32_t max_rows : {1u, 4u, 11u}) {
    SCOPED_TRACE(max_rows);
    build({.ranks = 1, .max_batch = 8, .mtp_steps = 3, .max_rows = max_rows});
    uint64_t most = 0, steps = 0, rows = 0;
    for (const Request& request : mixed_requests(10, 60)) submit_at(kReady, request);
    sim->run_until([] { return false; }, kReady);
    const auto look = [&] {
      const Counters& counters = rank(0).counters();
      if (counters.steps > steps + 1) ADD_FAILURE() << "a step was not seen";
      if (counters.steps == steps + 1) most = std::max(most, counters.batch_rows - rows);
      steps = counters.steps, rows = counters.batch_rows;
      return cluster().all_done() && steps > 0;
    };
    ASSERT_TRUE(sim->run_until(look, 60s));
    for (uint32_t id = 1; id <= 10; ++id) expect_oracle_tokens(id);
    EXPECT_EQ(most, max_rows);
    EXPECT_EQ(rank(0).counters().drafted > 0, max_rows > 1);
    expect_idle(1);
  }
}

TEST_F(DraftingRankTest, LossDuplicatesAndReorderingChangeNoToken) {
  for (uint64_t seed = 1; seed <= 4; ++seed) {
    SCOPED_TRACE(seed);
    build({.seed = seed, .ranks = 2, .max_batch = 3, .mtp_steps = 3});
    disturb_network();
    for (const Request& request : mixed_requests(8)) submit_at(kReady + 2s, request);
    sim->run_until([] { return false; }, kReady + 2s + 10ms);
    ASSERT_TRUE(run(300s));
    expect_oracle_tokens_up_to(8);
    sim->network() = {};
    expect_idle(2);
  }
}

TEST_F(DraftingRankTest, ARankThatDiesInTheMiddleOfARunLosesAndDoublesNoToken) {
  for (uint64_t seed = 1; seed <= 8; ++seed) {
    SCOPED_TRACE(seed);
    build({.seed = seed, .ranks = 2, .mtp_steps = 3});
    sim->network().loss = seed % 2 == 0 ? 0.1 : 0.0;
    submit_plain(6, 30, 400);
    sim->at(kReady + 40ms + seed * 731us, [this] { sim->kill("decode-1"); });
    ASSERT_TRUE(run(300s));
    expect_oracle_tokens_up_to(6);
    EXPECT_GT(rank(0).counters().expert_redispatched, 0u);
    EXPECT_GT(rank(0).counters().accepted, 0u);
    sim->network() = {};
    expect_idle(1);
  }
}

TEST_F(DraftingRankTest, ACancelAndAContextThatEndsInARunFreeEverything) {
  oracle.max_context = 300;
  build({.ranks = 1, .mtp_steps = 3});
  for (uint32_t id = 1; id <= 6; ++id) submit_at(kReady, plain_request(id, 60 + id, 1000));
  for (uint32_t id = 1; id <= 3; ++id) cancel_at(kReady + 8ms + id * 700us, id);
  ASSERT_TRUE(run(60s));
  for (uint32_t id = 4; id <= 6; ++id) {
    expect_oracle_tokens(id);
    EXPECT_EQ(cluster().request(id).emitted.size(), 300 - 60 - id);
  }
  expect_idle(1);
}

TEST_F(DraftingRankTest, ANumericalErrorEndsItsSequenceAfterTheTokensThatAreRight) {
  oracle.vocab = 64;
  const auto engine = [this] {
    return std::make_unique<PoisonedEngine>(model::make_oracle_engine(oracle), /*token=*/33);
  };
  build({.ranks = 1, .mtp_steps = 3, .make_engine = engine});
  for (uint32_t id = 1; id <= 6; ++id) {
    Request request = plain_request(id, 12, id <= 4 ? 400 : 5);
    for (TokenId& token : request.prompt) token %= 33;
    submit_at(kReady, request);
  }
  sim->at(kReady, [this] { cluster().give_up_after = 1; });
  ASSERT_TRUE(run(60s));
  uint32_t failed = 0;
  for (uint32_t id = 1; id <= 6; ++id) {
    const Request& request = cluster().request(id);
    if (request.failures.empty()) {
      expect_oracle_tokens(id);
      continue;
    }
    ++failed;
    base::Sampling sampling = request.sampling;
    sampling.max_tokens = static_cast<uint32_t>(request.emitted.size());
    EXPECT_EQ(request.tokens(),
              model::generate(cluster().engine(), request.prompt, sampling).tokens);
    EXPECT_EQ(request.tokens().back(), 33u);
  }
  EXPECT_GE(failed, 1u);
  expect_idle(1);
}

TEST_F(DraftingRankTest, HeartbeatsTellHowDraftsFare) {
  build({.ranks = 1, .mtp_steps = 3});
  submit_plain(3, 20, 3000);
  sim->run_until([] { return false; }, kReady + 500ms);
  const proto::Heartbeat& beat = cluster().beats().begin()->second;
  std::map<std::string, double> counters(beat.counters.begin(), beat.counters.end());
  EXPECT_EQ(counters["decode_step_tokens_total"],
            counters["decode_step_sequences_total"] + counters["decode_drafts_accepted_total"]);
  EXPECT_GT(counters["decode_drafted_total"], counters["decode_drafts_accepted_total"]);
  EXPECT_LE(counters["decode_draft_length"], 3);
}

}  // namespace
}  // namespace decode
