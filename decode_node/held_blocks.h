// Held blocks: KV that this rank has and a prompt needs again. A full block in which no row of any
// layer is written any more may be read by every sequence that begins with the same tokens; the
// stages are told how many leading ones there are and ship the rows behind them only.
//
// The tokens are compared, all of them, and the root that block names are chained to (model,
// layout, arithmetic, the tenant's salt): another tenant's blocks are never found, and no equal
// hash stands for equal tokens. Sequences in shards neither give nor take. Pure.
#pragma once
#include <map>
#include <span>
#include <vector>

#include "decode_node/sequence.h"
#include "model/engine.h"
#include "proto/request.h"

namespace decode {

// How many leading blocks of `holder` are those that `wanted` needs. A holder of an unnamed root
// (zero) shares nothing.
uint32_t common_blocks(const Sequence& holder, const proto::ReserveKv& wanted,
                       const model::Shape& shape);

// Blocks that several sequences have. A block goes back to the pool when nobody has it any more.
class SharedBlocks {
 public:
  explicit SharedBlocks(model::KvPool& pool) : pool_(pool) {}
  // One more sequence has them.  REQUIRES: taken from the pool
  void share(std::span<const model::BlockId> blocks);
  // One sequence fewer has them.
  void release(std::span<const model::BlockId> blocks);
  // How many more blocks the sequences would have if they shared none.
  uint64_t saved() const { return saved_; }

 private:
  model::KvPool& pool_;
  std::map<model::BlockId, uint32_t> others_;  // sequences that have it beside one; never 0
  uint64_t saved_ = 0;
};

}  // namespace decode
