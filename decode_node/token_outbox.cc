#include "decode_node/token_outbox.h"

#include <algorithm>

#include "node/membership_client.h"

namespace decode {

void TokenOutbox::flush(actor::Context& ctx) {
  if (entries_.empty() || full()) return;
  proto::TokenOut message;
  message.entries.swap(entries_);
  ++in_flight_;
  ctx.spawn(deliver(ctx, std::move(message)));
}

base::Task<void> TokenOutbox::deliver(actor::Context& ctx, proto::TokenOut message) {
  std::vector<SequenceKey> keys;
  keys.reserve(message.entries.size());
  for (const proto::TokenEntry& entry : message.entries) {
    keys.push_back({entry.request, entry.attempt});
  }
  const actor::CallOptions options{"token.out", std::chrono::milliseconds(250),
                                   std::chrono::seconds(60)};
  const actor::Address to = node::coordinator_address();
  auto call = ctx.call<proto::TokenAck>(to, std::move(message), options);
  base::Result<actor::Incoming<proto::TokenAck>> answer = co_await std::move(call);
  --in_flight_;
  if (!answer) {
    // kStale: our life ended, and with it every sequence.
    const bool lost = answer.error().code != base::Code::kStale;
    if (lost) ctx.log(base::Level::kWarn, "token.out.lost", {{"why", answer.error().what}});
    for (size_t i = 0; lost && i < keys.size(); ++i) owner_.tokens_lost(ctx, keys[i]);
  } else {
    for (const SequenceKey& key : keys) {
      if (std::ranges::count(answer->msg.stale, key.request) > 0) owner_.tokens_stale(ctx, key);
    }
  }
  flush(ctx);
  owner_.outbox_moved(ctx);
}

}  // namespace decode
