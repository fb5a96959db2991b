#include "prefill_node/kv_shipper.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "model/draft_slots.h"

namespace prefill {

void KvShipper::push(uint32_t layer, uint32_t begin, uint32_t count) {
  const uint32_t end = begin + count;
  begin = std::max(begin, first_slot(layer));
  if (begin >= end) return;
  waiting_.push_back({layer, begin, end - begin});
  pump();
}

uint32_t KvShipper::first_slot(uint32_t layer) const {
  return model::slots_in_blocks(facts_.shape, layer, facts_.held_blocks);
}

void KvShipper::pump() {
  while (!party_.over() && !waiting_.empty() && unacknowledged_ < facts_.credits) {
    const Piece piece = waiting_.front();
    waiting_.pop_front();
    base::Blob rows =
        model::slots_of(facts_.kv, facts_.shape, piece.layer, piece.begin, piece.count);

    proto::KvLayer message;
    message.request = facts_.key.request;
    message.attempt = facts_.key.attempt;
    message.layer = piece.layer;
    message.token_begin = piece.begin;
    message.token_count = piece.count;
    message.digest = proto::kv_digest(piece.layer, piece.begin, rows.view());
    digests_[piece.layer - facts_.layers.begin].emplace(piece.begin, message.digest);
    counters_.rows += piece.count;
    counters_.bytes += rows.size();
    ++unacknowledged_;
    tasks_.start(ship(std::move(message), std::move(rows)));
    listen();
  }
}

void KvShipper::listen() {
  if (std::exchange(listening_, true)) return;
  silent_ = 0;
  tasks_.start(count_silence());
}

Task<void> KvShipper::count_silence() {
  while (!party_.over() && (unacknowledged_ > 0 || (committing_ && !committed_))) {
    Task<void> pause = ctx_.sleep(kListen);
    co_await std::move(pause);
    if (party_.over()) co_return;
    if (++silent_ > kSilentMost) {
      party_.unreachable(facts_.decode.node);
      co_return;
    }
    party_.waits_for(facts_.decode.node);
  }
  listening_ = false;
}

Task<void> KvShipper::ship(proto::KvLayer message, base::Blob rows) {
  base::Blobs blobs(1, std::move(rows));
  const base::NodeId rank = facts_.decode.node;
  const base::Time begun = ctx_.now();
  DeliveryOptions options{"kv.layer", facts_.links.retry(rank)};
  options.counters = &counters_;
  Task<bool> delivery = deliver<proto::KvAck>(ctx_, party_, facts_.decode, std::move(message),
                                              std::move(blobs), options);
  const bool taken = co_await std::move(delivery);
  if (!taken) co_return;
  facts_.links.acknowledged(rank, ctx_.now() - begun);
  --unacknowledged_;
  silent_ = 0;
  pump();
  party_.moved();
}

void KvShipper::commit(proto::KvCommit commit, base::Blobs blobs) {
  CHECK(idle(), "a commit with {} messages unacknowledged", unacknowledged_);
  commit.layer_begin = facts_.layers.begin;
  commit.layer_end = facts_.layers.end;
  for (const auto& layer : digests_) {
    base::Hash128 chain;
    for (const auto& [begin, digest] : layer) chain = proto::kv_chain(chain, digest);
    commit.digests.push_back(chain);
  }
  committing_ = true;
  silent_ = 0;
  tasks_.start(send_commit(std::move(commit), std::move(blobs)));
  listen();
}

Task<void> KvShipper::send_commit(proto::KvCommit commit, base::Blobs blobs) {
  DeliveryOptions options{"kv.commit"};
  Task<bool> delivery = deliver<proto::Done>(ctx_, party_, facts_.decode, std::move(commit),
                                             std::move(blobs), options);
  committed_ = co_await std::move(delivery);
  if (committed_) party_.moved();
}

}  // namespace prefill
