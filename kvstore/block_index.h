// BlockIndex: the blocks of a kvstore node, in RAM, on disk or both. A block is named by a key (the
// hash chain of its tokens and all before) and has one entry, rows with their digest, for each
// layer of the model. It is found only when all its entries are there and its tokens, and those of
// every block before it, are those asked for. Pure: no Context, no clock, no disk; the caller says
// what time it is and carries out what is to be read and written.
//
// Complete blocks are written to disk as soon as the disk takes them (write-behind), so that
// leaving RAM later costs nothing and a killed process loses little.
//
// Invariants
// 1. bytes() is the sum over blocks of what they cost in RAM, and at most the budget; disk_bytes()
//    is that of what they cost on disk, and at most its budget.
// 2. A block may leave a tier exactly when no lease holds it; it may leave RAM only when it is not
//    being written.
// 3. A lease counts on a block only while the block's generation is the one it was taken on: a
// block
//    that was dropped and came again is another block. So does a read or write that is on its way.
#pragma once
#include <deque>
#include <map>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "base/bytes.h"
#include "base/hash.h"
#include "base/time.h"
#include "kvstore/arena.h"
#include "kvstore/disk_tier.h"
#include "kvstore/eviction.h"
#include "proto/store.h"

namespace kvstore {

using base::RequestId;

struct IndexLimits {
  uint64_t bytes = 256u << 20;  // of rows, tokens and bookkeeping in RAM
  uint64_t disk_bytes = 0;      // of rows and records on disk; 0: no disk
  uint32_t released = 8192;     // requests whose release is remembered
  uint32_t leases = 4096;       // at the bound a lookup finds nothing
  uint32_t layers = 1024;       // of a model
  uint32_t tokens_of_block = 4096;
  base::Duration lease_most = std::chrono::minutes(15);
  const Policy* policy = &policies().front();
};

struct IndexCounters {
  uint64_t hits = 0, misses = 0;  // blocks asked for by lookups
  uint64_t stored = 0;            // entries
  uint64_t evictions = 0;         // blocks that left the store for room
  uint64_t demotions = 0;         // blocks that left RAM and stayed on disk
  uint64_t promotions = 0;        // entries that came back to RAM
  uint64_t disk_evictions = 0;    // blocks that left the disk for room
  uint64_t corrupt = 0;           // entries that did not match their digest, wherever
  uint64_t no_room = 0;           // entries refused
  uint64_t foreign = 0;           // blocks dropped because they are of another model or layout
  uint64_t scrubbed = 0;          // entries verified while idle
};

struct Fetched {
  proto::Outcome outcome = proto::Outcome::kMissing;
  std::vector<Hash128> digests;
  base::Blobs blobs;            // one a key when kOk, else none
  std::vector<DiskRead> reads;  // blobs[at] is empty until the disk has given it
};

class BlockIndex {
 public:
  explicit BlockIndex(IndexLimits limits) : limits_(limits), arena_(limits.bytes) {}
  BlockIndex(const BlockIndex&) = delete;
  BlockIndex& operator=(const BlockIndex&) = delete;

  // Keeps a copy of one entry, evicting by the policy blocks that no lease holds. An entry that is
  // there already is kept as it is. kCorrupt: malformed, or not what its digests say. kNoRoom: over
  // the budget with nothing to evict, or another block lives under this key.
  proto::Outcome put(const proto::PutKv& put, const base::Blob& blob);
  // Complete blocks from the first key of each run on. They are held for (request, attempt) until
  // the lease ends; a second lookup of the same attempt replaces what the first one held.
  proto::PrefixFound find(const proto::LookupPrefix& asked, base::Time now);
  uint32_t lookup(const proto::LookupPrefix& asked, base::Time now) {
    return find(asked, now).blocks;
  }
  // One layer of some blocks, each blob in RAM compared with its digest, a bad one dropped. What is
  // on disk only is in `reads`; report each with came() or bad().
  Fetched fetch(const proto::FetchKv& asked);
  // Ends the leases of the request's attempts up to `attempt`.
  void release(RequestId request, uint32_t attempt);
  void expire(base::Time now);
  void release_all();

  // --- the disk
  // A block found on disk when it was opened. Call in ascending generation.
  void restore(BlockMeta meta);
  // The disk was closed: what is on it is not known any more. REQUIRES: no batch on its way.
  void forget_disk();
  // What is to be written next: blocks of about `most` bytes, kept in RAM until wrote(). Only one
  // batch is on its way at a time.
  DiskBatch next_batch(uint64_t most);
  void wrote(const DiskBatch& batch, bool kept);
  bool has_unwritten() const { return !unwritten_.empty() || !removals_.empty(); }
  // The rows of a read, verified: kept in RAM if there is room.
  void came(const DiskRead& read, base::ByteView rows);
  // The read failed: the block's copy on disk is dropped. `damaged`: it was there, or half there,
  // and not what its digest says.
  void bad(const DiskRead& read, bool damaged);
  // Verifies what RAM holds of the next `blocks` blocks from where the last call ended, and names
  // what the disk holds of them, to be read and reported, by bad() or not at all. Ends early after
  // `most` bytes.
  std::vector<DiskRead> scrub(size_t blocks, uint64_t most);

