#include "prefill_node/store_outbox.h"

namespace prefill {

void StoreOutbox::push(actor::Context& ctx, base::NodeId store, proto::PutKv message,
                       base::Blob rows) {
  if (bytes_ + rows.size() > kBytesMost) {
    ++counters_.dropped;
    return;
  }
  bytes_ += rows.size();
  waiting_.push_back({store, std::move(message), std::move(rows)});
  pump(ctx);
}

void StoreOutbox::pump(actor::Context& ctx) {
  while (!waiting_.empty() && unanswered_ < kWindow) {
    Put put = std::move(waiting_.front());
    waiting_.pop_front();
    ++unanswered_;
    tasks_.start(send(ctx, std::move(put)));
  }
}

base::Task<void> StoreOutbox::send(actor::Context& ctx, Put put) {
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
  if (gone) drop_all_of(to.node);  // waiting for each of the others is no use
  pump(ctx);
}

void StoreOutbox::drop_all_of(base::NodeId store) {
  std::erase_if(waiting_, [&](const Put& put) {
    if (put.store != store) return false;
    bytes_ -= put.rows.size();
    ++counters_.dropped;
    return true;
  });
}

void StoreOutbox::clear() {
  for (const Put& put : waiting_) bytes_ -= put.rows.size();
  counters_.dropped += waiting_.size();
  waiting_.clear();
}

}  // namespace prefill
