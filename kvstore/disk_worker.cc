#include "kvstore/disk_worker.h"

#include <algorithm>

namespace kvstore {

namespace {

using std::chrono::milliseconds;

constexpr base::Duration kBusyWait = milliseconds(20);      // the tier said: soon
constexpr base::Duration kReclaimWait = milliseconds(250);  // for garbage to be given back
constexpr base::Duration kBackoffLeast = milliseconds(100), kBackoffMost = std::chrono::seconds(30);

constexpr uint32_t kRefusalsToReopen = 3;

uint64_t bytes_of(const std::vector<DiskRead>& reads) {
  uint64_t bytes = 0;
  for (const DiskRead& read : reads) bytes += read.meta.bytes;
  return bytes;
}

bool damaged(const base::Error& error) {
  return error.code == base::Code::kCorrupt || error.code == base::Code::kNotFound;
}

}  // namespace

Task<void> DiskWorker::load(Context& ctx) {
  if (!tier_ || opening_) co_return;
  opening_ = true;
  base::Result<DiskTier::Found> found = base::fail(base::Code::kInternal, "not opened");
  std::function<void()> job = [this, &found] { found = tier_->open(); };
  const actor::Cost cost{tier_->cost(1u << 20)};
  auto wait = ctx.offload(std::move(job), cost);
  co_await std::move(wait);
  opening_ = false;
  if (!found) {
    refused(ctx, "open", found.error());
    co_return;
  }
  counters_.damaged_records += found->damaged;
  counters_.quarantined += found->quarantined ? 1 : 0;
  if (found->quarantined || found->damaged > 0) {
    ctx.log(base::Level::kWarn, "kvstore.disk_damaged",
            {{"records", found->damaged}, {"put_aside", found->quarantined}, {"why", found->why}});
  }
  std::ranges::sort(found->blocks, {}, &BlockMeta::generation);
  for (BlockMeta& meta : found->blocks) index_.restore(std::move(meta));
  ctx.log(base::Level::kInfo, "kvstore.disk_open",
          {{"blocks", index_.disk_blocks()}, {"bytes", index_.disk_bytes()}});
  open_ = true;
  refusals_ = 0;
  resume_ = {};
  kick(ctx);
}

void DiskWorker::kick(Context& ctx) {
  if (!tier_ || writing_ || opening_ || ctx.now() < resume_) return;
  if (!open_ || refusals_ >= kRefusalsToReopen) {
    if (reading_ == 0) ctx.spawn(reopen(ctx));
  } else if (index_.has_unwritten()) {
    ctx.spawn(write_behind(ctx));
  }
}

// What it held is read again from the disk itself, whatever that has kept.
Task<void> DiskWorker::reopen(Context& ctx) {
  if (open_) ++counters_.reopened;
  open_ = false;
  index_.forget_disk();
  auto loading = load(ctx);
  co_await std::move(loading);
}

Task<void> DiskWorker::write_behind(Context& ctx) {
  writing_ = true;
  while (index_.has_unwritten()) {
    // Over the limit nothing is added until garbage was given back; to see that, it is asked again.
    const bool over = counters_.physical_bytes > limit_;
    const DiskBatch batch = index_.next_batch(over ? 0 : kBatchBytes);
    if (batch.empty() && !over) break;
    base::Status status;
    uint64_t physical = 0;
    std::function<void()> job = [this, &batch, &status, &physical] {
      if (!batch.empty()) status = tier_->write(batch);
      physical = tier_->physical_bytes();
      if (physical > limit_) tier_->reclaim();
    };
    const actor::Cost cost{tier_->cost(batch.bytes)};
    auto wait = ctx.offload(std::move(job), cost);
    co_await std::move(wait);
    index_.wrote(batch, status.has_value());
    counters_.physical_bytes = physical;
    if (!status) {
      refused(ctx, "write", status.error());
      break;
    }
    for (const BlockWrite& write : batch.writes) counters_.written += write.rows.size();
    went_well(ctx);
    if (physical > limit_) {
      resume_ = ctx.now() + kReclaimWait;
      ++counters_.stalls;
      break;
    }
  }
  writing_ = false;
}

void DiskWorker::refused(Context& ctx, const char* what, const base::Error& error) {
  if (error.code == base::Code::kUnavailable) {
    ++counters_.stalls;
    resume_ = ctx.now() + kBusyWait;
    return;
  }
  ++counters_.write_errors;
  ++refusals_;
  backoff_ = std::clamp(2 * backoff_, kBackoffLeast, kBackoffMost);
  resume_ = ctx.now() + backoff_;
  failed(ctx, what, error);
}

// Once an illness: a full disk would fill the log as well.
void DiskWorker::failed(Context& ctx, const char* what, const base::Error& error) {
  if (ill_) return;
  ill_ = true;
  ctx.log(base::Level::kWarn, "kvstore.disk_ill",
          {{"what", what}, {"why", base::to_string(error)}});
}

void DiskWorker::went_well(Context& ctx) {
  backoff_ = {};
  refusals_ = 0;
  if (!ill_) return;
  ill_ = false;
  ctx.log(base::Level::kInfo, "kvstore.disk_well", {});
}

Task<DiskWorker::Rows> DiskWorker::read(Context& ctx, const std::vector<DiskRead>& reads) {
  Rows rows;
  ++reading_;
  std::function<void()> job = [this, &rows, &reads] { rows = tier_->read(reads); };
  const actor::Cost cost{tier_->cost(bytes_of(reads))};
  auto wait = ctx.offload(std::move(job), cost);
  co_await std::move(wait);
  --reading_;
  counters_.reads += reads.size();
  for (size_t i = 0; i < reads.size(); ++i) {
    if (rows[i]) continue;
    const base::Error& error = rows[i].error();
    if (!damaged(error)) ++counters_.read_errors;
    index_.bad(reads[i], damaged(error));
    failed(ctx, "read", error);
  }
  kick(ctx);  // what was dropped is to be removed
  co_return rows;
}

Task<void> DiskWorker::complete(Context& ctx, Fetched& fetched) {
  auto reading = read(ctx, fetched.reads);
  Rows rows = co_await std::move(reading);
  bool all = true;
  for (size_t i = 0; i < rows.size(); ++i) {
    const DiskRead& asked = fetched.reads[i];
    all = all && rows[i].has_value();
    if (!rows[i]) continue;
    index_.came(asked, *rows[i]);
    fetched.blobs[asked.at] = base::Blob(std::move(*rows[i]));
  }
  fetched.reads.clear();
  if (!all) fetched = Fetched{};
}

Task<void> DiskWorker::verify(Context& ctx, std::vector<DiskRead> reads) {
  auto reading = read(ctx, reads);
  co_await std::move(reading);
}

}  // namespace kvstore
