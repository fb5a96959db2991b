#include "decode_node/micro_batches.h"

#include "base/check.h"

namespace decode {

namespace {

size_t rows_of(std::span<Sequence* const> members) {
  size_t rows = 0;
  for (const Sequence* member : members) rows += rows_of(*member);
  return rows;
}

// As many members as leave the two parts most even; both have one.
size_t first_half(std::span<Sequence* const> members) {
  const size_t all = rows_of(members);
  size_t count = 1, rows = rows_of(*members[0]);
  while (count + 1 < members.size() && 2 * rows + rows_of(*members[count]) <= all)
    rows += rows_of(*members[count++]);
  return count;
}

}  // namespace

uint32_t MicroBatches::passes_for(std::span<Sequence* const> members, uint32_t most,
                                  uint32_t least_rows, bool peers) {
  if (most < 2 || !peers || members.size() < 2) return 1;
  const size_t half = first_half(members);
  const bool enough =
      rows_of(members.first(half)) >= least_rows && rows_of(members.subspan(half)) >= least_rows;
  return enough ? 2 : 1;
}

void MicroBatches::assemble(std::span<Sequence* const> members, model::KvPool& pool,
                            const model::Shape& shape, uint32_t passes) {
  CHECK(passes >= 1 && passes <= kMost && passes <= std::max<size_t>(members.size(), 1),
        "{} passes for {} members", passes, members.size());
  passes_ = passes;
  first_ = passes > 1 ? first_half(members) : members.size();
  batches_[0].assemble(members.first(first_), pool, shape);
  if (passes > 1) batches_[1].assemble(members.subspan(first_), pool, shape);
}

uint32_t MicroBatches::rows() const {
  uint32_t rows = 0;
  for (uint32_t i = 0; i < passes_; ++i) rows += batches_[i].pass().rows();
  return rows;
}

const StepBatch::Next& MicroBatches::next(size_t member) const {
  return member < first_ ? batches_[0].next()[member] : batches_[1].next()[member - first_];
}

std::string MicroBatches::fault(size_t member) const {
  return member < first_ ? batches_[0].fault(member) : batches_[1].fault(member - first_);
}

}  // namespace decode
