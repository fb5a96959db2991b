#include "decode_node/decode_actor.h"

#include <algorithm>
#include <limits>

#include "model/draft_slots.h"
#include "model/integrity.h"
#include "node/process.h"

namespace decode {

using base::Level;
using proto::Outcome;

namespace {

constexpr uint32_t kScrubParts = 600;
constexpr base::Duration kWatchEvery = std::chrono::milliseconds(500);

model::LayerRange all_layers(const model::Shape& shape) { return {0, shape.layers}; }

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
                             .max_batch = config_.max_batch,
                             .max_sequences = config_.max_sequences}),
      outbox_(*this),
      plans_(config_.shape, config_.experts, counters_,
             [this] { return stepping_ || service_.computing() > 0; }),
      service_(counters_, plans_.window()),
      ngram_(counters_),
      drafter_(config_.shape, config_.mtp_steps),
      forced_(config_.shape, config_.max_batch, config_.force_tokens) {}

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
  if (leaving_) return;  // of a life that is over: nothing is here any more
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
    Task<void> run = ctx.offload(std::move(job), cost_of_rows(0));
    co_await std::move(run);
    if (!experts::can_be_trusted(ctx, *engine_)) co_return;
  }
}

void DecodeActor::view_changed(Context& ctx, const node::View& view) {
  offers_.view_changed(view);
  plans_.view_changed(ctx, view);
}

void DecodeActor::life_lost(Context&) {
  positioned_ = false;
  table_.clear();
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
  Sequence* sequence = table_.find({in->request, in->attempt});
  if (sequence != nullptr || membership_.state() == proto::NodeState::kReady) {
    reply.outcome = table_.reserve(in.msg, ctx.now());
    sequence = table_.find({in->request, in->attempt});
  }
  if (sequence != nullptr && grammars_.must_compile(*sequence))
    ctx.spawn(compile(ctx, sequence->sampling.grammar));
  if (reply.outcome == Outcome::kOk) reply.credits = kCredits;
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
  if (sequence == nullptr) return absent({m.request, m.attempt});
  const size_t row_bytes = config_.shape.kv_row_bytes;
  const auto range = sequence->intake.classify(m.layer, m.token_begin, m.token_count, m.digest);
  if (range == KvIntake::Range::kDuplicate) return Outcome::kOk;
  if (range == KvIntake::Range::kConflict || in.blobs.size() != 1 ||
      in.blobs[0].size() != m.token_count * row_bytes ||
      proto::kv_digest(m.layer, m.token_begin, in.blobs[0].view()) != m.digest) {
    ++counters_.corrupt;
    ctx.log(Level::kWarn, "kv.layer.corrupt",
            {{"request", m.request.value}, {"layer", m.layer}, {"from", in.from.node.value}});
    return Outcome::kCorrupt;
  }
  const model::KvView kv{&table_.pool(), sequence->blocks};
  model::copy_slots_in(kv, config_.shape, m.layer, m.token_begin, m.token_count,
                       in.blobs[0].view().data());
  sequence->intake.received(m.layer, m.token_begin, m.token_count, m.digest);
  sequence->heard = ctx.now();
  counters_.kv_rows_received += m.token_count;
  return Outcome::kOk;
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
  if (sequence == nullptr) return absent({m.request, m.attempt});
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
  Task<void> run = ctx.offload(std::move(job), cost_of_rows(1));
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
  ctx.reply(in, proto::Done{});
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

Task<void> DecodeActor::run_steps(Context& ctx) {
  while (table_.running() > 0 && !outbox_.full()) {
    plans_.begin_step(ctx);
    const base::Time begin = ctx.now();
    const bool loading = plans_.loading() > 0;
    const std::vector<Sequence*>& batch = table_.next_batch();
    Task<void> ahead = emit_forced(ctx, batch);
    co_await std::move(ahead);
    std::vector<Sequence*> members = batch;  // those that need the pass
    std::erase_if(members, [](const Sequence* sequence) { return sequence->doomed; });
    bool passed = true;
    if (!members.empty()) {
      inject_faults();
      Task<bool> step = compute_step(ctx, members);
      passed = co_await std::move(step);
      if (!experts::can_be_trusted(ctx, *engine_)) co_return;  // no token of this step leaves
      count_step(members.size(), ctx.now() - begin, loading || plans_.loading() > 0);
      settle(ctx, members, passed);
      outbox_.flush(ctx);  // tokens first
    }
    if (passed) {
      Task<void> offers = offer_blocks(ctx, batch);
      co_await std::move(offers);
    }
    table_.end_step();
    membership_.progressed();
  }
  stepping_ = false;
  plans_.end_steps(ctx);
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
  counters_.batch_rows += step_.pass().rows();
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
  step_.assemble(batch, table_.pool(), config_.shape);
  Task<bool> pass = model::forward(*engine_, all_layers(config_.shape), step_.pass(), *exchange_);
  const bool passed = co_await std::move(pass);
  if (!passed) co_return false;
  std::function<void()> job = [this] { step_.sample(*engine_); };
  Task<void> sampled = ctx.offload(std::move(job), cost_of_rows(step_.pass().rows()));
  co_await std::move(sampled);
  co_return true;
}

Task<void> DecodeActor::offer_blocks(Context& ctx, const std::vector<Sequence*>& batch) {
  const std::vector<Sequence*> behind = Drafter::behind(batch);
  if (!behind.empty()) {
    std::function<void()> job = [this, &behind] {
      drafter_.finish(*engine_, behind, table_.pool());
    };
    Task<void> finished = ctx.offload(std::move(job), cost_of_rows(behind.size()));
    co_await std::move(finished);
  }
  for (Sequence* sequence : batch) offers_.offer(ctx, *sequence, table_.pool(), config_.shape);
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
    const StepBatch::Next& next = step_.next()[row];
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
                               bool without_cache) {
  ctx.log(
      Level::kWarn, "attempt.failed",
      {{"request", sequence.key.request.value}, {"attempt", sequence.key.attempt}, {"why", what}});
  proto::AttemptFailed message;
  message.request = sequence.key.request;
  message.attempt = sequence.key.attempt;
  message.code = static_cast<uint16_t>(code);
  message.what = std::move(what);
  message.without_cache = without_cache;
  ++counters_.attempts_failed;
  table_.end(sequence);
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
