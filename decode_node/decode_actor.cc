#include "decode_node/decode_actor.h"

#include <algorithm>
#include <limits>

#include "decode_node/kv_rows.h"
#include "model/integrity.h"
#include "node/process.h"

namespace decode {

using base::Level;
using proto::Outcome;

namespace {

constexpr uint32_t kScrubParts = 600;
constexpr base::Duration kWatchEvery = std::chrono::milliseconds(500);

model::LayerRange all_layers(const model::Shape& shape) { return {0, shape.layers}; }

// Rows of a pass are numbered in 16 bits (RoutedPairs).
uint32_t rows_most(const DecodeConfig& config) {
  const uint32_t derived = std::max(2 * config.max_batch, 32u);
  const uint32_t wanted = config.max_rows > 0 ? config.max_rows : derived;
  return std::min<uint32_t>(wanted, std::numeric_limits<uint16_t>::max());
}

uint32_t tokens_ahead(const DecodeConfig& config) {
  return config.steps_per_schedule * (1 + config.mtp_steps);
}

std::vector<proto::LogprobFields> to_wire(const std::vector<base::TokenLogprobs>& logprobs) {
  std::vector<proto::LogprobFields> out;
  for (const base::TokenLogprobs& of_token : logprobs)
    out.push_back({of_token.logprob, of_token.top});
  return out;
}

}  // namespace

uint32_t DecodeActor::blocks_in(uint64_t kv_bytes, const model::Shape& shape) {
  const uint64_t block =
      static_cast<uint64_t>(shape.kv_layers()) * shape.kv_row_bytes * model::kBlockTokens;
  return static_cast<uint32_t>(
      std::min<uint64_t>(kv_bytes / block, std::numeric_limits<uint32_t>::max()));
}

DecodeActor::DecodeActor(DecodeConfig config)
    : config_(std::move(config)),
      membership_(config_.identity, *this),
      table_(config_.shape, {.blocks = blocks_in(config_.kv_bytes, config_.shape),
                             .max_batch = std::min(config_.max_batch, rows_most(config_)),
                             .max_sequences = config_.max_sequences,
                             .tokens_ahead = tokens_ahead(config_)}),
      shards_(config_.shape, table_.pool(), counters_),
      outbox_(*this),
      plans_(config_.shape, config_.experts, counters_,
             [this] { return stepping_ || service_.computing() > 0; }),
      service_(counters_, plans_.window()),
      ngram_(counters_),
      drafter_(config_.shape, config_.mtp_steps, rows_most(config_)) {}

void DecodeActor::start(Context& ctx) {
  membership_.start(ctx);
  plans_.start(ctx);
  ctx.spawn(watch(ctx));
}

// --- this node in the cluster

void DecodeActor::welcomed(Context& ctx, const proto::HelloReply& reply) {
  ctx.set_log_node("decode/" + std::to_string(reply.position));
  positioned_ = true;
  plans_.welcomed(ctx, reply.position, reply.positions);
  if (engine_) {
    membership_.ready(ctx);
  } else if (!loading_) {
    ctx.spawn(load(ctx));
  }
}

Task<void> DecodeActor::load(Context& ctx) {
  loading_ = true;
  base::Result<std::unique_ptr<model::Engine>> made = nullptr;
  std::function<void()> job = [this, &made] {
    made = config_.make_engine();
    grammars_.load(config_.make_vocabulary);
  };
  Task<void> run = ctx.offload(std::move(job), cost_of_rows(0));
  co_await std::move(run);
  if (!made) {
    ctx.log(Level::kError, "model.load_failed", {{"why", base::to_string(made.error())}});
    ctx.stop(node::kExitModel);
    co_return;
  }
  engine_ = std::move(*made);
  exchange_ =
      std::make_unique<ExpertExchange>(ctx, *engine_, membership_.view(), counters_, plans_);
  if (config_.share_ngram) exchange_->share_ngram();
  Task<void> ahead = plans_.load(ctx, *engine_);
  co_await std::move(ahead);
  loading_ = false;
  if (positioned_) membership_.ready(ctx);
  if (config_.scrub.count() > 0) ctx.spawn(scrub(ctx));
}

// A little at a time, so that no step waits long for it.
Task<void> DecodeActor::scrub(Context& ctx) {
  for (;;) {
    Task<void> pause = ctx.sleep(config_.scrub / kScrubParts);
    co_await std::move(pause);
    std::function<void()> job = [this] {
      engine_->scrub(engine_->weight_bytes() / kScrubParts + 1);
    };
    Task<void> run = ctx.offload(std::move(job), cost_of_rows(0).at(actor::Turn::kBackground));
    co_await std::move(run);
    if (!experts::can_be_trusted(ctx, *engine_)) co_return;
  }
}

void DecodeActor::view_changed(Context& ctx, const node::View& view) {
  offers_.view_changed(view);
  plans_.view_changed(ctx, view);
  watch_shares(ctx);
}

void DecodeActor::life_lost(Context&) {
  positioned_ = false;
  table_.clear();
  shards_.clear();
  outbox_.clear();
  offers_.clear();
  plans_.life_lost();
}

Task<void> DecodeActor::watch(Context& ctx) {
  for (;;) {
    Task<void> pause = ctx.sleep(kWatchEvery);
    co_await std::move(pause);
    const SequenceTable::Expired expired = table_.expired(ctx.now());
    for (Sequence* sequence : expired.overdue) {  // the coordinator's deadline has passed before
      ctx.log(Level::kInfo, "sequence.overdue", {{"request", sequence->key.request.value}});
      table_.end(*sequence);
    }
    for (Sequence* sequence : expired.silent) {
      fail_attempt(ctx, *sequence, base::Code::kDeadline, "no KV has arrived for a minute");
    }
    watch_shares(ctx);
    kick(ctx);
  }
}

// --- taking in

// Of an attempt that table_.find() does not know.
Outcome DecodeActor::absent(const SequenceKey& key) {
  const Outcome outcome = table_.absent(key);
  if (outcome == Outcome::kStale) ++counters_.stale;
  return outcome;
}

void DecodeActor::on(Context& ctx, const Incoming<proto::ReserveKv>& in) {
  proto::KvReserved reply;
  reply.outcome = Outcome::kNoRoom;
  const bool again = table_.find({in->request, in->attempt}) != nullptr;
  if (membership_.state() == proto::NodeState::kReady) {
    if (in->attempt > 0) shards_.cancel(in->request, in->attempt - 1);
    reply.outcome = table_.reserve(in.msg, ctx.now(), shards_.blocks());
  }
  Sequence* sequence = table_.find({in->request, in->attempt});
  if (sequence != nullptr && grammars_.must_compile(*sequence))
    ctx.spawn(compile(ctx, sequence->sampling.grammar));
  if (reply.outcome == Outcome::kOk) {
    reply.credits = kCredits;
    reply.held_blocks = sequence->held_blocks;
    if (!again)
      counters_.kv_rows_held +=
          uint64_t{reply.held_blocks} * model::kBlockTokens * config_.shape.kv_layers();
  }
  if (reply.outcome == Outcome::kCorrupt) {
    ctx.log(Level::kWarn, "kv.reserve.refused", {{"request", in->request.value}});
  }
  ctx.reply(in, reply);
}

void DecodeActor::on(Context& ctx, const Incoming<proto::KvLayer>& in) {
  proto::KvAck reply;
  reply.outcome = take_rows(ctx, in);
  ctx.reply(in, reply);
}

Outcome DecodeActor::take_rows(Context& ctx, const Incoming<proto::KvLayer>& in) {
  const proto::KvLayer& m = in.msg;
  Sequence* sequence = table_.find({m.request, m.attempt});
  if (sequence == nullptr) return take_share_rows(ctx, in);
  sequence->heard = ctx.now();
  return take_kv_rows(ctx, in, sequence->kv(table_.pool()), config_.shape, sequence->intake,
                      counters_);
}

void DecodeActor::on(Context& ctx, const Incoming<proto::KvCommit>& in) {
  proto::Done reply;
  reply.outcome = take_commit(ctx, in);
  ctx.reply(in, reply);
}

// The hidden row comes with the first token where the model drafts, and only there.
bool DecodeActor::sound(const Incoming<proto::KvCommit>& in) const {
  const proto::KvCommit& m = in.msg;
  if (m.logprobs.size() > 1 || (m.has_token && m.token >= config_.shape.vocab)) return false;
  if (!m.has_token || config_.shape.mtp_steps == 0) return in.blobs.empty();
  return in.blobs.size() == 1 && in.blobs[0].size() == config_.shape.hidden * sizeof(float) &&
         base::hash128(in.blobs[0].view()) == m.hidden;
}

Outcome DecodeActor::take_commit(Context& ctx, const Incoming<proto::KvCommit>& in) {
  const proto::KvCommit& m = in.msg;
  Sequence* sequence = table_.find({m.request, m.attempt});
  if (sequence == nullptr) return take_share_commit(ctx, in);
  const auto verdict = sound(in) ? sequence->intake.commit(m) : KvIntake::Commit::kMalformed;
  if (verdict == KvIntake::Commit::kMalformed) {
    ++counters_.corrupt;
    return Outcome::kCorrupt;
  }
  if (verdict == KvIntake::Commit::kMismatch) {
    fail_attempt(ctx, *sequence, base::Code::kCorrupt,
                 "the KV that arrived is not the KV that was sent", /*without_cache=*/true);
    return Outcome::kStale;
  }
  if (sequence->running()) return Outcome::kOk;
  sequence->heard = ctx.now();
  if (m.has_token) {
    sequence->first = Sequence::First{m.token, m.logprobs, {}};
    if (!in.blobs.empty()) sequence->first->hidden = in.blobs[0].to_vector<float>();
  }
  if (sequence->complete()) begin_decode(ctx, *sequence);
  return Outcome::kOk;
}

// For all sequences that wait for this grammar by then.
Task<void> DecodeActor::compile(Context& ctx, base::GrammarText text) {
  Grammars::Compiled made = nullptr;
  std::function<void()> job = [this, &made, &text] { made = grammars_.compile(text); };
  Task<void> run = ctx.offload(std::move(job), cost_of_rows(1).at(actor::Turn::kBackground));
  co_await std::move(run);
  std::unique_ptr<grammar::Grammar> grammar;
  if (made) grammar = std::move(*made);
  grammars_.hand_in(text, std::move(grammar));
  for (Sequence* sequence : table_.waiting_for(text)) {
    if (!made) {
      fail_attempt(ctx, *sequence, base::Code::kUnsupported, made.error().what);
      continue;
    }
    grammars_.must_compile(*sequence);
    if (sequence->complete()) begin_decode(ctx, *sequence);
  }
}

void DecodeActor::begin_decode(Context& ctx, Sequence& sequence) {
  ctx.log(Level::kDebug, "sequence.begin",
          {{"request", sequence.key.request.value}, {"tokens", sequence.tokens.size()}});
  Sequence::First first = std::move(*sequence.first);
  table_.admit(sequence);
  if (drafter_.on()) drafter_.begin(sequence, first.hidden);
  emit(sequence, {first.token}, std::move(first.logprobs));
  outbox_.flush(ctx);
  kick(ctx);
}

void DecodeActor::on(Context& ctx, const Incoming<proto::Cancel>& in) {
  table_.cancel(in->request, in->attempt);
  shards_.cancel(in->request, in->attempt);
  ctx.reply(in, proto::Done{});
  kick(ctx);  // there may be blocks for one that waits
}

void DecodeActor::on(Context& ctx, const Incoming<proto::ExpertIn>& in) {
  service_.answer(ctx, engine_.get(), all_layers(config_.shape), in);
}

// --- stepping

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
  inject_faults();
  Task<bool> step = compute_step(ctx, batch);
  const bool passed = co_await std::move(step);
  if (!experts::can_be_trusted(ctx, *engine_)) co_return false;  // no token of this step leaves
  count_step(batch.size(), ctx.now() - begin, loading || plans_.loading() > 0);
  settle(ctx, batch, passed);
  outbox_.flush(ctx);
  membership_.progressed();
  co_return passed;
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
        base::start(model::forward(*engine_, all_layers(config_.shape), part.pass(), *exchange_)));
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

