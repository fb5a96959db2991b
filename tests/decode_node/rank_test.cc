// What a decode rank does when nothing goes wrong, and with requests that end early.
#include "tests/decode_node/poisoned_engine.h"
#include "tests/decode_node/rank_fixture.h"

namespace decode {
namespace {

TEST_F(RankTest, OneRankEmitsWhatOneProcessGenerates) {
  build({.ranks = 1});
  for (const Request& request : mixed_requests(12)) submit_at(kReady, request);
  ASSERT_TRUE(run(60s));
  expect_oracle_tokens_up_to(12);
  EXPECT_EQ(rank(0).counters().expert_calls, 0u);
  expect_idle(1);
}

TEST_F(RankTest, TwoRanksShareTheExpertsAndEmitTheSame) {
  build({.ranks = 2});
  for (const Request& request : mixed_requests(12)) submit_at(kReady, request);
  ASSERT_TRUE(run(60s));
  expect_oracle_tokens_up_to(12);
  for (uint32_t i = 0; i < 2; ++i) {
    EXPECT_GT(rank(i).counters().expert_rows_sent, 0u);
    EXPECT_GT(rank(i).counters().expert_rows_received, 0u);
  }
  // One message per peer, layer and step at most.
  const Counters& counters = rank(0).counters();
  EXPECT_LE(counters.expert_calls, counters.steps * oracle.layers);
  expect_idle(2);
}

TEST_F(RankTest, TheBatchNeverGrowsPastItsBoundAndAllGetTheirTurn) {
  build({.ranks = 1, .max_batch = 3});
  submit_plain(10, 20, 50);
  ASSERT_TRUE(run(60s));
  expect_oracle_tokens_up_to(10);
  const Counters& counters = rank(0).counters();
  EXPECT_EQ(counters.batch_rows, 10u * 49u);  // the first token is the prefill's
  EXPECT_LE(counters.batch_rows, counters.steps * 3);
  expect_idle(1);
}

TEST_F(RankTest, ASequenceOfOneTokenNeverEntersTheBatch) {
  build({.ranks = 1});
  submit_at(kReady, plain_request(1, 5, 1));
  ASSERT_TRUE(run(60s));
  expect_oracle_tokens(1);
  EXPECT_EQ(rank(0).counters().steps, 0u);
  expect_idle(1);
}

TEST_F(RankTest, ASequenceEndsWhereTheContextEnds) {
  oracle.max_context = 100;
  build({.ranks = 1});
  submit_at(kReady, plain_request(1, 60, 1000));
  ASSERT_TRUE(run(60s));
  EXPECT_EQ(cluster().request(1).emitted.size(), 40u);
  expect_oracle_tokens(1);
  expect_idle(1);
}

TEST_F(RankTest, MoreRequestsThanRoomWaitAndAllEnd) {
  // 4 layers × 16 bytes × 64 tokens = 4 KiB a block; a request needs 2.
  build({.ranks = 1, .kv_bytes = 5 * 4096});
  submit_plain(9, 40, 60);
  ASSERT_TRUE(run(60s));
  expect_oracle_tokens_up_to(9);
  expect_idle(1);
}

TEST_F(RankTest, ACancelledRequestIsGoneAtTheEndOfItsStepAndOthersDoNotNotice) {
  build({.ranks = 2});
  submit_plain(4, 20, 2000);
  for (uint32_t id = 5; id <= 6; ++id) submit_at(kReady, plain_request(id, 20, 200));
  for (uint32_t id = 1; id <= 4; ++id) {
    cancel_at(kReady + 100ms + id * 1100us, id);  // all over a step
  }
  ASSERT_TRUE(run(60s));
  for (uint32_t id = 1; id <= 4; ++id) {
    const Request& request = cluster().request(id);
    EXPECT_GT(request.emitted.size(), 10u);
    EXPECT_LT(request.emitted.size(), 2000u);
  }
  for (uint32_t id = 5; id <= 6; ++id) expect_oracle_tokens(id);
  expect_idle(2);
}

TEST_F(RankTest, ACancelWhileKvArrivesFreesTheReservation) {
  build({.ranks = 1});
  Request request = plain_request(1, 1500, 10);
  request.chunk = 1;
  submit_at(kReady, request);
  cancel_at(kReady + 20ms, 1);
  sim->run_until([] { return false; }, kReady + 15ms);
  EXPECT_EQ(rank(0).ledger().reservations, 1u);
  EXPECT_GT(rank(0).counters().kv_rows_received, 0u);
  sim->run_until([] { return false; }, kReady + 22ms);
  EXPECT_EQ(rank(0).ledger().blocks_used, 0u);
  EXPECT_EQ(rank(0).ledger().reservations, 0u);
  ASSERT_TRUE(run(60s));
  EXPECT_TRUE(cluster().request(1).emitted.empty());
  expect_idle(1);
}

TEST_F(RankTest, ASequenceThatNobodyWantsIsDroppedByTheAnswerToItsTokens) {
  build({.ranks = 1});
  submit_at(kReady, plain_request(1, 20, 3000));
  submit_at(kReady, plain_request(2, 20, 100));
  sim->at(kReady + 50ms, [this] { cluster().unwanted.insert(RequestId{1}); });
  ASSERT_TRUE(run(60s));
  expect_oracle_tokens(2);
  sim->run_for(50ms);
  EXPECT_EQ(rank(0).ledger().running, 0u);
  EXPECT_EQ(rank(0).ledger().blocks_used, 0u);
  EXPECT_GE(rank(0).counters().stale, 1u);
}

TEST_F(RankTest, ANumericalErrorEndsItsSequenceAlone) {
  oracle.vocab = 64;  // so that the poisoned token comes soon
  const auto engine = [this] {
    return std::make_unique<PoisonedEngine>(model::make_oracle_engine(oracle), /*token=*/33);
  };
  build({.ranks = 1, .make_engine = engine});
  for (uint32_t id = 1; id <= 6; ++id) {
    Request request = plain_request(id, 12, id <= 2 ? 400 : 5);
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
    EXPECT_EQ(request.failures[0].code, static_cast<uint16_t>(base::Code::kInternal));
    EXPECT_EQ(request.failures[0].what.rfind("numerical_error", 0), 0u);
    EXPECT_FALSE(request.failures[0].without_cache);
    // What was emitted before is right, and ends with the token that has no successor.
    base::Sampling sampling = request.sampling;
    sampling.max_tokens = static_cast<uint32_t>(request.emitted.size());
    EXPECT_EQ(request.tokens(),
              model::generate(cluster().engine(), request.prompt, sampling).tokens);
    EXPECT_EQ(request.tokens().back(), 33u);
  }
  EXPECT_GE(failed, 1u);
  EXPECT_LE(failed, 5u);
  expect_idle(1);
}

TEST_F(RankTest, StepsPauseWhileTheCoordinatorAcknowledgesNothing) {
  build({.ranks = 1});
  submit_at(kReady, plain_request(1, 20, 300));
  sim->at(kReady, [this] { cluster().answer_tokens = false; });
  sim->run_until([] { return false; }, kReady + 2s);
  EXPECT_EQ(rank(0).ledger().outbox, TokenOutbox::kMost);
  EXPECT_EQ(rank(0).counters().tokens, TokenOutbox::kMost);
  sim->at(kReady + 2s, [this] { cluster().answer_tokens = true; });
  ASSERT_TRUE(run(60s));
  expect_oracle_tokens(1);
  expect_idle(1);
}

TEST_F(RankTest, AReservationThatNothingComesForIsDroppedAfterAMinute) {
  build({.ranks = 1});
  Request request = plain_request(1, 20, 5);
  request.abandoned = true;
  submit_at(kReady, request);
  sim->run_until([] { return false; }, kReady + 59s);
  EXPECT_EQ(rank(0).ledger().reservations, 1u);
  ASSERT_TRUE(run(62s));
  ASSERT_EQ(cluster().request(1).failures.size(), 1u);
  EXPECT_EQ(cluster().request(1).failures[0].code, static_cast<uint16_t>(base::Code::kDeadline));
  expect_oracle_tokens(1);
  expect_idle(1);
}

TEST_F(RankTest, NoAttemptOutlivesItsDeadline) {
  build({.ranks = 1});
  Request waiting = plain_request(1, 20, 5), running = plain_request(2, 20, 4000);
  waiting.abandoned = true;
  waiting.deadline_ms = running.deadline_ms = 200;
  submit_at(kReady, waiting);
  submit_at(kReady, running);
  sim->run_until([] { return false; }, kReady + 150ms);
  EXPECT_EQ(rank(0).ledger().reservations, 1u);
  EXPECT_EQ(rank(0).ledger().running, 1u);
  sim->run_until([] { return false; }, kReady + 1s);
  EXPECT_EQ(rank(0).ledger(), Ledger{});
  EXPECT_LT(cluster().request(2).emitted.size(), 3000u);
}

TEST_F(RankTest, HeartbeatsTellTheLoad) {
  build({.ranks = 1});
  for (uint32_t id = 1; id <= 3; ++id) {
    Request request = plain_request(id, 20, 3000);
    request.whole = true;
    submit_at(kReady, request);
  }
  sim->run_until([] { return false; }, kReady + 500ms);
  const proto::Heartbeat& beat = cluster().beats().begin()->second;
  EXPECT_EQ(beat.state, proto::NodeState::kReady);
  EXPECT_EQ(beat.running, 3u);
  EXPECT_EQ(beat.waiting, 0u);
  EXPECT_EQ(beat.blocks_used, 3u * 48u);
  EXPECT_EQ(beat.blocks_total, (4u << 20) / 4096);
  std::map<std::string, double> counters(beat.counters.begin(), beat.counters.end());
  EXPECT_EQ(counters["decode_batch_rows_total"] + 3, counters["decode_tokens_total"]);
  EXPECT_GT(counters["decode_steps_total"], 100);
}

}  // namespace
}  // namespace decode
