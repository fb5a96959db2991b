#include "node/store_outbox.h"

#include "base/check.h"

namespace node {

proto::PutKv describe(const BlockChain& chain, uint32_t at, uint32_t layer, uint32_t layers) {
  const size_t first = size_t{at} * chain.block_tokens;
  CHECK(at < chain.keys.size() && first + chain.block_tokens <= chain.tokens.size(),
        "block {} of {}", at, chain.keys.size());
  const std::span<const base::TokenId> tokens = chain.tokens.subspan(first, chain.block_tokens);
  proto::PutKv put;
  put.key = chain.keys[at];
  put.layer = layer;
  put.layers = layers;
  put.tokens.assign(tokens.begin(), tokens.end());
  put.parent = at > 0 ? chain.keys[at - 1] : chain.root;
  put.depth = at;
  put.chain = static_cast<uint32_t>(chain.keys.size());
  put.space = chain.space;
  return put;
}

void StoreOutbox::push(Context& ctx, NodeId store, proto::PutKv message, base::Blob rows) {
  if (!stores_.contains(store) || !has_room(rows.size())) {
    ++counters_.dropped;
    return;
  }
  message.digest = base::hash128(rows.view());
  message.bound = proto::bound_of(message);
  bytes_ += rows.size();
  waiting_.push_back({store, std::move(message), std::move(rows)});
  pump(ctx);
}

void StoreOutbox::pump(Context& ctx) {
  while (!waiting_.empty() && unanswered_ < kWindow) {
    Put put = std::move(waiting_.front());
    waiting_.pop_front();
    ++unanswered_;
    ctx.spawn(send(ctx, std::move(put)));
  }
}

Task<void> StoreOutbox::send(Context& ctx, Put put) {
  const size_t size = put.rows.size();
  const actor::Address to{put.store, proto::kKvstore};
  // Asked once: a lost block costs a later miss, no more.
  constexpr base::Duration kPatience = std::chrono::seconds(2);
  const actor::CallOptions options{"store.put", kPatience, kPatience};
  base::Blobs blobs(1, std::move(put.rows));
  auto call = ctx.call<proto::Done>(to, std::move(put.message), options, std::move(blobs));
  const auto answer = co_await std::move(call);
  --unanswered_;
  bytes_ -= size;
  ++(answer && answer->msg.outcome == proto::Outcome::kOk ? counters_.stored : counters_.dropped);
  const bool gone = !answer && answer.error().code == base::Code::kPeerGone;
  if (gone && stores_.erase(to.node) > 0) drop_of_others();  // the view will say so in a moment
  pump(ctx);
}

void StoreOutbox::view_changed(const View& view) {
  stores_.clear();
  for (const auto& [id, node] : view.nodes) {
    if (node.role == proto::Role::kKvstore) stores_.insert(id);
  }
  drop_of_others();
}

// Nobody answers for a store that has left: each put to it would hold a place for its whole
// patience.
void StoreOutbox::drop_of_others() {
  std::erase_if(waiting_, [this](const Put& put) {
    if (stores_.contains(put.store)) return false;
    bytes_ -= put.rows.size();
    ++counters_.dropped;
    return true;
  });
}

void StoreOutbox::clear() {
  for (const Put& put : waiting_) bytes_ -= put.rows.size();
  counters_.dropped += waiting_.size();
  waiting_.clear();
  stores_.clear();
}

}  // namespace node
