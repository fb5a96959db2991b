#include "prefill_node/cache_loader.h"

#include <algorithm>

namespace prefill {

CacheLoader::CacheLoader(Context& ctx, Party& party, Facts facts, KvShipper& shipper)
    : ctx_(ctx),
      party_(party),
      facts_(std::move(facts)),
      shipper_(shipper),
      left_(groups() * facts_.layers.count()) {}

void CacheLoader::pump() {
  const uint32_t fetches = groups() * facts_.layers.count();
  while (!party_.over() && asked_ < fetches && unanswered_ < kWindow) {
    const uint32_t first = asked_ % groups() * kBlocksOfFetch;
    const uint32_t rest = static_cast<uint32_t>(facts_.keys.size()) - first;
    const Fetch fetch{facts_.layers.begin + asked_ / groups(), first,
                      std::min(rest, kBlocksOfFetch)};
    ++asked_;
    ++unanswered_;
    tasks_.start(run(fetch));
  }
}

Task<void> CacheLoader::run(Fetch fetch) {
  proto::FetchKv message;
  message.layer = fetch.layer;
  message.keys.assign(facts_.keys.begin() + fetch.first,
                      facts_.keys.begin() + fetch.first + fetch.count);
  const actor::CallOptions options{"store.fetch", std::chrono::milliseconds(250),
                                   std::chrono::seconds(2)};
  auto call = ctx_.call<proto::KvData>(facts_.store, std::move(message), options);
  const auto answer = co_await std::move(call);
  --unanswered_;
  if (party_.over()) co_return;
  if (!answer || !take(fetch, *answer)) {
    base::Error error{base::Code::kNotFound, "cached KV could not be had from the store"};
    if (!answer) error.what += ": " + answer.error().what;
    party_.failed(std::move(error), /*without_cache=*/true);
    co_return;
  }
  --left_;
  if (facts_.ships)
    shipper_.push(fetch.layer, fetch.first * model::kBlockTokens,
                  fetch.count * model::kBlockTokens);
  pump();
  party_.moved();
}

bool CacheLoader::take(const Fetch& fetch, const actor::Incoming<proto::KvData>& data) {
  if (data->outcome != proto::Outcome::kOk || data->digests.size() != fetch.count ||
      data.blobs.size() != fetch.count) {
    return false;
  }
  for (uint32_t i = 0; i < fetch.count; ++i) {
    const base::ByteView blob = data.blobs[i].view();
    if (blob.size() != facts_.kv.pool->entry_bytes()) return false;
    if (base::hash128(blob) != data->digests[i]) return false;
    model::copy_rows_in(facts_.kv, fetch.layer, (fetch.first + i) * model::kBlockTokens,
                        model::kBlockTokens, blob.data());
  }
  return true;
}

}  // namespace prefill
