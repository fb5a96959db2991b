// The step loop of a decode rank: forced tokens and drafts, the passes, what they sampled.
#include <fmt/core.h>

#include <algorithm>

#include "decode_node/decode_actor.h"

namespace decode {

using experts::cost_of_rows;

namespace {

std::vector<proto::LogprobFields> to_wire(const std::vector<base::TokenLogprobs>& logprobs) {
  std::vector<proto::LogprobFields> out;
  for (const base::TokenLogprobs& of_token : logprobs)
    out.push_back({of_token.logprob, of_token.top});
  return out;
}

}  // namespace

void DecodeActor::kick(Context& ctx) {
  if (stepping_ || table_.running() == 0 || outbox_.full()) return;
  stepping_ = true;
  ctx.spawn(run_steps(ctx));
}

// What is done for several steps at once stands around the inner loop; tokens leave after each
// step.
Task<void> DecodeActor::run_steps(Context& ctx) {
  while (table_.running() > 0 && !outbox_.full()) {
    plans_.begin_step(ctx);
    const std::vector<Sequence*>& scheduled = schedule(ctx);
    if (scheduled.empty()) break;  // who is here waits for blocks
    bool passed = true;
    for (uint32_t i = 0; i < config_.steps_per_schedule && passed && !outbox_.full(); ++i) {
      const std::vector<Sequence*>& batch = table_.still_running();
      if (batch.empty()) break;
      Task<bool> step = run_step(ctx, batch);
      passed = co_await std::move(step);
      if (!experts::can_be_trusted(ctx, *engine_)) co_return;
    }
    if (passed) {
      Task<void> noted = note_blocks(ctx, scheduled);
      co_await std::move(noted);
    }
    table_.end_step();
    if (offers_.noted() && !offering_) ctx.spawn(offer_noted(ctx));
  }
  stepping_ = false;
  plans_.end_steps(ctx);
}

Task<bool> DecodeActor::run_step(Context& ctx, const std::vector<Sequence*>& batch) {
  const base::Time begin = ctx.now();
  const bool loading = plans_.loading() > 0;
  Task<void> ahead = emit_forced(ctx, batch);
  co_await std::move(ahead);
  std::vector<Sequence*> members = batch;  // those that need the pass
  std::erase_if(members, [](const Sequence* sequence) { return sequence->doomed; });
  if (members.empty()) co_return true;
  inject_faults();
  Task<bool> step = compute_step(ctx, members);
  const bool passed = co_await std::move(step);
  if (!experts::can_be_trusted(ctx, *engine_)) co_return false;  // no token of this step leaves
  count_step(members.size(), ctx.now() - begin, loading || plans_.loading() > 0);
  settle(ctx, members, passed);
  outbox_.flush(ctx);
  membership_.progressed();
  co_return passed;
}

// A member that ends by what it must emit is doomed afterwards.
Task<void> DecodeActor::emit_forced(Context& ctx, const std::vector<Sequence*>& batch) {
  if (!forced_.possible(batch)) co_return;
  std::function<void()> job = [this, &batch] { forced_.find(batch); };
  Task<void> run = ctx.offload(std::move(job), cost_of_rows(0));
  co_await std::move(run);
  for (size_t i = 0; i < batch.size(); ++i) {
    const std::vector<TokenId>& tokens = forced_.run(i);
    if (tokens.empty() || batch[i]->doomed) continue;
    batch[i]->forced = static_cast<uint32_t>(tokens.size());
    counters_.forced += tokens.size();
    emit(*batch[i], tokens, {});
  }
  outbox_.flush(ctx);
}

void DecodeActor::count_step(size_t sequences, base::Duration took, bool loading) {
  ++counters_.steps;
  counters_.step_sequences += sequences;
  counters_.batch_rows += step_.rows();
  counters_.step_seconds += base::seconds(took);
  if (!loading) return;
  ++counters_.steps_loading;
  counters_.step_seconds_loading += base::seconds(took);
}

Task<bool> DecodeActor::compute_step(Context& ctx, const std::vector<Sequence*>& batch) {
  if (drafter_.on()) {
    std::function<void()> job = [this, &batch] { drafter_.draft(*engine_, batch, table_.pool()); };
    Task<void> drafted = ctx.offload(std::move(job), cost_of_rows(batch.size()));
    co_await std::move(drafted);
  }
  exchange_->begin_step();
  step_.assemble(batch, table_.pool(), config_.shape,
                 MicroBatches::passes_for(batch, config_.micro_batches, config_.micro_rows,
                                          exchange_->has_peers()));
  exchange_->shards().begin();
  for (StepBatch& part : step_.passes()) exchange_->shards().add(part.pass(), part.members());
  std::vector<base::Future<bool>> passes;
  for (StepBatch& part : step_.passes())
    passes.push_back(
        base::start(model::forward(*engine_, {0, config_.shape.layers}, part.pass(), *exchange_)));
  bool all = true;
  for (size_t i = 0; i < passes.size(); ++i) {  // all of them: they use the batch
    const bool passed = co_await passes[i];
    all = all && passed;
    if (!passed) continue;
    StepBatch& part = step_.passes()[i];
    std::function<void()> job = [this, &part] { part.sample(*engine_); };
    Task<void> sampled = exchange_->compute(std::move(job), part.pass().rows());
    co_await std::move(sampled);
  }
  co_return all;
}

void DecodeActor::inject_faults() {
  for (const base::NodeFault& fault : config_.faults) {
    if (fault.after == counters_.steps) engine_->inject(fault.point);
  }
}

void DecodeActor::settle(Context& ctx, const std::vector<Sequence*>& batch, bool passed) {
  uint64_t drafted = 0;
  for (size_t row = 0; row < batch.size(); ++row) {
    Sequence& sequence = *batch[row];
    if (sequence.doomed) continue;
    if (!passed) {
      fail_attempt(ctx, sequence, base::Code::kUnavailable, "the step was given up");
      continue;
    }
    if (const ShardExchange::Lost* lost = exchange_->shards().lost(sequence)) {
      fail_attempt(ctx, sequence, base::Code::kPeerGone, "a share of its KV was lost: " + lost->why,
                   /*without_cache=*/false, lost->node);
      continue;
    }
    const StepBatch::Next& next = step_.next(row);
    if (!next.finite) {
      ++counters_.numerical_faults;
      fail_attempt(ctx, sequence, base::Code::kInternal,
                   fmt::format("numerical_error: {} at position {}", step_.fault(row),
                               sequence.tokens.size() - 1));
      continue;
    }
    if (next.stuck) {
      fail_attempt(ctx, sequence, base::Code::kUnsupported,
                   fmt::format("the grammar cannot be followed beyond token {} of the answer",
                               sequence.emitted()));
      continue;
    }
    counters_.drafted += next.drafted;
    counters_.accepted += next.run.accepted;
    counters_.step_tokens += next.run.tokens.size();
    drafted += next.drafted;
    sequence.forced = 0;  // they have their KV now
    emit(sequence, next.run.tokens, to_wire(next.run.logprobs));
  }
  counters_.draft_length = static_cast<double>(drafted) / static_cast<double>(batch.size());
}

// The sequence may be gone afterwards: its last token ends it.
void DecodeActor::emit(Sequence& sequence, std::vector<TokenId> tokens,
                       std::vector<proto::LogprobFields> logprobs) {
  proto::TokenEntry entry;
  entry.request = sequence.key.request;
  entry.attempt = sequence.key.attempt;
  entry.index = sequence.emitted();
  entry.logprobs = std::move(logprobs);
  sequence.tokens.insert(sequence.tokens.end(), tokens.begin(), tokens.end());
  entry.finish = finish_of(sequence, config_.shape.eos);
  counters_.tokens += tokens.size();
  entry.tokens = std::move(tokens);
  if (entry.finish != base::FinishReason::kNone) table_.end(sequence);
  outbox_.add(std::move(entry));
}

}  // namespace decode
