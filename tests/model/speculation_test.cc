// The bookkeeping of speculation, without a model.
#include "model/speculation.h"

#include <gtest/gtest.h>

#include <limits>

#include "model/draft_sets.h"

namespace model {
namespace {

using base::FinishReason;

constexpr size_t kVocab = 16;
const std::vector<TokenId> kEos{2};

// Rows of logits whose greedy tokens are `tokens`.
std::vector<float> logits_for(std::initializer_list<TokenId> tokens) {
  std::vector<float> logits(tokens.size() * kVocab, 0.0f);
  size_t row = 0;
  for (TokenId token : tokens) logits[row++ * kVocab + token] = 5.0f;
  return logits;
}
base::Sampling greedy(uint32_t max_tokens = 100) {
  base::Sampling sampling;
  sampling.temperature = 0;
  sampling.max_tokens = max_tokens;
  return sampling;
}
Verified verify(const std::vector<TokenId>& drafts, const std::vector<float>& logits,
                const base::Sampling& sampling, const std::vector<TokenId>& emitted = {}) {
  return verify_drafts(drafts, SampleInput{logits, {}, emitted, kEos}, sampling);
}
using Tokens = std::vector<TokenId>;

TEST(VerifyDrafts, KeepsDraftsWhileTheyAreWhatTheTargetSamplesAndOneTokenMore) {
  const std::vector<float> logits = logits_for({4, 5, 6, 7});
  struct Case {
    Tokens drafts, emitted;
    uint32_t accepted;
  };
  for (const Case& c : {Case{{4, 5, 6}, {4, 5, 6, 7}, 3}, Case{{4, 5, 9}, {4, 5, 6}, 2},
                        Case{{4, 9, 6}, {4, 5}, 1}, Case{{9, 5, 6}, {4}, 0}}) {
    const Verified out = verify(c.drafts, logits, greedy());
    EXPECT_EQ(out.tokens, c.emitted);
    EXPECT_EQ(out.accepted, c.accepted);
    EXPECT_EQ(out.finish, FinishReason::kNone);
  }
  const Verified plain = verify({}, logits_for({4}), greedy());
  EXPECT_EQ(plain.tokens, Tokens{4});
}

TEST(VerifyDrafts, EndsInsideAnAcceptedRunWhereTheSequenceEnds) {
  const std::vector<float> logits = logits_for({4, 2, 6, 7});
  Verified out = verify({4, 2, 6}, logits, greedy());
  EXPECT_EQ(out.tokens, (Tokens{4, 2}));
  EXPECT_EQ(out.finish, FinishReason::kStop);
  EXPECT_EQ(out.accepted, 2u);
  out = verify({4, 2, 6}, logits, greedy(/*max_tokens=*/4), /*emitted=*/{8, 8, 8});
  EXPECT_EQ(out.tokens, Tokens{4});
  EXPECT_EQ(out.finish, FinishReason::kLength);
  base::Sampling barred = greedy();
  barred.min_tokens = 3;
  out = verify({4, 0, 6}, logits, barred);
  EXPECT_EQ(out.tokens, (Tokens{4, 0, 6, 7}))
      << "EOS is barred at index 1, then the lowest id wins";
}

TEST(VerifyDrafts, PenaltiesSeeTheDraftsAcceptedBefore) {
  std::vector<float> logits = logits_for({4, 4, 4});
  for (size_t row = 0; row < 3; ++row) logits[row * kVocab + 9] = 4.0f;
  base::Sampling sampling = greedy();
  sampling.frequency_penalty = 0.6f;
  // 5 − 0.6 > 4 but 5 − 1.2 < 4.
  EXPECT_EQ(verify({4, 4}, logits, sampling).tokens, (Tokens{4, 4, 9}));
}

TEST(VerifyDrafts, NeverSamplesWhatIsNotFiniteNorLooksPastARejection) {
  std::vector<float> logits = logits_for({4, 5, 6});
  logits[kVocab + 3] = std::numeric_limits<float>::quiet_NaN();
  const Verified out = verify({4, 5}, logits, greedy());
  EXPECT_EQ(out.tokens, Tokens{4});
  EXPECT_EQ(out.finish, FinishReason::kError);
  const Verified rejected = verify({9, 5}, logits, greedy());
  EXPECT_EQ(rejected.tokens, Tokens{4});
  EXPECT_EQ(rejected.finish, FinishReason::kNone);
}

TEST(DraftCounters, CountRoundsAndHowFarEachWasRight) {
  DraftCounters a, b;
  a.add(3, 3);
  a.add(3, 1);
  a.add(0, 0);  // a pass without drafts is no round
  b.add(2, 0);
  a.add(b);
  EXPECT_EQ(a.rounds, 3u);
  EXPECT_EQ(a.drafted, 8u);
  EXPECT_EQ(a.accepted, 4u);
  EXPECT_EQ(a.accepted_at[0], 2u);
  EXPECT_EQ(a.accepted_at[2], 1u);
}

// Two segments, of 2 and of 1 rows: positions 10, 11 and 5.
Pass fresh_pass() {
  Pass pass;
  pass.tokens = {1, 1, 1};
  Segment segment;
  segment.count = 2;
  segment.position = 10;
  pass.segments.push_back(segment);
  segment.row = 2;
  segment.count = 1;
  segment.position = 5;
  pass.segments.push_back(segment);
  return pass;
}

TEST(DraftSets, AreThoseOfTheLastAcceptedRowAndWhatCameAfter) {
  DraftSets sets;
  sets.keep(fresh_pass(), {{0, 10}, {0, 3, 11}, {}});
  Pass step = fresh_pass();
  step.tokens = {1, 1};
  step.segments[0].count = 1;
  step.segments[0].position = 13;
  step.segments[1].row = 1;
  step.segments[1].position = 6;
  const PositionSets append = sets.reuse(step, DraftIndex::kReuseAppend);
  EXPECT_EQ(append[0], (std::vector<uint32_t>{0, 3, 11, 12, 13}));
  EXPECT_EQ(append[1], (std::vector<uint32_t>{0, 1, 2, 3, 4, 5, 6})) << "no set: all positions";
  const PositionSets exact = sets.reuse(step, DraftIndex::kReuseExact);
  EXPECT_EQ(exact[0], (std::vector<uint32_t>{0, 3, 11}));
  // Fewer segments than before: the first ones.
  step.tokens = {1};
  step.segments.pop_back();
  EXPECT_EQ(sets.reuse(step, DraftIndex::kReuseAppend).size(), 1u);
}

}  // namespace
}  // namespace model