  size_t blocks() const { return blocks_.size(); }
  uint64_t bytes() const { return bytes_; }
  uint64_t disk_bytes() const { return disk_bytes_; }
  size_t disk_blocks() const { return disk_blocks_; }
  size_t leases() const { return leases_.size(); }
  const IndexLimits& limits() const { return limits_; }
  bool huge_pages() const { return arena_.huge_pages(); }
  const IndexCounters& counters() const { return counters_; }

 private:
  struct Entry {
    base::Blob rows;  // empty: not in RAM
    EntryMeta meta;
  };
  struct Block {
    std::vector<uint32_t> tokens;
    std::vector<std::optional<Entry>> entries;  // [layers]
    Hash128 parent, space;
    uint32_t depth = 0, chain = 0;
    uint32_t present = 0, in_ram = 0;  // entries
    uint32_t holders = 0;              // leases
    uint32_t uses = 0;
    bool writing = false, on_disk = false;
    bool in_ram_order = false, in_disk_order = false;
    uint64_t generation = 0;
    Rank rank;  // its place in the orders
  };
  using Blocks = std::map<Hash128, Block>;
  struct Lease {
    base::Time until;
    std::vector<std::pair<Hash128, uint64_t>> held;  // key, generation
  };
  using Leases = std::map<std::pair<RequestId, uint32_t>, Lease>;

  bool well_formed(const proto::PutKv& put, const base::Blob& blob) const;
  static bool same_block(const Block& block, const proto::PutKv& put);
  // Where the complete blocks of `asked` from `first` on are, at most `count`.
  std::vector<Blocks::iterator> leading(const proto::LookupPrefix& asked, size_t first,
                                        size_t count, const Hash128& parent);
  bool make_room(uint64_t bytes);
  void evict_first();
  // Room for the rows and `more`, and the rows in it; or nothing.
  std::optional<base::Blob> keep(base::ByteView rows, uint64_t more);
  void add_rows(Block& block, Entry& entry, base::Blob rows);
  bool make_disk_room(uint64_t bytes);
  void evict_first_of_disk();
  void trim_records();
  // The disk has this very block as well: what RAM lacks of it is there. False: it has another.
  bool adopt(Blocks::iterator at, const BlockMeta& meta);
  void remember_unwritten(Blocks::iterator at);
  void write_again(Blocks::iterator at);  // if all of it is in RAM
  void meet_space(const Hash128& space);
  bool foreign(const Block& block) const;
  void drop(Blocks::iterator at);  // from both tiers
  // A block is in no order between unplace and place.
  void unplace(Blocks::iterator at);
  void place(Blocks::iterator at);
  void use(Block& block);  // REQUIRES: in no order
  void touch(Blocks::iterator at);
  void hold(Lease& lease, Blocks::iterator at);
  Leases::iterator end_lease(Leases::iterator at);
  Blocks::iterator meant(const Hash128& key, uint64_t generation);
  // REQUIRES of both: in no order. Blocks of which nothing is left are erased: returns whether it
  // lives on.
  bool leave_ram(Blocks::iterator at);
  bool leave_disk(Blocks::iterator at);
  void drop_rows(Block& block, Entry& entry);
  void drop_bad_rows(Blocks::iterator at, uint32_t layer);
  void erase(Blocks::iterator at);
  static uint64_t record_cost(const Block& block);  // bookkeeping in RAM
  static uint64_t disk_cost(const Block& block);

  // Constant after construction.
  const IndexLimits limits_;
  // Owned state.
  Arena arena_;
  Blocks blocks_;
  EvictionOrder ram_order_;   // blocks that may leave RAM
  EvictionOrder disk_order_;  // blocks that may leave the disk
  Leases leases_;
  // The highest released attempt of the last requests: a lookup that comes after its release
  // (doubled, or late) leases nothing.
  std::map<RequestId, uint32_t> released_;
  std::deque<RequestId> released_order_;                // the same requests, oldest first
  std::deque<std::pair<Hash128, uint64_t>> unwritten_;  // complete blocks not on disk; may be gone
  std::map<Hash128, uint32_t> removals_;                // on disk, to be removed there: key, layers
  Hash128 space_;                                       // of the last put that told one
  Hash128 scrubbed_to_;                                 // key
  uint64_t bytes_ = 0,
           records_ = 0;  // records_: bookkeeping of blocks on disk only, part of bytes_
  uint64_t disk_bytes_ = 0;
  size_t disk_blocks_ = 0;
  uint64_t next_generation_ = 1;
  uint64_t uses_ = 0;
  double floor_ = 0;
  IndexCounters counters_;
};

}  // namespace kvstore
