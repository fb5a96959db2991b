// SplitShipper: a job's KvShipper to its decode rank, and one to each rank that holds a share of
// the sequence (proto/shards.h): rows go to whoever holds their positions. The decode rank may run
// the sequence when all stages have committed to it, so its commit waits for the holders' commits.
#pragma once
#include <memory>
#include <span>
#include <vector>

#include "prefill_node/kv_shipper.h"

namespace prefill {

class SplitShipper {
 public:
  // `facts` are those of the shipper to the decode rank.
  SplitShipper(Context& ctx, Party& party, const KvShipper::Facts& facts,
               std::span<const proto::KvShare> shares, ShipperCounters& counters);

  // As those of KvShipper.
  void push(uint32_t layer, uint32_t begin, uint32_t count);
  void commit(proto::KvCommit commit, base::Blobs blobs);
  // Sends what waits for others' commits. After every moved().
  void proceed();

  bool idle() const;
  bool committed() const { return parts_.back().shipper->committed(); }
  uint32_t unacknowledged() const;

 private:
  struct Part {
    uint32_t begin, end;
    std::unique_ptr<KvShipper> shipper;
  };
  std::vector<Part> parts_;  // by position; the decode rank's comes last
  bool waits_ = false;       // for the holders' commits
  proto::KvCommit last_;
  base::Blobs last_blobs_;
};

}  // namespace prefill
