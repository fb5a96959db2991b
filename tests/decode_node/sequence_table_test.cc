#include "decode_node/sequence_table.h"

#include <gtest/gtest.h>

namespace decode {
namespace {

using namespace std::chrono_literals;
using proto::Outcome;

model::Shape small_shape() {
  model::Shape shape;
  shape.layers = 2;
  shape.vocab = 100;
  shape.kv_row_bytes = 16;
  shape.span = 64;
  shape.max_context = 1000;
  shape.eos = {2};
  return shape;
}

proto::ReserveKv ask(uint64_t request, uint32_t attempt, uint32_t tokens = 10,
                     uint32_t max_tokens = 50) {
  proto::ReserveKv m;
  m.request = RequestId{request};
  m.attempt = attempt;
  m.tokens.assign(tokens, 7);
  m.prompt_tokens = tokens;
  m.sampling.max_tokens = max_tokens;
  m.deadline_ms = 600'000;
  return m;
}

class SequenceTableTest : public ::testing::Test {
 protected:
  // 60 tokens: one block each.
  Sequence& running(uint64_t request, uint32_t attempt = 1) {
    EXPECT_EQ(table.reserve(ask(request, attempt), now), Outcome::kOk);
    Sequence& sequence = *find(request, attempt);
    table.admit(sequence);
    return sequence;
  }
  Sequence* find(uint64_t request, uint32_t attempt) {
    return table.find({RequestId{request}, attempt});
  }
  Outcome absent(uint64_t request, uint32_t attempt) {
    return table.absent({RequestId{request}, attempt});
  }
  const std::vector<Sequence*>& next_batch() {
    return table.next_batch([this](Sequence& sequence) {
      gave_way.push_back(sequence.key.request.value);
      table.end(sequence);
    });
  }
  std::vector<uint64_t> step() {
    std::vector<uint64_t> requests;
    for (Sequence* s : next_batch()) requests.push_back(s->key.request.value);
    table.end_step();
    return requests;
  }

