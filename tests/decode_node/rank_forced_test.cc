// Ranks that emit what a grammar forces without a pass: the tokens of one process that computes a
// pass for each, fewer steps, and the same whatever happens to the ranks.
#include "tests/decode_node/rank_fixture.h"

namespace decode {
namespace {

using base::GrammarKind;

class ForcedRankTest : public RankTest {
 protected:
  static Request bound(uint64_t id, GrammarKind kind, std::string text) {
    Request request = plain_request(id, 5 + static_cast<uint32_t>(id % 30), 60);
    request.sampling.grammar = {kind, std::move(text)};
    request.sampling.ignore_eos = false;
    request.sampling.temperature = id % 2 == 0 ? 1.0f : 0.0f;
    request.sampling.seed = id;
    return request;
  }
  // Much is forced, with choices between; ends, lengths and settings of every kind.
  static std::vector<Request> bound_requests(uint32_t count) {
    const base::GrammarText texts[] = {
        {GrammarKind::kRegex, "(alpha|delta)[0-9]{2} and omega(!|[?])"},
        {GrammarKind::kChoice, R"(["yes","no, never"])"},
        {GrammarKind::kRegex, "[ab](a long tail of which not a single token is ever chosen)?"},
        {GrammarKind::kRegex, "([xyz]--------){20}"},
    };
    std::vector<Request> requests;
    for (uint32_t id = 1; id <= count; ++id) {
      const base::GrammarText& text = texts[id % std::size(texts)];
      Request request = bound(id, text.kind, text.text);
      base::Sampling& sampling = request.sampling;
      sampling.frequency_penalty = id % 3 == 0 ? 0.5f : 0.0f;
      sampling.repetition_penalty = id % 5 == 0 ? 1.3f : 1.0f;
      sampling.min_tokens = id % 5 == 1 ? 10 : 0;
      sampling.max_tokens = id % 7 == 0 ? 1 + id : 60;
      sampling.ignore_eos = id % 11 == 0;
      sampling.top_logprobs = id % 6 == 5 ? 2 : -1;
      if (id % 9 == 0) sampling.stop_tokens = {'n', '-'};
      requests.push_back(std::move(request));
    }
    return requests;
  }
  uint64_t forced(uint32_t ranks) {
    uint64_t sum = 0;
    for (uint32_t i = 0; i < ranks; ++i) sum += rank(i).counters().forced;
    return sum;
  }
};

TEST_F(ForcedRankTest, EmitWhatOneProcessGeneratesWithAPassForEachToken) {
  for (const uint32_t mtp_steps : {0u, 3u}) {
    oracle.mtp_steps = mtp_steps;
    for (const uint32_t ranks : {1u, 2u}) {
      SCOPED_TRACE(mtp_steps * 10 + ranks);
      build({.ranks = ranks, .max_batch = 5, .mtp_steps = mtp_steps});
      for (Request& request : bound_requests(40)) submit_at(kReady, std::move(request));
      for (Request& request : mixed_requests(4)) {
        request.id = RequestId{request.id.value + 40};
        submit_at(kReady, std::move(request));
      }
      ASSERT_TRUE(run(60s));
      uint64_t tokens = 0, sampled = 0, sequences = 0, accepted = 0;
      for (uint32_t id = 1; id <= 44; ++id) {
        expect_oracle_tokens(id);
        tokens += cluster().request(id).emitted.size() - 1;
      }
      for (uint32_t i = 0; i < ranks; ++i) {
        sampled += rank(i).counters().step_tokens;
        sequences += rank(i).counters().step_sequences;
        accepted += rank(i).counters().accepted;
      }
      EXPECT_EQ(sampled + forced(ranks), tokens) << "each is of a pass, or forced";
      EXPECT_LE(sampled, sequences + accepted) << "a draft may be the end";
      EXPECT_GT(forced(ranks) * 2, tokens);
      EXPECT_EQ(accepted > 0, mtp_steps > 0) << "drafting goes on behind forced tokens";
      expect_idle(ranks);
    }
  }
}

TEST_F(ForcedRankTest, WithoutItEveryTokenButTheFirstIsOfAPass) {
  build({.ranks = 1, .force_tokens = false});
  for (Request& request : bound_requests(12)) submit_at(kReady, std::move(request));
  ASSERT_TRUE(run(60s));
  expect_oracle_tokens_up_to(12);
  EXPECT_EQ(forced(1), 0u);
}

TEST_F(ForcedRankTest, AnAnswerThatItsFirstTokenDecidesNeedsNoPass) {
  build({.ranks = 1});
  for (uint32_t id = 1; id <= 4; ++id)
    submit_at(kReady, bound(id, GrammarKind::kChoice, R"(["yes","no"])"));
  ASSERT_TRUE(run(60s));
  for (uint32_t id = 1; id <= 4; ++id) {
    expect_oracle_tokens(id);
    EXPECT_EQ(cluster().request(id).finish, base::FinishReason::kStop);
  }
  EXPECT_EQ(rank(0).counters().steps, 0u);
  expect_idle(1);
}

TEST_F(ForcedRankTest, LogprobsNeedThePassOfEveryToken) {
  build({.ranks = 1});
  Request request = bound(1, GrammarKind::kChoice, R"(["yes","no"])");
  request.sampling.top_logprobs = 0;
  submit_at(kReady, std::move(request));
  ASSERT_TRUE(run(60s));
  expect_oracle_tokens(1);
  EXPECT_EQ(forced(1), 0u);
}

TEST_F(ForcedRankTest, ALongRunIsCutIntoSteps) {
  build({.ranks = 1});
  Request request = bound(1, GrammarKind::kRegex, "[ab]" + std::string(200, 'x') + "[yz]");
  request.sampling.max_tokens = 1000;
  request.whole = true;  // blocks never cut a run short
  submit_at(kReady, std::move(request));
  ASSERT_TRUE(run(60s));
  expect_oracle_tokens(1);
  const Counters& counters = rank(0).counters();
  // 200 tokens in runs of 32, each followed by one of its pass; y or z; the end.
  EXPECT_EQ(counters.steps, 7u);
  EXPECT_EQ(counters.forced + counters.steps, 202u);
  expect_idle(1);
}

TEST_F(ForcedRankTest, ARankThatDiesLosesAndDoublesNoToken) {
  for (uint64_t seed = 1; seed <= 8; ++seed) {
    SCOPED_TRACE(seed);
    oracle.mtp_steps = seed % 2 == 0 ? 3 : 0;
    build({.seed = seed, .ranks = 2, .max_batch = 4, .mtp_steps = oracle.mtp_steps});
    sim->network().loss = seed % 4 < 2 ? 0.1 : 0.0;
    for (uint32_t id = 1; id <= 8; ++id) {
      Request request = bound(id, GrammarKind::kRegex, "([a-f]=[0-9]\\{[xy]{3}\\}; ){40}");
      request.sampling.max_tokens = 400;
      submit_at(kReady, std::move(request));
    }
    sim->at(kReady + 40ms + seed * 731us, [this] { sim->kill("decode-1"); });
    ASSERT_TRUE(run(300s));
    expect_oracle_tokens_up_to(8);
    EXPECT_GT(rank(0).counters().forced, 0u);
    sim->network() = {};
    expect_idle(1);
  }
}

TEST_F(ForcedRankTest, ACancelAmongForcedTokensFreesEverything) {
  build({.ranks = 1, .max_batch = 3});
  for (uint32_t id = 1; id <= 9; ++id) {
    Request request = bound(id, GrammarKind::kRegex, "([xyz]--------){200}");
    request.sampling.max_tokens = 1500;
    submit_at(kReady, std::move(request));
    if (id <= 6) cancel_at(kReady + 5ms + id * 900us, id);
  }
  ASSERT_TRUE(run(60s));
  for (uint32_t id = 7; id <= 9; ++id) expect_oracle_tokens(id);
  expect_idle(1);
}

}  // namespace
}  // namespace decode
