#include "model/ngram_tables.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>

#include "base/check.h"
#include "model/numerics.h"
#include "model/tensor_list.h"

namespace model {
namespace {

// A smaller table is soon in memory as a whole: asking for its rows costs more than it gives.
constexpr size_t kWorthAsking = size_t{64} << 20;
// Rows between the one being copied and the one whose cache lines are asked for.
constexpr size_t kAhead = 6;
constexpr size_t kCacheLine = 64;

}  // namespace

NgramTables::NgramTables(const Checkpoint& checkpoint, NgramShard shard)
    : checkpoint_(checkpoint), shard_(shard) {
  const ModelConfig& config = checkpoint.config();
  CHECK(config.ngram.has_value(), "a model without n-gram tables");
  CHECK(shard.index < shard.count, "share {} of {}", shard.index, shard.count);
  dim_ = config.ngram_dim();
  for (uint32_t i = 0; i < config.ngram->tables(); ++i) {
    Table table;
    table.name = ngram_table_name(config.ngram->oe_names, i);
    table.tensor = checkpoint.find(table.name);
    CHECK(table.tensor != nullptr, "{} was promised by Checkpoint::open", table.name);
    table.row_bytes = table.tensor->bytes.size() / table.tensor->shape[0];
    tables_.push_back(std::move(table));
  }
}

std::vector<uint64_t> NgramTables::ids_of(const Pass& pass) const {
  const size_t rows = pass.rows();
  std::vector<uint64_t> ids(tables() * rows), of_row(tables());
  std::vector<TokenId> before;
  for (const Segment& segment : pass.segments) {
    before.assign(segment.context.begin(), segment.context.end());
    for (uint32_t row = segment.row; row < segment.row + segment.count; ++row) {
      ngram_ids(checkpoint_.config(), before, pass.tokens[row], of_row.data());
      for (size_t t = 0; t < of_row.size(); ++t) ids[t * rows + row] = of_row[t];
      before.push_back(pass.tokens[row]);
    }
  }
  return ids;
}

void NgramTables::prefetch(std::span<const uint64_t> ids) const {
  static const auto kPage = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  const size_t rows = ids.size() / tables();
  for (size_t i = 0; i < ids.size(); ++i) {
    const Table& table = tables_[i / rows];
    if (table.tensor->bytes.size() < kWorthAsking || !shard_.owns(ids[i])) continue;
    const auto at = reinterpret_cast<uintptr_t>(row(table, ids[i]));
    const uintptr_t begin = at / kPage * kPage;
    ::madvise(reinterpret_cast<void*>(begin), at + table.row_bytes - begin, MADV_WILLNEED);
  }
}

size_t NgramTables::look_up(uint32_t table, std::span<const uint64_t> ids,
                            std::span<float> out) const {
  CHECK(out.size() == ids.size() * dim_, "{} values for {} rows of {}", out.size(), ids.size(),
        dim_);
  const Table& from = tables_[table];
  size_t found = 0;
  for (size_t i = 0; i < ids.size(); ++i) {
    if (i + kAhead < ids.size() && shard_.owns(ids[i + kAhead])) {
      const std::byte* next = row(from, ids[i + kAhead]);
      for (size_t b = 0; b < from.row_bytes; b += kCacheLine) __builtin_prefetch(next + b);
    }
    if (!shard_.owns(ids[i])) continue;
    const base::Status read =
        read_rows(checkpoint_, from.name, ids[i], 1, out.subspan(i * dim_, dim_).data());
    CHECK(read.has_value(), "{} row {}: {}", from.name, ids[i], read.error().what);
    ++found;
  }
  return found;
}

}  // namespace model
