// DiskTier: where blocks outlive RAM and the process. Every call may block and is made on a compute
// thread; calls may overlap. Nothing here is trusted: what comes back is compared with the digest
// that the index has, and the index is rebuilt from BlockMeta records that carry their own.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/hash.h"
#include "base/result.h"
#include "base/time.h"

namespace kvstore {

using base::Hash128;

// One layer's rows of a block, as the producer digested them.
struct EntryMeta {
  Hash128 digest;
  uint32_t bytes = 0;
  bool operator==(const EntryMeta&) const = default;
};

// All about a block but its rows.
struct BlockMeta {
  Hash128 key, parent, space;
  uint32_t depth = 0, chain = 0;
  uint64_t generation = 0;  // of this coming of the block; rises over the life of a folder
  std::vector<uint32_t> tokens;
  std::vector<EntryMeta> entries;  // [layers]
  bool operator==(const BlockMeta&) const = default;
};

// The record of a BlockMeta: fixed little endian fields, then the hash128 of all before.
std::string encode(const BlockMeta& meta);
// kCorrupt: not the bytes of a record, or not of this key.
base::Result<BlockMeta> decode_meta(const Hash128& key, base::ByteView record);

struct BlockWrite {
  BlockMeta meta;
  base::Blobs rows;   // [layers]
  uint64_t cost = 0;  // the index's account of it
};
struct BlockName {
  Hash128 key;
  uint32_t layers = 0;
};
// Removals come first, then writes; all of it or nothing is kept.
struct DiskBatch {
  std::vector<BlockName> removals;
  std::vector<BlockWrite> writes;
  uint64_t bytes = 0;  // of the rows
  bool empty() const { return removals.empty() && writes.empty(); }
};

struct DiskRead {
  Hash128 key;
  uint32_t layer = 0;
  EntryMeta meta;
  uint64_t generation = 0;  // of the block the index meant
  size_t at = 0;            // the caller's own
};

class DiskTier {
 public:
  struct Found {
    std::vector<BlockMeta> blocks;
    uint64_t damaged = 0;      // records that were not whole; removed
    bool quarantined = false;  // the former contents could not be opened and were put aside
    std::string why;           // of that
  };

  virtual ~DiskTier() = default;
  // Makes or finds the contents; of another format version: drops them. Called first, and again to
  // begin anew after errors, then while no other call runs.
  virtual base::Result<Found> open() = 0;
  // kUnavailable: busy, try again soon. Other errors: the disk is full or ill.
  virtual base::Status write(const DiskBatch& batch) = 0;
  // The rows of each read, of the asked size and matching the digest, or an error: kNotFound,
  // kCorrupt, kIo.
  virtual std::vector<base::Result<base::Bytes>> read(const std::vector<DiskRead>& reads) = 0;
  // Bytes taken on the device, garbage included.
  virtual uint64_t physical_bytes() = 0;
  // Asks for garbage to be given back to the device, soon; does not wait.
  virtual void reclaim() = 0;
  // What a call that moves this many bytes takes; for the simulated host.
  virtual base::Duration cost(uint64_t bytes) = 0;
};

// kCorrupt unless the bytes are those the index knows of. For implementations of read().
base::Result<base::Bytes> checked(const DiskRead& read, base::Bytes bytes);

}  // namespace kvstore
