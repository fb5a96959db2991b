#include "kvstore/kvstore_actor.h"

namespace kvstore {

namespace {

using std::chrono::milliseconds;

constexpr base::Duration kSweep = milliseconds(500);
constexpr size_t kKeysOfFetch = 64;  // so that an answer stays below the transport's message limit
// Half of what a stage waits before it gives an attempt up: better a miss than silence.
constexpr base::Duration kReadPatience = milliseconds(1000);
constexpr base::Duration kLoadPatience = std::chrono::seconds(5);
// 1 % of the blocks a minute while idle (120 sweeps), at most this much at a time.
constexpr double kScrubOfSweep = 0.01 / 120;
constexpr uint64_t kScrubBytes = 8u << 20;
// Garbage and copies in flight take disk as well: the index fills only this part of the limit.
constexpr uint64_t kFill = 3, kFillOf = 4;

IndexLimits filled(IndexLimits limits, bool disk) {
  limits.disk_bytes = disk ? limits.disk_bytes / kFillOf * kFill : 0;
  return limits;
}

}  // namespace

KvstoreActor::KvstoreActor(node::Identity identity, const IndexLimits& limits,
                           std::unique_ptr<DiskTier> disk)
    : membership_(std::move(identity), *this),
      index_(filled(limits, disk != nullptr)),
      disk_(index_, std::move(disk), limits.disk_bytes) {}

void KvstoreActor::start(Context& ctx) {
  membership_.start(ctx);
  ctx.log(base::Level::kInfo, "kvstore.ram",
          {{"bytes", index_.limits().bytes}, {"huge_pages", index_.huge_pages()}});
  ctx.spawn(sweep(ctx));
  if (!disk_.present()) return loaded(ctx);
  ctx.spawn(load(ctx));
  ctx.spawn(lose_patience_with_load(ctx));
}

Task<void> KvstoreActor::load(Context& ctx) {
  auto loading = disk_.load(ctx);
  co_await std::move(loading);
  loaded(ctx);
}

// A disk that hangs is no reason to be without the RAM.
Task<void> KvstoreActor::lose_patience_with_load(Context& ctx) {
  co_await ctx.sleep(kLoadPatience);
  loaded(ctx);
}

void KvstoreActor::loaded(Context& ctx) {
  if (loaded_) return;
  loaded_ = true;
  if (welcomed_) membership_.ready(ctx);
}

void KvstoreActor::welcomed(Context& ctx, const proto::HelloReply&) {
  welcomed_ = true;
  if (loaded_) membership_.ready(ctx);
}

Task<void> KvstoreActor::sweep(Context& ctx) {
  for (;;) {
    co_await ctx.sleep(kSweep);
    index_.expire(ctx.now());
    disk_.kick(ctx);
    if (!asked_) scrub(ctx);
    asked_ = false;
  }
}

void KvstoreActor::scrub(Context& ctx) {
  scrub_due_ += static_cast<double>(index_.blocks()) * kScrubOfSweep;
  if (scrub_due_ < 1 || disk_.reading() > 0) return;
  const auto blocks = static_cast<size_t>(scrub_due_);
  scrub_due_ -= static_cast<double>(blocks);
  const uint64_t corrupt = index_.counters().corrupt;
  std::vector<DiskRead> reads = index_.scrub(blocks, kScrubBytes);
  if (index_.counters().corrupt != corrupt)
    ctx.log(base::Level::kWarn, "kvstore.corrupt", {{"found_by", "scrub"}});
  if (!reads.empty()) ctx.spawn(disk_.verify(ctx, std::move(reads)));
}

void KvstoreActor::on(Context& ctx, const Incoming<proto::LookupPrefix>& in) {
  membership_.progressed();
  asked_ = true;
  index_.expire(ctx.now());
  ctx.reply(in, index_.find(in.msg, ctx.now()));
}

void KvstoreActor::on(Context& ctx, const Incoming<proto::ReleaseLease>& in) {
  membership_.progressed();
  index_.release(in->request, in->attempt);
  ctx.reply(in, proto::Done{});
}

void KvstoreActor::on(Context& ctx, const Incoming<proto::FetchKv>& in) {
  membership_.progressed();
  asked_ = true;
  if (reading_.contains({in.from, in.call})) return;  // repeated; the first one will be answered
  Fetched fetched;
  if (in->keys.size() <= kKeysOfFetch) {
    const uint64_t corrupt = index_.counters().corrupt;
    fetched = index_.fetch(in.msg);
    if (index_.counters().corrupt != corrupt)
      ctx.log(base::Level::kWarn, "kvstore.corrupt", {{"layer", in->layer}});
  }
  if (!fetched.reads.empty() && disk_.busy()) {
    ++slow_reads_;
    fetched = Fetched{};
  }
  if (fetched.reads.empty()) return answer(ctx, in, std::move(fetched));
  ctx.spawn(serve(ctx, in, std::move(fetched)));
}

Task<void> KvstoreActor::serve(Context& ctx, Incoming<proto::FetchKv> in, Fetched fetched) {
  const Question question{in.from, in.call};
  const uint64_t serial = ++serial_;
  reading_[question] = serial;
  ctx.spawn(lose_patience(ctx, in, serial));
  auto reading = disk_.complete(ctx, fetched);
  co_await std::move(reading);
  const auto open = reading_.find(question);
  if (open == reading_.end() || open->second != serial) co_return;  // answered: missing
  reading_.erase(open);
  answer(ctx, in, std::move(fetched));
}

Task<void> KvstoreActor::lose_patience(Context& ctx, Incoming<proto::FetchKv> in, uint64_t serial) {
  co_await ctx.sleep(kReadPatience);
  const auto open = reading_.find({in.from, in.call});
  if (open == reading_.end() || open->second != serial) co_return;
  reading_.erase(open);
  ++slow_reads_;
  answer(ctx, in, Fetched{});
}

void KvstoreActor::answer(Context& ctx, const Incoming<proto::FetchKv>& in, Fetched fetched) {
  proto::KvData data;
  data.outcome = fetched.outcome;
  data.digests = std::move(fetched.digests);
  data.bound = proto::bound_of(in.msg, data.digests);
  ctx.reply(in, data, std::move(fetched.blobs));
}

void KvstoreActor::on(Context& ctx, const Incoming<proto::PutKv>& in) {
  membership_.progressed();
  asked_ = true;
  proto::Done done;
  done.outcome = proto::Outcome::kCorrupt;
  if (in.blobs.size() == 1) done.outcome = index_.put(in.msg, in.blobs[0]);
  disk_.kick(ctx);
  ctx.reply(in, done);
}

void KvstoreActor::view_changed(Context&, const node::View&) {}

// The blocks stay: their keys and digests are as true as before.
void KvstoreActor::life_lost(Context&) {
  welcomed_ = false;
  index_.release_all();
}

void KvstoreActor::fill(proto::Heartbeat& beat) {
  const IndexCounters& counters = index_.counters();
  const DiskCounters& disk = disk_.counters();
  beat.blocks_used = static_cast<uint32_t>(index_.blocks());
  const auto add = [&beat](const char* name, uint64_t value) {
    beat.counters.emplace_back(name, static_cast<double>(value));
  };
  add("kvstore_blocks", index_.blocks());
  add("kvstore_bytes", index_.bytes());
  add("kvstore_bytes_limit", index_.limits().bytes);
  add("kvstore_huge_pages", index_.huge_pages());
  add("kvstore_leases", index_.leases());
  add("kvstore_hits_total", counters.hits);
  add("kvstore_misses_total", counters.misses);
  add("kvstore_stored_total", counters.stored);
  add("kvstore_evictions_total", counters.evictions);
  add("kvstore_corrupt_total", counters.corrupt);
  add("kvstore_no_room_total", counters.no_room);
  add("kvstore_foreign_total", counters.foreign);
  add("kvstore_scrubbed_total", counters.scrubbed);
  if (!disk_.present()) return;
  add("kvstore_disk_open", disk_.open());
  add("kvstore_disk_blocks", index_.disk_blocks());
  add("kvstore_disk_bytes", index_.disk_bytes());
  add("kvstore_disk_bytes_limit", index_.limits().disk_bytes);
  add("kvstore_disk_physical_bytes", disk.physical_bytes);
  add("kvstore_disk_reads_total", disk.reads);
  add("kvstore_disk_written_total", disk.written);
  add("kvstore_disk_read_errors_total", disk.read_errors);
  add("kvstore_disk_write_errors_total", disk.write_errors);
  add("kvstore_disk_stalls_total", disk.stalls);
  add("kvstore_disk_slow_reads_total", slow_reads_);
  add("kvstore_disk_damaged_records_total", disk.damaged_records);
  add("kvstore_disk_quarantined_total", disk.quarantined);
  add("kvstore_disk_reopened_total", disk.reopened);
  add("kvstore_disk_evictions_total", counters.disk_evictions);
  add("kvstore_demotions_total", counters.demotions);
  add("kvstore_promotions_total", counters.promotions);
}

}  // namespace kvstore
