// KvIntake: what has arrived of one reservation's KV. Token ranges per layer with their digests,
// then the stages' commits; it holds no KV itself and knows no messages but the commit.
//
// A layer is complete when its ranges cover all tokens; ranges of a layer never overlap. A
// committed layer's chain equals what its stage sent, so its ranges are forgotten and every further
// range of it is a repetition.
#pragma once
#include <cstdint>
#include <map>
#include <vector>

#include "base/hash.h"
#include "proto/request.h"

namespace decode {

class KvIntake {
 public:
  KvIntake() = default;
  // Rows of positions [begin, tokens).
  KvIntake(uint32_t layers, uint32_t tokens, uint32_t begin = 0)
      : begin_(begin), tokens_(tokens), layers_(layers) {}

  enum class Range : uint8_t {
    kNew,        // take the rows in, then received()
    kDuplicate,  // here already: acknowledge again, change nothing
    kConflict,   // out of bounds, or overlapping other rows, or other bytes for the same rows
  };
  Range classify(uint32_t layer, uint32_t begin, uint32_t count, const base::Hash128& digest) const;
  // REQUIRES: classify() said kNew.
  void received(uint32_t layer, uint32_t begin, uint32_t count, const base::Hash128& digest);

  enum class Commit : uint8_t {
    kAccepted,   // its layers are committed (perhaps again)
    kMalformed,  // ranges or counts make no sense; nothing was changed
    kMismatch,   // what arrived is not what the stage sent
  };
  // A stage sends its commit after the last acknowledgement: a gap is a mismatch.
  Commit commit(const proto::KvCommit& commit);

  bool all_committed() const { return committed_ == layers_.size(); }
  // The chain of a layer's digests in token order.
  base::Hash128 chain(uint32_t layer) const;

 private:
  struct Rows {
    uint32_t count;
    base::Hash128 digest;
  };
  struct Layer {
    std::map<uint32_t, Rows> ranges;  // by first token
    uint32_t tokens = 0;              // in them
    bool committed = false;
    base::Hash128 chain;  // once committed
  };
  bool matches(uint32_t layer, const base::Hash128& chain) const;

  uint32_t begin_ = 0, tokens_ = 0;
  std::vector<Layer> layers_;
  size_t committed_ = 0;
};

}  // namespace decode
