// NgramTables: rows of the n-gram embedding tables, which stay in the checkpoint's map. A node may
// own a share of the rows; ids depend on tokens alone, so a look-up can be asked for, or sent to
// another node, long before the pass that needs it (Pass::ngram takes what came back).
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "model/checkpoint.h"
#include "model/engine.h"

namespace model {

// Share `index` of `count` of the rows of every table. Rows are dealt in stripes of 64: a stripe is
// many whole pages of the file, so a node's page cache holds its own rows and no others', and
// frequent rows (short contexts hash to low ids) still spread over all nodes.
struct NgramShard {
  uint32_t index = 0, count = 1;

  static constexpr uint64_t kStripeRows = 64;
  static uint32_t owner(uint64_t id, uint32_t count) {
    return static_cast<uint32_t>(id / kStripeRows % count);
  }
  bool owns(uint64_t id) const { return owner(id, count) == index; }
};

class NgramTables {
 public:
  // The checkpoint must outlive it.  REQUIRES: checkpoint.config().ngram
  explicit NgramTables(const Checkpoint& checkpoint, NgramShard shard = {});

  uint32_t tables() const { return static_cast<uint32_t>(tables_.size()); }
  uint32_t dim() const { return dim_; }
  uint64_t rows(uint32_t table) const { return tables_[table].tensor->shape[0]; }
  const NgramShard& shard() const { return shard_; }

  // The row of each table for each row of the pass, from its tokens and its segments' contexts.
  // → [tables, rows]
  std::vector<uint64_t> ids_of(const Pass& pass) const;
  // Starts reading the owned among those rows from disk; returns at once.  ids: [tables, n]
  void prefetch(std::span<const uint64_t> ids) const;
  // out[i] ← row ids[i] of `table`, widened, where the id is owned; other rows of out stay as they
  // are. Returns how many were owned.  out: [ids.size(), dim]
  size_t look_up(uint32_t table, std::span<const uint64_t> ids, std::span<float> out) const;

 private:
  struct Table {
    std::string name;
    const Tensor* tensor = nullptr;
    size_t row_bytes = 0;
  };
  const std::byte* row(const Table& table, uint64_t id) const {
    return table.tensor->bytes.data() + id * table.row_bytes;
  }

  const Checkpoint& checkpoint_;
  const NgramShard shard_;
  uint32_t dim_ = 0;
  std::vector<Table> tables_;
};

}  // namespace model