  Time now{};
  std::vector<uint64_t> gave_way;
  SequenceTable table{small_shape(), {.blocks = 8, .max_batch = 3, .max_sequences = 6}};
};

TEST_F(SequenceTableTest, TakesBlocksForTheTokensAndABlockMoreHoweverOftenItIsAsked) {
  const auto m = ask(1, 1, /*tokens=*/65, /*max_tokens=*/400);  // 129 tokens: 3 blocks
  EXPECT_EQ(table.reserve(m, now), Outcome::kOk);
  EXPECT_EQ(table.reserve(m, now), Outcome::kOk);
  EXPECT_EQ(table.pool().used(), 3u);
  EXPECT_EQ(table.reservations(), 1u);
}

TEST_F(SequenceTableTest, CountsEarlierAttemptsTokensTowardsMaxTokens) {
  auto m = ask(1, 2, /*tokens=*/60, /*max_tokens=*/54);  // 10 of them the prompt: 64 in all
  m.prompt_tokens = 10;
  EXPECT_EQ(table.reserve(m, now), Outcome::kOk);
  EXPECT_EQ(table.pool().used(), 1u);
  EXPECT_EQ(find(1, 2)->emitted(), 50u);
  EXPECT_EQ(find(1, 2)->most_emitted, 54u);
}

TEST_F(SequenceTableTest, NeverReservesPastTheContext) {
  EXPECT_EQ(table.reserve(ask(1, 1, 10, 0xFFFFFFFF), now), Outcome::kNoRoom);  // 1000: 16 blocks
  EXPECT_EQ(table.reserve(ask(1, 1, 998, 0xFFFFFFFF), now), Outcome::kNoRoom);
  EXPECT_EQ(table.reserve(ask(1, 1, 1000, 1), now), Outcome::kCorrupt);
}

TEST_F(SequenceTableTest, RefusalForLackOfRoomChangesNothing) {
  auto most = ask(1, 1, 300, 100);
  most.whole = true;
  EXPECT_EQ(table.reserve(most, now), Outcome::kOk);  // 7 of 8 blocks
  EXPECT_EQ(table.reserve(ask(2, 1, 100, 1), now), Outcome::kNoRoom);
  EXPECT_EQ(table.pool().used(), 7u);
  EXPECT_EQ(table.size(), 1u);
  EXPECT_EQ(absent(2, 1), Outcome::kUnknown);
  table.end(*find(1, 1));
  EXPECT_EQ(table.reserve(ask(2, 1, 100, 1), now), Outcome::kOk);  // the same attempt asks again
}

TEST_F(SequenceTableTest, TheTableIsBounded) {
  for (uint64_t request = 1; request <= 6; ++request) {
    EXPECT_EQ(table.reserve(ask(request, 1), now), Outcome::kOk);
  }
  EXPECT_EQ(table.reserve(ask(7, 1), now), Outcome::kNoRoom);
  EXPECT_EQ(table.pool().used(), 6u);
}

TEST_F(SequenceTableTest, RefusesValuesOutOfTheirRange) {
  auto token = ask(1, 1), none = ask(1, 1, 0), prompt = ask(1, 1), all_out = ask(1, 1),
       no_prompt = ask(1, 1), nobody = ask(0, 1), grammar = ask(1, 1);
  grammar.sampling.grammar_kind = 200;
  token.tokens[3] = 100;
  prompt.prompt_tokens = 11;
  no_prompt.prompt_tokens = 0;
  all_out.prompt_tokens = 4;
  all_out.sampling.max_tokens = 6;
  for (const auto& m : {token, none, prompt, all_out, no_prompt, nobody, grammar}) {
    EXPECT_EQ(table.reserve(m, now), Outcome::kCorrupt);
  }
  EXPECT_EQ(table.pool().used(), 0u);
}

TEST_F(SequenceTableTest, AHigherAttemptReplacesALowerOne) {
  EXPECT_EQ(table.reserve(ask(1, 1), now), Outcome::kOk);
  EXPECT_EQ(table.reserve(ask(1, 3), now), Outcome::kOk);
  EXPECT_EQ(table.pool().used(), 1u);
  EXPECT_EQ(find(1, 1), nullptr);
  EXPECT_EQ(absent(1, 1), Outcome::kStale);
  EXPECT_EQ(table.reserve(ask(1, 2), now), Outcome::kStale);
  EXPECT_EQ(table.reserve(ask(1, 1), now), Outcome::kStale);
  EXPECT_EQ(absent(1, 4), Outcome::kUnknown);
}

TEST_F(SequenceTableTest, AReplacedAttemptKeepsItsBlocksToTheEndOfItsStep) {
  running(1, 1);
  ASSERT_EQ(next_batch().size(), 1u);
  EXPECT_EQ(table.reserve(ask(1, 2), now), Outcome::kOk);
  EXPECT_EQ(table.pool().used(), 2u);
  EXPECT_EQ(table.running(), 0u);
  EXPECT_EQ(table.reservations(), 1u);
  EXPECT_EQ(find(1, 1), nullptr);
  table.end_step();
  EXPECT_EQ(table.pool().used(), 1u);
  EXPECT_NE(find(1, 2), nullptr);
}

TEST_F(SequenceTableTest, ACancelFreesAtOnceOrAtTheEndOfTheStep) {
  running(1);
  EXPECT_EQ(next_batch().size(), 1u);
  running(2);
  EXPECT_EQ(table.reserve(ask(3, 1), now), Outcome::kOk);
  for (uint64_t request : {1, 2, 3}) table.cancel(RequestId{request}, 1);
  EXPECT_EQ(table.pool().used(), 1u);  // the first is in the step
  EXPECT_EQ(table.running() + table.reservations(), 0u);
  table.cancel(RequestId{1}, 1);  // twice is once
  table.end_step();
  EXPECT_EQ(table.pool().used(), 0u);
  EXPECT_EQ(table.size(), 0u);
  EXPECT_TRUE(next_batch().empty());
}

TEST_F(SequenceTableTest, ACancelSparesHigherAttemptsAndOtherRequests) {
  running(1, 5);
  running(2, 1);
  table.cancel(RequestId{1}, 4);
  EXPECT_NE(find(1, 5), nullptr);
  EXPECT_NE(find(2, 1), nullptr);
}

TEST_F(SequenceTableTest, AReservationThatComesAfterItsCancelIsStale) {
  table.cancel(RequestId{1}, 2);
  EXPECT_EQ(table.reserve(ask(1, 2), now), Outcome::kStale);
  EXPECT_EQ(table.reserve(ask(1, 3), now), Outcome::kOk);
}

TEST_F(SequenceTableTest, EndedAttemptsAreRememberedWithinABound) {
  running(1);
  table.end(*find(1, 1));
  EXPECT_EQ(absent(1, 1), Outcome::kStale);
  EXPECT_EQ(absent(1, 2), Outcome::kUnknown);
  for (uint64_t i = 0; i < SequenceTable::kEndedMost; ++i) table.cancel(RequestId{100 + i}, 1);
  EXPECT_EQ(absent(1, 1), Outcome::kUnknown);
  EXPECT_EQ(absent(100, 1), Outcome::kStale);
}

TEST_F(SequenceTableTest, AllRunWhenTheyFitAndTakeTurnsWhenTheyDoNot) {
  running(1), running(2), running(3);
  EXPECT_EQ(step(), (std::vector<uint64_t>{1, 2, 3}));
  EXPECT_EQ(step(), (std::vector<uint64_t>{1, 2, 3}));
  running(4), running(5);
  std::map<uint64_t, int> steps;
  for (int i = 0; i < 5; ++i) {
    const auto batch = step();
    EXPECT_EQ(batch.size(), 3u);
    for (uint64_t request : batch) ++steps[request];
  }
  for (uint64_t request : {1, 2, 3, 4, 5}) EXPECT_EQ(steps[request], 3) << request;
  table.end(*find(2, 1));
  table.end(*find(4, 1));
  EXPECT_EQ(step(), (std::vector<uint64_t>{1, 3, 5}));
}

// Grown by hand, as steps would.
void grow(Sequence& sequence, size_t tokens) { sequence.tokens.resize(tokens, 7); }

TEST_F(SequenceTableTest, OneThatIsWholeHasBlocksForItsLongestAnswer) {
  auto m = ask(1, 1, /*tokens=*/65, /*max_tokens=*/400);  // 465 tokens: 8 blocks
  m.whole = true;
  EXPECT_EQ(table.reserve(m, now), Outcome::kOk);
  EXPECT_EQ(table.pool().used(), 8u);
}

TEST_F(SequenceTableTest, BlocksGrowWithTheTokensThatTheNextStepsMayAdd) {
  SequenceTable eight{small_shape(), {.blocks = 8, .max_batch = 3, .tokens_ahead = 8}};
  EXPECT_EQ(eight.reserve(ask(1, 1, 10, 400), now), Outcome::kOk);  // 74 tokens: 2 blocks
  Sequence& sequence = *eight.find({RequestId{1}, 1});
  eight.admit(sequence);
  const auto used = [&](size_t tokens) {
    grow(sequence, tokens);
    eight.next_batch([](Sequence&) { FAIL(); });
    eight.end_step();
    return eight.pool().used();
  };
  EXPECT_EQ(used(121), 2u);  // rows 120 to 127 are to come
  EXPECT_EQ(used(122), 3u);
  EXPECT_EQ(used(410 - 9), 7u);
  EXPECT_EQ(used(409), 7u);  // 410 tokens at most: 7 blocks
}

TEST_F(SequenceTableTest, WhoComesInLeavesRoomForThoseWhoAreHereToGrow) {
  EXPECT_EQ(table.reserve(ask(1, 1, 120, 300), now), Outcome::kOk);  // 184 tokens: 3 of 8 blocks
  EXPECT_EQ(table.reserve(ask(2, 1, 120, 300), now), Outcome::kOk);
  EXPECT_EQ(table.pool().used(), 6u);
  EXPECT_EQ(table.reserve(ask(3, 1, 60, 300), now), Outcome::kOk);  // 124 tokens: 2 blocks
  table.end(*find(3, 1));
  grow(*find(1, 1), 130);  // may come to a fourth block soon
  EXPECT_EQ(table.reserve(ask(4, 1, 60, 300), now), Outcome::kNoRoom);
  EXPECT_EQ(table.pool().used(), 6u);
}

TEST_F(SequenceTableTest, WhenBlocksAreShortTheLastInOrderGivesWay) {
  for (uint64_t request : {1, 2, 3}) {
    EXPECT_EQ(table.reserve(ask(request, 1, 10, 400), now), Outcome::kOk);  // 2 blocks each
    table.admit(*find(request, 1));
  }
  find(2, 1)->priority = 5;
  grow(*find(1, 1), 300);  // 5 blocks
  EXPECT_EQ(step(), (std::vector<uint64_t>{1, 3}));
  EXPECT_EQ(gave_way, (std::vector<uint64_t>{2}));  // the least of all, though 3 came later
  EXPECT_EQ(table.pool().used(), 7u);
  grow(*find(1, 1), 400);
  EXPECT_EQ(step(), (std::vector<uint64_t>{1}));
  EXPECT_EQ(gave_way, (std::vector<uint64_t>{2, 3}));
  EXPECT_EQ(table.pool().used(), 7u);
}

TEST_F(SequenceTableTest, TheFirstInOrderNeverGivesWayHoweverMuchOthersWant) {
  for (uint64_t request : {1, 2}) {
    EXPECT_EQ(table.reserve(ask(request, 1, 10, 400), now), Outcome::kOk);
    table.admit(*find(request, 1));
  }
  grow(*find(1, 1), 250);
  EXPECT_EQ(step(), (std::vector<uint64_t>{1, 2}));  // 4 and 2 blocks
  grow(*find(2, 1), 330);                            // 6 blocks: there are 4
  EXPECT_EQ(step(), (std::vector<uint64_t>{1}));
  EXPECT_EQ(gave_way, (std::vector<uint64_t>{2}));
  EXPECT_EQ(table.pool().used(), 4u);
}

TEST_F(SequenceTableTest, AReservationGivesWayToo) {
  EXPECT_EQ(table.reserve(ask(1, 1, 10, 400), now), Outcome::kOk);
  EXPECT_EQ(table.reserve(ask(2, 1, 10, 400), now), Outcome::kOk);
  table.admit(*find(1, 1));
  grow(*find(1, 1), 400);
  EXPECT_EQ(step(), (std::vector<uint64_t>{1}));
  EXPECT_EQ(gave_way, (std::vector<uint64_t>{2}));
}

TEST_F(SequenceTableTest, WhoFindsNobodyToGiveWayStaysOutUntilAWholeOneHasEnded) {
  auto whole = ask(2, 1, 10, 300);  // 5 blocks
  whole.whole = true;
  EXPECT_EQ(table.reserve(ask(1, 1, 10, 400), now), Outcome::kOk);
  EXPECT_EQ(table.reserve(whole, now), Outcome::kOk);
  for (uint64_t request : {1, 2}) table.admit(*find(request, 1));
  grow(*find(1, 1), 250);
  EXPECT_EQ(step(), (std::vector<uint64_t>{2}));
  EXPECT_TRUE(gave_way.empty());
  table.end(*find(2, 1));
  EXPECT_EQ(step(), (std::vector<uint64_t>{1}));
}

TEST_F(SequenceTableTest, OneThatEndsBetweenTwoStepsOfABatchRunsNoMoreAndKeepsItsBlocksToTheEnd) {
  running(1), running(2);
  EXPECT_EQ(next_batch().size(), 2u);
  table.end(*find(1, 1));
  ASSERT_EQ(table.still_running().size(), 1u);
  EXPECT_EQ(table.still_running()[0]->key.request.value, 2u);
  EXPECT_EQ(table.pool().used(), 2u);
  table.end_step();
  EXPECT_EQ(table.pool().used(), 1u);
}

TEST_F(SequenceTableTest, BlocksThatAreOfferedStayUntilTheyAreCopied) {
  Sequence& sequence = running(1);
  EXPECT_EQ(next_batch().size(), 1u);
  sequence.offering = true;
  table.end(sequence);
  table.end_step();
  EXPECT_EQ(table.pool().used(), 1u);
  EXPECT_EQ(table.running() + table.reservations(), 0u);
  table.offered(sequence);
  EXPECT_EQ(table.pool().used(), 0u);
  EXPECT_EQ(table.size(), 0u);
}

TEST_F(SequenceTableTest, ReservationsFallSilentAndEveryAttemptHasADeadline) {
  auto soon = ask(3, 1);
  soon.deadline_ms = 10'000;
  EXPECT_EQ(table.reserve(ask(1, 1), now), Outcome::kOk);
  running(2);
  EXPECT_EQ(table.reserve(soon, now), Outcome::kOk);
  EXPECT_TRUE(table.expired(now + 9s).overdue.empty());
  ASSERT_EQ(table.expired(now + 10s).overdue.size(), 1u);
  EXPECT_EQ(table.expired(now + 10s).overdue[0]->key.request.value, 3u);
  EXPECT_TRUE(table.expired(now + 59s).silent.empty());
  ASSERT_EQ(table.expired(now + 60s).silent.size(), 1u);  // a running one is never silent
  EXPECT_EQ(table.expired(now + 60s).silent[0]->key.request.value, 1u);
  find(1, 1)->heard = now + 30s;
  EXPECT_TRUE(table.expired(now + 60s).silent.empty());
  EXPECT_EQ(table.expired(now + 600s).overdue.size(), 3u);
}

TEST_F(SequenceTableTest, ANewLifeStartsEmptyOnceTheStepIsOver) {
  running(1);
  running(2);
  EXPECT_EQ(table.reserve(ask(3, 1), now), Outcome::kOk);
  EXPECT_EQ(next_batch().size(), 2u);
  table.clear();
  EXPECT_EQ(table.pool().used(), 2u);
  EXPECT_EQ(table.reserve(ask(4, 1), now), Outcome::kOk);  // the new life may begin meanwhile
  table.end_step();
  EXPECT_EQ(table.pool().used(), 1u);
  EXPECT_EQ(table.size(), 1u);
}

TEST_F(SequenceTableTest, ASequenceFinishesByEosByMaxTokensOrAtTheEndOfTheContext) {
  Sequence& sequence = running(1);
  const std::vector<TokenId> eos = {2};
  EXPECT_EQ(finish_of(sequence, eos), base::FinishReason::kNone);
  sequence.tokens.push_back(2);
  EXPECT_EQ(finish_of(sequence, eos), base::FinishReason::kStop);
  sequence.tokens.assign(10 + 50, 7);
  EXPECT_EQ(finish_of(sequence, eos), base::FinishReason::kLength);
  sequence.most_emitted = 20;
  sequence.tokens.assign(10 + 19, 7);
  EXPECT_EQ(finish_of(sequence, eos), base::FinishReason::kNone);
  sequence.tokens.push_back(7);
  EXPECT_EQ(finish_of(sequence, eos), base::FinishReason::kLength);
}

TEST_F(SequenceTableTest, HoldsOnlyTheTailOfASequenceInShards) {
  auto m = ask(1, 1, /*tokens=*/256, /*max_tokens=*/10);
  m.shares = {{base::NodeId{5}, 0, 64, 8}, {base::NodeId{6}, 64, 128, 8}};
  ASSERT_EQ(table.reserve(m, now), Outcome::kOk);
  EXPECT_EQ(table.pool().used(), 3u);  // 138 tokens
  const Sequence& sequence = *find(1, 1);
  EXPECT_EQ(sequence.kv(table.pool()).begin(), 128u);
  EXPECT_EQ(sequence.away, (std::vector<model::KvRange>{{0, 64}, {64, 128}}));
  EXPECT_EQ(sequence.holders[1], base::NodeId{6});
}

TEST_F(SequenceTableTest, RefusesSharesThatMakeNoSense) {
  using Shares = std::vector<proto::KvShare>;
  const base::NodeId a{5}, b{6};
  for (const Shares& shares :
       {Shares{{a, 64, 128, 8}}, Shares{{a, 0, 64, 8}, {b, 128, 256, 8}}, Shares{{a, 0, 100, 8}},
        Shares{{{}, 0, 64, 8}}, Shares{{a, 0, 256, 8}}, Shares{{a, 0, 192, 8}},
        Shares{{a, 0, 0, 8}}}) {
    auto m = ask(1, 1, /*tokens=*/300, /*max_tokens=*/10);
    m.shares = shares;
    EXPECT_EQ(table.reserve(m, now), Outcome::kCorrupt);
  }
  EXPECT_EQ(table.pool().used(), 0u);
}

}  // namespace
}  // namespace decode
