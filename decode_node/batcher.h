// Batcher: who runs in the next steps, who gives way when KV is short, and how many drafts a step
// has rows for. Choices only: SequenceTable owns the sequences and does what is chosen.
//
// Sequences have an order: the lower priority number first, of equals the earlier request (requests
// are numbered as they are admitted, whatever the attempt). Nothing here depends on time.
#pragma once
#include <functional>
#include <map>
#include <span>
#include <vector>

#include "decode_node/sequence.h"

namespace decode {

class Batcher {
 public:
  explicit Batcher(uint32_t max_batch) : max_batch_(max_batch) {}

  // At most max_batch of the running ones (by ticket), going round when there are more.
  void choose(const std::map<uint64_t, Sequence*>& running, std::vector<Sequence*>& chosen);

 private:
  const uint32_t max_batch_;
  uint64_t turn_ = 0;  // ticket that was chosen last
};

// Whether a is served before b.
bool goes_before(const Sequence& a, const Sequence& b);

// Who gives way among these: the last in order of those that may (not `whole`), but never the first
// of them, so that somebody always goes on. Null: nobody.
Sequence* who_gives_way(std::span<Sequence* const> sequences);

// Takes drafts away until one row for each member and its drafts are at most `rows`, or no draft is
// left: from whoever has most, of equals from the last.
void trim_drafts(std::span<uint32_t> drafts, uint32_t rows);

}  // namespace decode
