#include "prefill_node/cache_loader.h"

#include <algorithm>

#include "model/draft_slots.h"

namespace prefill {

CacheLoader::CacheLoader(Context& ctx, Party& party, Facts facts, SplitShipper& shipper,
                         node::StoreOutbox& outbox, LoadCounters& counters)
    : ctx_(ctx),
      party_(party),
      facts_(std::move(facts)),
      shipper_(shipper),
      outbox_(outbox),
      counters_(counters),
      left_(facts_.layers.count(), groups()) {}

void CacheLoader::start() {
  begun_ = ctx_.now();
  pump();
}

void CacheLoader::pump() {
  const uint32_t fetches = groups() * facts_.layers.count();
  while (!party_.over() && asked_ < fetches && unanswered_ < kWindow) {
    const uint32_t first = asked_ % groups() * kBlocksOfFetch;
    const Fetch fetch{facts_.layers.begin + asked_ / groups(), first,
                      std::min(facts_.blocks - first, kBlocksOfFetch)};
    ++asked_;
    ++unanswered_;
    tasks_.start(run(fetch));
  }
}

Task<void> CacheLoader::run(Fetch fetch) {
  proto::FetchKv message;
  message.layer = fetch.layer;
  const auto keys = facts_.chain.keys.subspan(fetch.first, fetch.count);
  message.keys.assign(keys.begin(), keys.end());
  const Address store{facts_.sources[fetch.first / kBlocksOfFetch], proto::kKvstore};
  const actor::CallOptions options{"store.fetch", std::chrono::milliseconds(250),
                                   std::chrono::seconds(2)};
  auto call = ctx_.call<proto::KvData>(store, message, options);
  const auto answer = co_await std::move(call);
  --unanswered_;
  if (party_.over()) co_return;
  if (!answer || !take(fetch, message, *answer)) {
    base::Error error{base::Code::kNotFound, "cached KV could not be had from the store"};
    if (!answer) error.what += ": " + answer.error().what;
    party_.failed(std::move(error), /*without_cache=*/true);
    co_return;
  }
  --left_[fetch.layer - facts_.layers.begin];
  if (facts_.ships) {
    ship(fetch);
    copy_on(fetch, answer->blobs);
  }
  count(fetch);
  pump();
  party_.moved();
}

void CacheLoader::ship(const Fetch& fetch) {
  const uint32_t begin = fetch.first * model::kBlockTokens;
  uint32_t end = begin + fetch.count * model::kBlockTokens;
  if (fetch.layer < facts_.shape->layers)
    end = std::min(end, facts_.blocks * model::kBlockTokens - facts_.recomputed);
  shipper_.push(fetch.layer, begin, end - begin);
}

void CacheLoader::count(const Fetch& fetch) {
  const uint64_t size = uint64_t{fetch.count} * facts_.kv.pool->entry_bytes();
  const double since = base::seconds(ctx_.now() - begun_);
  bytes_ += size;
  counters_.bytes += size;
  const uint32_t first = facts_.layers.begin;
  if (fetch.layer == first && has(first)) counters_.wait_seconds += since;
  if (asked_ < groups() * facts_.layers.count() || unanswered_ > 0) return;
  counters_.seconds += since;
  if (bytes_ >= kMeasuredLeast) counters_.rate.add(static_cast<double>(bytes_), since, ctx_.now());
}

bool CacheLoader::take(const Fetch& fetch, const proto::FetchKv& asked,
                       const actor::Incoming<proto::KvData>& data) {
  if (!proto::answers(asked, data.msg, data.blobs)) return false;
  const auto fits = [this](const base::Blob& blob) {
    return blob.size() == facts_.kv.pool->entry_bytes();
  };
  if (!std::ranges::all_of(data.blobs, fits)) return false;
  for (uint32_t i = 0; i < fetch.count; ++i) {
    model::copy_slots_in(facts_.kv, *facts_.shape, fetch.layer,
                         (fetch.first + i) * model::kBlockTokens, model::kBlockTokens,
                         data.blobs[i].view().data());
  }
  return true;
}

void CacheLoader::copy_on(const Fetch& fetch, const base::Blobs& blobs) {
  const base::NodeId store = facts_.copy_to[fetch.first / kBlocksOfFetch];
  if (!store) return;
  for (uint32_t i = 0; i < fetch.count; ++i) {
    outbox_.push(
        ctx_, store,
        node::describe(facts_.chain, fetch.first + i, fetch.layer, facts_.shape->kv_layers()),
        blobs[i]);
  }
}

}  // namespace prefill
