// DraftLength: how many tokens a sequence drafts in its next round, from how its drafts have fared.
// For each step it keeps an estimate of the chance that this step's draft is accepted when those
// before it were; a step is worth its row while the product of the chances up to it is at least
// kWorth. A step that is not drafted drifts back to what new sequences begin with, so that it is
// tried again now and then. Integers: the same history gives the same lengths anywhere. It decides
// cost only, never a token.
#pragma once
#include <algorithm>
#include <array>
#include <cstdint>

namespace model {

inline constexpr uint32_t kMaxDraftSteps = 16;

class DraftLength {
 public:
  static constexpr uint32_t kOne = 1u << 16;  // certainty
  static constexpr uint32_t kFirst = kOne * 5 / 8;
  // What a drafted row has to bring: about what it costs beside a step of one row.
  static constexpr uint32_t kWorth = kOne / 4;

  explicit DraftLength(uint32_t most = 0) : most_(std::min(most, kMaxDraftSteps)) {
    chances_.fill(kFirst);
  }

  uint32_t most() const { return most_; }
  // For the next round, 0 … most.
  uint32_t steps() const;
  // A round drafted so many tokens and the first `accepted` of them were right. `drafted` may be
  // less than steps(): the end of the answer was near.
  void add(uint32_t drafted, uint32_t accepted);

 private:
  static constexpr uint32_t kRecent = 8;  // rounds that an estimate remembers, about
  static constexpr uint32_t kRest = 64;   // rounds in which an untried step is forgiven, about

  uint32_t most_;
  std::array<uint32_t, kMaxDraftSteps> chances_;  // of kOne
};

}  // namespace model
