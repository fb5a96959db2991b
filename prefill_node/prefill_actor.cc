#include "prefill_node/prefill_actor.h"

#include <algorithm>
#include <string>
#include <type_traits>
#include <utility>

#include "node/process.h"
#include "prefill_node/stage_site.h"

namespace prefill {

using base::Code;
using base::Level;
using proto::Outcome;

namespace {
constexpr uint32_t kScrubParts = 600;
}

PrefillActor::PrefillActor(PrefillConfig config)
    : config_(std::move(config)),
      chunks_{config_.chunk_tokens, config_.dynamic_chunks, config_.shape.cost},
      membership_(config_.identity, *this),
      service_(counters_.experts),
      ngram_(counters_.ngram) {
  CHECK(config_.chunk_tokens > 0 && config_.chunk_tokens <= StageInputs::kRowsMost,
        "chunks of {} tokens", config_.chunk_tokens);
  CHECK(config_.passes > 0, "a stage that never computes");
}

void PrefillActor::start(Context& ctx) {
  ctx_ = &ctx;
  membership_.start(ctx);
}

// ---------------------------------------------------------------------------------- membership

void PrefillActor::welcomed(Context& ctx, const proto::HelloReply& reply) {
  ctx.set_log_node("prefill/" + std::to_string(reply.position));
  const model::LayerRange layers{reply.layer_begin, reply.layer_end};
  if (layers.begin >= layers.end || layers.end > config_.shape.layers) {
    ctx.log(Level::kError, "prefill.layers_impossible",
            {{"begin", layers.begin}, {"end", layers.end}});
    ctx.stop(node::kExitConfig);
    return;
  }
  const uint64_t turn = ++loads_;
  if (engine_ && layers == layers_) {
    membership_.ready(ctx);
  } else {
    ctx.spawn(load(ctx, layers, turn));
  }
}

Task<void> PrefillActor::load(Context& ctx, model::LayerRange layers, uint64_t turn) {
  // They run on the former engine and pool.
  while (passes_ > 0 || scrubbing_ || !leaving_.empty() || service_.computing() > 0 ||
         ngram_.reading() > 0) {
    Task<void> wait = ctx.sleep(std::chrono::milliseconds(1));
    co_await std::move(wait);
    if (turn != loads_) co_return;
  }
  ++engines_;
  dispatch_.reset();
  lookup_.reset();
  engine_.reset();
  pool_.reset();
  base::Result<std::unique_ptr<model::Engine>> made = nullptr;
  const bool draws = config_.make_vocabulary && layers.end == config_.shape.layers;
  base::Result<grammar::Vocabulary> vocabulary =
      base::fail(base::Code::kUnsupported, "this stage has no tokenizer");
  std::function<void()> job = [this, layers, draws, &made, &vocabulary] {
    made = config_.make_engine(layers);
    if (draws) vocabulary = config_.make_vocabulary();
  };
  Task<void> run = ctx.offload(std::move(job), cost_of_rows(0));
  co_await std::move(run);
  if (!made) {
    ctx.log(Level::kError, "model.load_failed", {{"why", base::to_string(made.error())}});
    ctx.stop(node::kExitModel);
    co_return;
  }
  if (turn != loads_) co_return;
  const model::LayerRange kept = config_.shape.kv_range(layers);
  const uint64_t block_bytes =
      uint64_t{config_.shape.kv_row_bytes} * model::kBlockTokens * kept.count();
  const uint64_t blocks = config_.kv_bytes / block_bytes;
  layers_ = layers;
  engine_ = std::move(*made);
  grammars_.emplace();
  vocabulary_ = std::move(vocabulary);
  if (config_.share_experts) {
    dispatch_ = std::make_unique<experts::ExpertDispatch>(ctx, *engine_, proto::kPrefill,
                                                          counters_.experts);
  }
  if (config_.share_ngram) {
    lookup_ =
        std::make_unique<lookup::NgramLookup>(ctx, *engine_, proto::kPrefill, counters_.ngram);
  }
  pool_ =
      std::make_unique<model::KvPool>(static_cast<uint32_t>(std::min<uint64_t>(blocks, UINT32_MAX)),
                                      kept, config_.shape.kv_row_bytes);
  membership_.ready(ctx);
  if (config_.scrub.count() > 0) ctx.spawn(scrub(ctx, ++engines_));
}

// A little at a time, so that no chunk waits long for it.
Task<void> PrefillActor::scrub(Context& ctx, uint64_t of) {
  for (;;) {
    Task<void> pause = ctx.sleep(config_.scrub / kScrubParts);
    co_await std::move(pause);
    if (of != engines_ || !engine_) co_return;
    scrubbing_ = true;
    std::function<void()> job = [this] {
      engine_->scrub(engine_->weight_bytes() / kScrubParts + 1);
    };
    Task<void> run = ctx.offload(std::move(job), cost_of_rows(0).at(actor::Turn::kBackground));
    co_await std::move(run);
    scrubbing_ = false;
    if (!experts::can_be_trusted(ctx, *engine_)) co_return;
  }
}

void PrefillActor::view_changed(Context&, const node::View& view) {
  std::vector<Job*> broken;
  for (const auto& [id, entry] : seen_) {
    if (view.has(id)) continue;
    links_.forget(id);
    for (const auto& [key, job] : jobs_) {
      if (job->involves(id)) broken.push_back(job.get());
    }
  }
  seen_ = view.nodes;
  outbox_.view_changed(view);
  for (Job* job : broken) {
    if (job->over()) continue;  // it lost two nodes
    base::Error error{Code::kPeerGone, "a node of the attempt left the cluster"};
    job_failed(*job, std::move(error), /*without_cache=*/false, {});
  }
}

void PrefillActor::life_lost(Context&) {
  ++loads_;
  while (!jobs_.empty()) remove(*jobs_.begin()->second);
  ended_.clear();
  links_ = {};
  outbox_.clear();
  seen_.clear();
  note_state();
}

void PrefillActor::fill(proto::Heartbeat& beat) {
  if (beat.state == proto::NodeState::kLoading && config_.load_percent != nullptr)
    beat.load_percent = config_.load_percent->load(std::memory_order_relaxed);
  beat.running = passes_;
  beat.waiting = static_cast<uint32_t>(jobs_.size()) -
                 std::min<uint32_t>(passes_, static_cast<uint32_t>(jobs_.size()));
  beat.blocks_used = pool_ ? pool_->used() : 0;
  beat.blocks_total = pool_ ? pool_->total() : 0;
  if (ctx_ != nullptr) {
    beat.load_rate = counters_.loaded.rate.value(ctx_->now());
    beat.prefill_rate = prefill_rate_.value(ctx_->now());
    beat.slow_ranks = links_.resting(ctx_->now());
  }
  const auto count = [&beat](const char* name, uint64_t value) {
    beat.counters.emplace_back(name, static_cast<double>(value));
  };
  const PrefillCounters& c = counters_;
  if (config_.read_bytes) count(node::kReadBytes, config_.read_bytes());
  count("prefill_chunks_total", c.chunks);
  count("prefill_tokens_total", c.tokens);
  count("prefill_cached_tokens_total", c.cached_tokens);
  count("prefill_attempts_done_total", c.attempts_done);
  count("prefill_no_room_total", c.no_room);
  count("grammars_compiled_total", c.grammars_compiled);
  count("kv_rows_sent_total", c.shipped.rows);
  count("kv_bytes_sent_total", c.shipped.bytes);
  count("kv_links_slow_total", c.jobs.links_slow);
  count("prefill_load_bytes_total", c.loaded.bytes);
  beat.counters.emplace_back("prefill_load_seconds_total", c.loaded.seconds);
  beat.counters.emplace_back("prefill_load_wait_seconds_total", c.loaded.wait_seconds);
  count("store_entries_put_total", outbox_.counters().stored);
  count("store_entries_dropped_total", outbox_.counters().dropped);
  count("transport_corrupt_total", c.corrupt + c.shipped.corrupt + c.exchanged.corrupt +
                                       c.experts.corrupt + c.ngram.ngram_corrupt);
  count("stale_dropped_total", c.stale);
  count("attempts_failed_total", c.attempts_failed);
  count("sequence_bytes_sent_total", c.exchanged.bytes);
  count("expert_rows_sent_total", c.experts.expert_rows_sent);
  count("expert_rows_received_total", c.experts.expert_rows_received);
  count("expert_redispatched_total", c.experts.expert_redispatched);
  lookup::report(c.ngram, beat);
  const auto measure = [&beat](const char* name, double value) {
    beat.counters.emplace_back(name, value);
  };
  const base::Time now = ctx_->now();
  const StageClock::Spent spent = clock_.spent(now);
  measure("prefill_busy_seconds_total", base::seconds(spent.busy));
  measure("prefill_bubble_seconds_total", base::seconds(spent.bubble));
  measure("prefill_utilisation", clock_.utilisation(now));
  measure("sequence_wait_seconds_total", base::seconds(c.exchanged.waited));
  measure("kv_exposed_seconds_total", base::seconds(c.jobs.kv_exposed));
}

Ledger PrefillActor::ledger() const {
  Ledger out;
  out.jobs = static_cast<uint32_t>(jobs_.size());
  out.leaving = static_cast<uint32_t>(leaving_.size());
  out.blocks_used = pool_ ? pool_->used() : 0;
  for (const auto& [key, job] : jobs_) {
    out.unacknowledged += job->unacknowledged();
    out.fetching += job->fetching();
  }
  out.storing = static_cast<uint32_t>(outbox_.pending());
  out.reports = reports_;
  out.expert_calls = dispatch_ ? dispatch_->in_flight() : 0;
  out.expert_jobs = service_.computing();
  out.ngram_calls = lookup_ ? lookup_->in_flight() : 0;
  out.ngram_reads = ngram_.reading();
  return out;
}

// ------------------------------------------------------------------------------------ messages

Job* PrefillActor::find(const JobKey& key) {
  const auto found = jobs_.find(key);
  return found == jobs_.end() ? nullptr : found->second.get();
}

void PrefillActor::on(Context& ctx, const Incoming<proto::StartPrefill>& in) {
  membership_.progressed();
  proto::Done done;
  done.outcome = open_job(ctx, in.msg);
  if (done.outcome == Outcome::kStale) ++counters_.stale;
  if (done.outcome == Outcome::kNoRoom) ++counters_.no_room;
  ctx.reply(in, done);
  pump();
}

Outcome PrefillActor::open_job(Context& ctx, const proto::StartPrefill& start) {
  const JobKey key{start.request, start.attempt};
  if (find(key) != nullptr) return Outcome::kOk;
  const auto later = jobs_.upper_bound(key);
  if (later != jobs_.end() && later->first.request == key.request) return Outcome::kStale;
  if (const Outcome past = ended_.of(key); past != Outcome::kUnknown) return past;
  if (membership_.state() != proto::NodeState::kReady || !engine_) return Outcome::kNoRoom;
  if (!Job::plausible(start, config_.shape, ctx.self().node)) {
    ctx.log(Level::kWarn, "prefill.implausible", {{"request", key.request.value}});
    return Outcome::kCorrupt;
  }
  if (key.attempt > 0) drop_up_to(key.request, key.attempt - 1);
  if (jobs_.size() + leaving_.size() >= config_.jobs) return Outcome::kNoRoom;
  auto blocks =
      pool_->allocate(model::KvPool::blocks_for(static_cast<uint32_t>(start.tokens.size())));
  if (!blocks) return Outcome::kNoRoom;
  const StageFacts facts{ctx,
                         *this,
                         config_.shape,
                         config_.shape.kv_range(layers_),
                         *pool_,
                         chunks_,
                         counters_.shipped,
                         counters_.loaded,
                         outbox_,
                         membership_.view(),
                         counters_.jobs,
                         counters_.exchanged,
                         vocabulary_,
                         links_};
  auto job = std::make_unique<Job>(facts, start, std::move(*blocks));
  Job& opened = *job;
  jobs_.emplace(key, std::move(job));
  scheduler_.add(key);
  counters_.cached_tokens += uint64_t{start.cached_blocks} * model::kBlockTokens;
  opened.begin();
  return Outcome::kOk;
}

void PrefillActor::on(Context& ctx, const Incoming<proto::StageInput>& in) {
  take_rows(ctx, in, in.blobs.size() == 1 ? base::hash128(in.blobs[0].view()) : base::Hash128{});
}

void PrefillActor::on(Context& ctx, const Incoming<proto::SequenceKv>& in) {
  take_rows(
      ctx, in,
      in.blobs.size() == 1 ? proto::sequence_digest(in.msg, in.blobs[0].view()) : base::Hash128{});
}

template <class M>
void PrefillActor::take_rows(Context& ctx, const Incoming<M>& in, const base::Hash128& digest) {
  membership_.progressed();
  const JobKey key{in->request, in->attempt};
  proto::Done done;
  if (Job* job = find(key); job == nullptr) {
    done.outcome = outcome_without_job(key);
  } else if (in.blobs.size() != 1 || digest != in->digest) {
    done.outcome = Outcome::kCorrupt;
  } else if constexpr (std::is_same_v<M, proto::SequenceKv>) {
    done.outcome = job->accept(in.msg, in.from.node, in.blobs[0]);
  } else {
    done.outcome = job->accept(in.msg, in.blobs[0]);
  }
  if (done.outcome == Outcome::kStale) ++counters_.stale;
  if (done.outcome == Outcome::kCorrupt) ++counters_.corrupt;
  ctx.reply(in, done);
  pump();
}

Outcome PrefillActor::outcome_without_job(const JobKey& key) const {
  const auto later = jobs_.upper_bound(key);
  if (later != jobs_.end() && later->first.request == key.request) return Outcome::kStale;
  return ended_.of(key);
}

void PrefillActor::on(Context& ctx, const Incoming<proto::ExpertIn>& in) {
  membership_.progressed();
  service_.answer(ctx, engine_.get(), layers_, in);
}

void PrefillActor::on(Context& ctx, const Incoming<proto::Cancel>& in) {
  membership_.progressed();
  drop_up_to(in->request, in->attempt);
  ended_.dropped({in->request, in->attempt});
  ctx.reply(in, proto::Done{});
  pump();
}

void PrefillActor::drop_up_to(base::RequestId request, uint32_t attempt) {
  for (;;) {
    const auto found = jobs_.lower_bound({request, 0});
    if (found == jobs_.end() || found->first.request != request || found->first.attempt > attempt)
      return;
    Job& job = *found->second;
    ended_.dropped(job.key());
    remove(job);
  }
}

// ------------------------------------------------------------------------------------- compute

void PrefillActor::pump() {
  const auto cost_of = [this](const JobKey& key) -> std::optional<uint64_t> {
    const Job& job = *jobs_.at(key);
    if (!job.runnable()) return std::nullopt;
    return job.chunk_cost();
  };
  while (engine_ && passes_ < config_.passes) {
    const auto key = scheduler_.next(cost_of);
    if (!key) break;
    Job& job = *jobs_.at(*key);
    job.begin_chunk();
    ++passes_;
    ctx_->spawn(run_chunk(*ctx_, job));
  }
  note_state();
}

void PrefillActor::note_state() {
  const auto waits = [](const auto& entry) { return !entry.second->computed(); };
  const StageClock::State state = passes_ > 0                         ? StageClock::State::kBusy
                                  : std::ranges::any_of(jobs_, waits) ? StageClock::State::kBubble
                                                                      : StageClock::State::kIdle;
  clock_.set(state, ctx_->now());
}

// The job is in jobs_ or, when it ends meanwhile, in leaving_ until this returns.
Task<void> PrefillActor::run_chunk(Context& ctx, Job& job) {
  const uint32_t rows = job.pass().rows();
  Task<void> chunk = compute(ctx, job);
  co_await std::move(chunk);
  --passes_;
  membership_.progressed();
  job.end_chunk();
  if (job.over()) {
    const auto found = std::ranges::find_if(
        leaving_, [&job](const std::unique_ptr<Job>& other) { return other.get() == &job; });
    CHECK(found != leaving_.end(), "a job is over and nobody has it");
    std::unique_ptr<Job> owned = std::move(*found);
    leaving_.erase(found);
    release(std::move(owned));
  } else {
    ++counters_.chunks;
    counters_.tokens += rows;
    job_moved(job);
  }
  pump();
}

Task<void> PrefillActor::compute(Context& ctx, Job& job) {
  for (const base::NodeFault& fault : config_.faults) {
    if (fault.after == chunks_begun_) engine_->inject(fault.point);
  }
  ++chunks_begun_;
  StageSite site(ctx, *engine_, job, dispatch_.get(), lookup_.get());
  Task<bool> pass = model::forward(*engine_, layers_, job.pass(), site);
  bool whole = co_await std::move(pass);
  if (whole && job.drafts()) {
    Task<bool> drafting = job.draft(site, *engine_);
    whole = co_await std::move(drafting);
  }
  if (whole) prefill_rate_.add(job.pass().rows(), site.seconds(), ctx.now());
  if (!experts::can_be_trusted(ctx, *engine_) && !job.over()) remove(job);
  if (!whole || job.over() || !job.samples() || !job.at_last_token()) co_return;
  const base::GrammarText& text = job.grammar_text();
  std::unique_ptr<grammar::Grammar> grammar = grammars_->take(text);
  if (!grammar && text.kind != base::GrammarKind::kNone) ++counters_.grammars_compiled;
  std::function<void()> draw = [this, &job, &grammar] { job.sample(*engine_, grammar); };
  Task<void> run = ctx.offload(std::move(draw), cost_of_rows(1));
  co_await std::move(run);
  if (grammar) grammars_->insert(text, std::move(grammar));
  if (!experts::can_be_trusted(ctx, *engine_) && !job.over()) remove(job);
}

// ------------------------------------------------------------------------------- ends of a job

void PrefillActor::job_moved(Job& job) {
  if (job.conclude()) {
    ++counters_.attempts_done;
    ended_.done(job.key());
    remove(job);
  }
  pump();
}

// A pass that waits gives up its slot: with one slot and two requests the ranks of a stage could
// else each wait for the one that the other does not compute. It may overdraw them when it goes on.
void PrefillActor::job_waits(bool waits) {
  if (waits) {
    --passes_;
    pump();
  } else {
    ++passes_;
    note_state();
  }
}

void PrefillActor::job_stale(Job& job) {
  ++counters_.stale;
  ended_.dropped(job.key());
  remove(job);
  pump();
}

void PrefillActor::job_failed(Job& job, base::Error error, bool without_cache,
                              base::NodeId blamed) {
  ++counters_.attempts_failed;
  ctx_->log(Level::kInfo, "prefill.failed",
            {{"request", job.key().request.value},
             {"attempt", job.key().attempt},
             {"why", base::to_string(error)}});
  proto::AttemptFailed message;
  message.request = job.key().request;
  message.attempt = job.key().attempt;
  message.code = static_cast<uint16_t>(error.code);
  message.what = std::move(error.what);
  message.without_cache = without_cache;
  message.blamed = blamed;
  ended_.dropped(job.key());
  remove(job);
  ctx_->spawn(report(*ctx_, std::move(message)));
  pump();
}

Task<void> PrefillActor::report(Context& ctx, proto::AttemptFailed message) {
  ++reports_;
  const actor::CallOptions options{"attempt.failed", std::chrono::milliseconds(250),
                                   std::chrono::seconds(30)};
  auto call = ctx.call<proto::Done>(node::coordinator_address(), std::move(message), options);
  const auto answer = co_await std::move(call);
  (void)answer;  // if it was not heard, the coordinator's deadline ends the attempt
  --reports_;
}

void PrefillActor::remove(Job& job) {
  job.end();
  scheduler_.remove(job.key());
  auto node = jobs_.extract(job.key());
  CHECK(!node.empty(), "a job ends twice");
  if (job.computing()) {
    leaving_.push_back(std::move(node.mapped()));
  } else {
    release(std::move(node.mapped()));
  }
}

void PrefillActor::release(std::unique_ptr<Job> job) {
  pool_->release(job->blocks());
  ctx_->spawn(bury(*ctx_, std::move(job)));
}

// The job may be ending from within one of its own tasks: it goes when they have returned.
Task<void> PrefillActor::bury(Context& ctx, std::unique_ptr<Job> job) {
  Task<void> later = ctx.sleep(base::Duration{0});
  co_await std::move(later);
  job.reset();
}

}  // namespace prefill
