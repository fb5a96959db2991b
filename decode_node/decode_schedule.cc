// What a decode rank does once for several steps: who runs, who gives way, the blocks for the
// stores.
#include "decode_node/decode_actor.h"

namespace decode {

using base::Level;
using experts::cost_of_rows;

const std::vector<Sequence*>& DecodeActor::schedule(Context& ctx) {
  while (table_.tight() && offers_.noted()) offer_one(ctx);  // blocks of ended ones may be wanted
  return table_.next_batch([this, &ctx](Sequence& sequence) { preempt(ctx, sequence); });
}

// The last block of one that has ended may lack rows of the drafting block.
Task<void> DecodeActor::note_blocks(Context& ctx, const std::vector<Sequence*>& batch) {
  const std::vector<Sequence*> behind = Drafter::behind(batch);
  if (!behind.empty()) {
    std::function<void()> job = [this, &behind] {
      drafter_.finish(*engine_, behind, table_.pool());
    };
    Task<void> finished = ctx.offload(std::move(job), cost_of_rows(behind.size()));
    co_await std::move(finished);
  }
  for (Sequence* sequence : batch) offers_.note(*sequence);
}

// Beside the steps: one sequence at a time, so that nothing else waits long for the copying.
Task<void> DecodeActor::offer_noted(Context& ctx) {
  offering_ = true;
  while (offers_.noted()) {
    Task<void> turn = ctx.sleep({});
    co_await std::move(turn);
    if (offers_.noted()) offer_one(ctx);
  }
  offering_ = false;
}

void DecodeActor::offer_one(Context& ctx) {
  table_.offered(offers_.hand_over(ctx, table_.pool(), config_.shape));
}

// Between steps. Its KV goes to the stores as far as its blocks are full, from where the next
// attempt loads it.
void DecodeActor::preempt(Context& ctx, Sequence& sequence) {
  if (sequence.running()) offers_.note(sequence);
  while (sequence.offering) offer_one(ctx);
  ctx.log(Level::kInfo, "sequence.preempted",
          {{"request", sequence.key.request.value},
           {"attempt", sequence.key.attempt},
           {"emitted", sequence.emitted()}});
  proto::AttemptFailed message;
  message.request = sequence.key.request;
  message.attempt = sequence.key.attempt;
  message.code = static_cast<uint16_t>(base::Code::kExhausted);
  message.what = "its KV was wanted for a request before it";
  message.preempted = true;
  ++counters_.preempted;
  table_.end(sequence);
  ctx.spawn(report(ctx, std::move(message)));
}

}  // namespace decode
