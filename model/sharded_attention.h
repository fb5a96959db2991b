// Attention over a sequence whose KV several ranks hold (kv_split.h). The owner has the rows of the
// pass and the sequence's tail; each holder of a share answers questions about it. Between
// begin_attend() and the next piece of the layer:
//
//   steps: kIndex, where positions are chosen by score (chooses()), then kAttend; of each
//     question() for every share of every segment     → the holders, answer()
//     own()      the owner's part, meanwhile
//     take()     each answer, in any order; one that never comes leaves the rows of its segment
//                without that share: their results are worthless, those of others are not touched
//     finish()   kIndex: the rows' positions are fixed.  kAttend: h += the attention
//
// Questions and answers are bytes that only engines read (shard_wire.h). Results have the bits of
// an unsharded end_attend().
#pragma once
#include <cstddef>
#include <cstdint>

#include "base/bytes.h"
#include "model/engine.h"

namespace model {

enum class ShardStep : uint8_t { kIndex = 0, kAttend = 1 };
// Of which attention, and which step of it.
struct ShardPoint {
  uint32_t layer = 0, j = 0;
  ShardStep step = ShardStep::kAttend;
};
// One of the shares of a segment: pass.segments[segment].away[share].
struct ShardRef {
  size_t segment = 0, share = 0;
};

class ShardedAttention {
 public:
  virtual ~ShardedAttention() = default;
  // --- the owner
  // Some row with KV away chooses its positions by score here.
  virtual bool chooses(uint32_t layer, uint32_t j, const Pass& pass) const = 0;
  virtual base::Bytes question(const ShardPoint& point, const Pass& pass,
                               const ShardRef& ref) const = 0;
  virtual void own(const ShardPoint& point, Pass& pass) = 0;
  // False: no answer to that question; nothing was taken.
  virtual bool take(const ShardPoint& point, Pass& pass, const ShardRef& ref,
                    base::ByteView answer) = 0;
  virtual void finish(const ShardPoint& point, Pass& pass) = 0;
  // --- a holder
  // The answer for the share `range`, whose rows stand in `kv`. False: no such question. May run
  // beside passes.
  virtual bool answer(const ShardPoint& point, const KvView& kv, KvRange range,
                      base::ByteView question, base::Bytes& out) const = 0;
};

// Whether some segment has KV away.
bool has_shards(const Pass& pass);

}  // namespace model
