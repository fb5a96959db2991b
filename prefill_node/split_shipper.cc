#include "prefill_node/split_shipper.h"

#include <algorithm>
#include <limits>
#include <utility>

namespace prefill {

SplitShipper::SplitShipper(Context& ctx, Party& party, const KvShipper::Facts& facts,
                           std::span<const proto::KvShare> shares, ShipperCounters& counters) {
  uint32_t at = 0;
  for (const proto::KvShare& share : shares) {
    KvShipper::Facts of_share = facts;
    of_share.decode.node = share.node;
    of_share.held_blocks = 0;
    of_share.credits = std::max(share.credits, 1u);
    parts_.push_back({share.begin, share.end,
                      std::make_unique<KvShipper>(ctx, party, std::move(of_share), counters)});
    at = share.end;
  }
  parts_.push_back({at, std::numeric_limits<uint32_t>::max(),
                    std::make_unique<KvShipper>(ctx, party, facts, counters)});
}

void SplitShipper::push(uint32_t layer, uint32_t begin, uint32_t count) {
  const uint32_t end = begin + count;
  for (const Part& part : parts_) {
    const uint32_t from = std::max(begin, part.begin), to = std::min(end, part.end);
    if (from < to) part.shipper->push(layer, from, to - from);
  }
}

void SplitShipper::commit(proto::KvCommit commit, base::Blobs blobs) {
  for (size_t i = 0; i + 1 < parts_.size(); ++i) {
    proto::KvCommit of_share;
    of_share.request = commit.request;
    of_share.attempt = commit.attempt;
    of_share.tokens = parts_[i].end;
    parts_[i].shipper->commit(std::move(of_share), {});
  }
  last_ = std::move(commit);
  last_blobs_ = std::move(blobs);
  waits_ = true;
  proceed();
}

void SplitShipper::proceed() {
  if (!waits_) return;
  for (size_t i = 0; i + 1 < parts_.size(); ++i) {
    if (!parts_[i].shipper->committed()) return;
  }
  waits_ = false;
  parts_.back().shipper->commit(std::move(last_), std::move(last_blobs_));
}

bool SplitShipper::idle() const {
  return std::ranges::all_of(parts_, [](const Part& part) { return part.shipper->idle(); });
}

uint32_t SplitShipper::unacknowledged() const {
  uint32_t sum = 0;
  for (const Part& part : parts_) sum += part.shipper->unacknowledged();
  return sum;
}

}  // namespace prefill