void DecodeActor::tokens_stale(Context& ctx, const SequenceKey& key) {
  Sequence* sequence = table_.find(key);
  if (sequence == nullptr) return;
  ++counters_.stale;
  ctx.log(Level::kInfo, "sequence.stale", {{"request", key.request.value}});
  table_.end(*sequence);
}

void DecodeActor::tokens_lost(Context& ctx, const SequenceKey& key) {
  Sequence* sequence = table_.find(key);
  if (sequence == nullptr) return;
  fail_attempt(ctx, *sequence, base::Code::kUnavailable, "tokens could not be delivered");
}

void DecodeActor::fail_attempt(Context& ctx, Sequence& sequence, base::Code code, std::string what,
                               bool without_cache, base::NodeId blamed) {
  const SequenceKey key = sequence.key;
  table_.end(sequence);
  tell_failure(ctx, key, code, std::move(what), without_cache, blamed);
}

void DecodeActor::tell_failure(Context& ctx, const SequenceKey& key, base::Code code,
                               std::string what, bool without_cache, base::NodeId blamed) {
  ctx.log(Level::kWarn, "attempt.failed",
          {{"request", key.request.value}, {"attempt", key.attempt}, {"why", what}});
  proto::AttemptFailed message;
  message.request = key.request;
  message.attempt = key.attempt;
  message.code = static_cast<uint16_t>(code);
  message.what = std::move(what);
  message.without_cache = without_cache;
  message.blamed = blamed;
  ++counters_.attempts_failed;
  ctx.spawn(report(ctx, std::move(message)));
}

Task<void> DecodeActor::report(Context& ctx, proto::AttemptFailed message) {
  ++reports_;
  const actor::CallOptions options{"attempt.failed", std::chrono::milliseconds(250),
                                   std::chrono::seconds(30)};
  const actor::Address to = node::coordinator_address();
  auto call = ctx.call<proto::Done>(to, std::move(message), options);
  const auto answer = co_await std::move(call);
  --reports_;
  if (!answer) ctx.log(Level::kWarn, "attempt.failed.untold", {{"why", answer.error().what}});
}

}  // namespace decode
