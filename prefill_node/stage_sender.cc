#include "prefill_node/stage_sender.h"

#include "base/check.h"

namespace prefill {

void StageSender::push(uint32_t begin, uint32_t count, base::Blob rows) {
  CHECK(!full(), "{} chunks are on their way to the next stage", unacknowledged_);
  proto::StageInput message;
  message.request = key_.request;
  message.attempt = key_.attempt;
  message.token_begin = begin;
  message.token_count = count;
  message.digest = base::hash128(rows.view());
  ++unacknowledged_;
  tasks_.start(send(std::move(message), std::move(rows)));
}

Task<void> StageSender::send(proto::StageInput message, base::Blob rows) {
  base::Blobs blobs(1, std::move(rows));
  DeliveryOptions options{"stage.input"};
  options.unknown_is_early = true;
  options.counters = &counters_;
  Task<bool> delivery =
      deliver<proto::Done>(ctx_, party_, next_, std::move(message), std::move(blobs), options);
  const bool taken = co_await std::move(delivery);
  if (!taken) co_return;
  --unacknowledged_;
  party_.moved();
}

}  // namespace prefill
