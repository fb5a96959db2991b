// BlockIndex: the blocks of a kvstore node in RAM. A block is named by a key (the hash chain of its
// tokens and all before) and has one entry, a blob with its digest, for each layer of the model. It
// is found only when all its entries are there and its tokens are those asked for. Pure: no
// Context, no clock; the caller says what time it is.
//
// Invariants
// 1. bytes() is the sum over blocks of what they cost, and at most the budget.
// 2. A block is in the eviction order exactly when no lease holds it.
// 3. A lease counts on a block only while the block's generation is the one it was taken on: a
// block
//    that was dropped and came again is another block.
#pragma once
#include <deque>
#include <list>
#include <map>
#include <optional>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/bytes.h"
#include "base/hash.h"
#include "base/time.h"
#include "proto/store.h"

namespace kvstore {

using base::Hash128;
using base::RequestId;

struct IndexLimits {
  uint64_t bytes = 256u << 20;  // of blobs, tokens and bookkeeping
  uint32_t released = 8192;     // requests whose release is remembered
  uint32_t leases = 4096;       // at the bound a lookup finds nothing
  uint32_t layers = 1024;       // of a model
  uint32_t tokens_of_block = 4096;
  base::Duration lease_most = std::chrono::minutes(15);
};

struct IndexCounters {
  uint64_t hits = 0, misses = 0;  // blocks asked for by lookups
  uint64_t stored = 0;            // entries
  uint64_t evictions = 0;         // blocks
  uint64_t corrupt = 0;           // entries that did not match their digest, on Put or on read
  uint64_t no_room = 0;           // entries refused
};

struct Fetched {
  proto::Outcome outcome = proto::Outcome::kMissing;
  std::vector<Hash128> digests;
  base::Blobs blobs;  // one a key when kOk, else none
};

class BlockIndex {
 public:
  explicit BlockIndex(IndexLimits limits) : limits_(limits) {}
  BlockIndex(const BlockIndex&) = delete;
  BlockIndex& operator=(const BlockIndex&) = delete;

  // Keeps one entry, evicting the blocks unused for longest that no lease holds. An entry that is
  // there already is kept as it is. kCorrupt: malformed, or the digest is not the blob's. kNoRoom:
  // over the budget with nothing to evict, or other tokens live under this key.
  proto::Outcome put(const proto::PutKv& put, const base::Blob& blob);
  // Complete blocks from the first key on. They are held for (request, attempt) until `until`; a
  // second lookup of the same attempt replaces what the first one held.
  uint32_t lookup(const proto::LookupPrefix& asked, base::Time now);
  // One layer of some blocks, each blob compared with its digest. A bad entry is dropped.
  Fetched fetch(const proto::FetchKv& asked);
  // Ends the leases of the request's attempts up to `attempt`.
  void release(RequestId request, uint32_t attempt);
  void expire(base::Time now);
  void release_all();

  size_t blocks() const { return blocks_.size(); }
  uint64_t bytes() const { return bytes_; }
  size_t leases() const { return leases_.size(); }
  const IndexLimits& limits() const { return limits_; }
  const IndexCounters& counters() const { return counters_; }

 private:
  struct Entry {
    base::Blob blob;
    Hash128 digest;
  };
  struct Block {
    std::vector<uint32_t> tokens;
    std::vector<std::optional<Entry>> entries;  // [layers]
    uint32_t present = 0;
    uint32_t holders = 0;  // leases
    uint64_t generation = 0;
    std::list<Hash128>::iterator place;  // in order_ while holders == 0
  };
  struct Lease {
    base::Time until;
    std::vector<std::pair<Hash128, uint64_t>> held;  // key, generation
  };
  using Blocks = std::unordered_map<Hash128, Block>;  // never iterated
  using Leases = std::map<std::pair<RequestId, uint32_t>, Lease>;

  bool matches(const Block& block, const proto::PutKv& put) const;
  bool make_room(uint64_t bytes);
  void touch(Blocks::iterator at);
  void hold(Lease& lease, Blocks::iterator at);
  Leases::iterator end_lease(Leases::iterator at);
  void drop_entry(Blocks::iterator at, uint32_t layer);
  void erase(Blocks::iterator at);
  static uint64_t cost_of(const Block& block);
  static uint64_t cost_of(const base::Blob& blob);

  // Constant after construction.
  const IndexLimits limits_;
  // Owned state.
  Blocks blocks_;
  std::list<Hash128> order_;  // blocks without holders, unused for longest first
  Leases leases_;
  // The highest released attempt of the last requests: a lookup that comes after its release
  // (doubled, or late) leases nothing.
  std::map<RequestId, uint32_t> released_;
  std::deque<RequestId> released_order_;  // the same requests, oldest first
  uint64_t bytes_ = 0;
  uint64_t next_generation_ = 1;
  IndexCounters counters_;
};

}  // namespace kvstore
