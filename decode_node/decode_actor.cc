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
constexpr uint32_t kRowsMost = std::numeric_limits<uint16_t>::max();

uint32_t rows_most(const DecodeConfig& config) {
  const uint32_t derived = std::max(2 * config.max_batch, 32u);
  const uint32_t wanted = config.max_rows > 0 ? config.max_rows : derived;
  return std::min(wanted, kRowsMost);
}

uint32_t tokens_ahead(const DecodeConfig& config) {
  return config.steps_per_schedule * (1 + config.mtp_steps);
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
      drafter_(config_.shape, config_.mtp_steps, rows_most(config_)),
      forced_(config_.shape, {config_.force_tokens ? kRowsMost : 0, tokens_ahead(config_)}) {}

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
  Sequence* sequence = table_.find({in->request, in->attempt});
  const bool again = sequence != nullptr;
  if (again || membership_.state() == proto::NodeState::kReady) {
    if (in->attempt > 0) shards_.cancel(in->request, in->attempt - 1);
    reply.outcome = table_.reserve(in.msg, ctx.now(), shards_.blocks());
    sequence = table_.find({in->request, in->attempt});
  }
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

// --- how attempts end

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
