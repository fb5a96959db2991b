// DiskWorker: carries out what the BlockIndex wants of the disk. Every call of the tier is
// offloaded; one batch is written at a time, reads overlap up to a bound. Nothing a disk does fails
// a request: what cannot be read is a miss, what cannot be written stays in RAM while there is
// room. A disk that refuses again and again is closed and opened anew, as a restart would do.
#pragma once
#include <memory>

#include "actor/context.h"
#include "kvstore/block_index.h"

namespace kvstore {

using actor::Context;
using base::Task;

struct DiskCounters {
  uint64_t reads = 0, written = 0;  // entries
  uint64_t read_errors = 0;         // entries that the device refused
  uint64_t write_errors = 0;        // batches that it refused
  uint64_t stalls = 0;              // batches put off because it was busy
  uint64_t damaged_records = 0;     // found at start
  uint64_t quarantined = 0;         // contents put aside at start
  uint64_t reopened = 0;            // after errors
  uint64_t physical_bytes = 0;      // after the last batch
};

class DiskWorker {
 public:
  static constexpr uint32_t kReadsMost = 64;  // fetches and scrubs on their way
  static constexpr uint64_t kBatchBytes = 8u << 20;

  // `limit`: of physical bytes. `tier` may be null: no disk.
  DiskWorker(BlockIndex& index, std::unique_ptr<DiskTier> tier, uint64_t limit)
      : index_(index), tier_(std::move(tier)), limit_(limit) {}

  bool present() const { return tier_ != nullptr; }
  // Opens the tier and fills the index with what it holds. Without success it is tried again later.
  Task<void> load(Context& ctx);
  // Writes what is to be written, unless that is being done or must wait.
  void kick(Context& ctx);
  // Reads what is missing of `fetched`; kMissing when not all of it could be had.
  Task<void> complete(Context& ctx, Fetched& fetched);
  // Reads and verifies; drops what is bad.
  Task<void> verify(Context& ctx, std::vector<DiskRead> reads);
  bool busy() const { return reading_ >= kReadsMost; }
  uint32_t reading() const { return reading_; }
  bool writing() const { return writing_; }
  bool open() const { return open_; }
  const DiskCounters& counters() const { return counters_; }

 private:
  using Rows = std::vector<base::Result<base::Bytes>>;
  Task<Rows> read(Context& ctx, const std::vector<DiskRead>& reads);
  Task<void> write_behind(Context& ctx);
  Task<void> reopen(Context& ctx);
  void failed(Context& ctx, const char* what, const base::Error& error);
  void refused(Context& ctx, const char* what, const base::Error& error);
  void went_well(Context& ctx);

  // Constant after construction.
  BlockIndex& index_;
  const std::unique_ptr<DiskTier> tier_;
  const uint64_t limit_;
  // Owned state.
  bool open_ = false, opening_ = false, writing_ = false;
  uint32_t refusals_ = 0;  // of writes, in a row
  bool ill_ = false;       // said so in the log
  uint32_t reading_ = 0;
  base::Time resume_{};  // writing waits until then
  base::Duration backoff_{};
  DiskCounters counters_;
};

}  // namespace kvstore
