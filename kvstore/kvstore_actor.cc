#include "kvstore/kvstore_actor.h"

namespace kvstore {

namespace {
constexpr base::Duration kSweep = std::chrono::milliseconds(500);
constexpr size_t kKeysOfFetch = 64;  // so that an answer stays below the transport's message limit
}  // namespace

void KvstoreActor::start(Context& ctx) {
  membership_.start(ctx);
  ctx.spawn(sweep(ctx));
}

base::Task<void> KvstoreActor::sweep(Context& ctx) {
  for (;;) {
    co_await ctx.sleep(kSweep);
    index_.expire(ctx.now());
  }
}

void KvstoreActor::on(Context& ctx, const Incoming<proto::LookupPrefix>& in) {
  membership_.progressed();
  index_.expire(ctx.now());
  proto::PrefixFound found;
  found.blocks = index_.lookup(in.msg, ctx.now());
  ctx.reply(in, found);
}

void KvstoreActor::on(Context& ctx, const Incoming<proto::ReleaseLease>& in) {
  membership_.progressed();
  index_.release(in->request, in->attempt);
  ctx.reply(in, proto::Done{});
}

void KvstoreActor::on(Context& ctx, const Incoming<proto::FetchKv>& in) {
  membership_.progressed();
  Fetched fetched;
  if (in->keys.size() <= kKeysOfFetch) {
    const uint64_t corrupt = index_.counters().corrupt;
    fetched = index_.fetch(in.msg);
    if (index_.counters().corrupt != corrupt)
      ctx.log(base::Level::kWarn, "kvstore.corrupt", {{"layer", in->layer}});
  }
  proto::KvData data;
  data.outcome = fetched.outcome;
  data.digests = std::move(fetched.digests);
  ctx.reply(in, data, std::move(fetched.blobs));
}

void KvstoreActor::on(Context& ctx, const Incoming<proto::PutKv>& in) {
  membership_.progressed();
  proto::Done done;
  done.outcome = proto::Outcome::kCorrupt;
  if (in.blobs.size() == 1) done.outcome = index_.put(in.msg, in.blobs[0]);
  ctx.reply(in, done);
}

// Nothing to load: the store is ready as soon as it has its place.
void KvstoreActor::welcomed(Context& ctx, const proto::HelloReply&) { membership_.ready(ctx); }

void KvstoreActor::view_changed(Context&, const node::View&) {}

// The blocks stay: their keys and digests are as true as before.
void KvstoreActor::life_lost(Context&) { index_.release_all(); }

void KvstoreActor::fill(proto::Heartbeat& beat) {
  const IndexCounters& counters = index_.counters();
  beat.blocks_used = static_cast<uint32_t>(index_.blocks());
  const auto add = [&beat](const char* name, uint64_t value) {
    beat.counters.emplace_back(name, static_cast<double>(value));
  };
  add("kvstore_blocks", index_.blocks());
  add("kvstore_bytes", index_.bytes());
  add("kvstore_bytes_limit", index_.limits().bytes);
  add("kvstore_leases", index_.leases());
  add("kvstore_hits_total", counters.hits);
  add("kvstore_misses_total", counters.misses);
  add("kvstore_stored_total", counters.stored);
  add("kvstore_evictions_total", counters.evictions);
  add("kvstore_corrupt_total", counters.corrupt);
  add("kvstore_no_room_total", counters.no_room);
}

}  // namespace kvstore
