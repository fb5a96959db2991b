#include "prefill_node/job.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "model/draft_slots.h"
#include "node/store_sites.h"
#include "prefill_node/zigzag.h"

namespace prefill {

namespace {

using model::kBlockTokens;
constexpr uint64_t kDeadlineMost_ms = 24ull * 3600 * 1000;
constexpr base::Duration kLate = KvShipper::kListen;  // after the last chunk
constexpr base::Duration kMovesAfter = std::chrono::seconds(2);
constexpr uint32_t kMovesMost = 3;  // attempts that a slow link may end

// Stage and rank in it follow from the place among start.stages.
uint32_t place_of(const proto::StartPrefill& start, base::NodeId self) {
  const auto found = std::ranges::find(start.stages, self);
  return static_cast<uint32_t>(found - start.stages.begin());
}

// Shares follow each other from the first position on; the rest is the decode rank's.
bool plausible_shares(const proto::StartPrefill& start) {
  uint32_t at = 0;
  for (const proto::KvShare& share : start.shares) {
    if (!share.node || share.begin != at || share.end <= at) return false;
    at = share.end;
  }
  return at < start.tokens.size();
}

// Whole stages, and nobody twice.
bool plausible_chain(const proto::StartPrefill& start, base::NodeId self) {
  std::vector<base::NodeId> nodes = start.stages;
  std::ranges::sort(nodes);
  return place_of(start, self) < nodes.size() && start.sequence_ranks > 0 &&
         nodes.size() % start.sequence_ranks == 0 &&
         std::ranges::adjacent_find(nodes) == nodes.end();
}

KvShipper::Facts shipper_facts(const JobKey& key, const proto::StartPrefill& start,
                               const StageFacts& facts, const model::KvView& kv) {
  const Address decode{start.decode, proto::kDecode};
  return {key, decode,      std::max(start.credits, 1u), facts.layers,
          kv,  facts.shape, start.held_blocks,           facts.links};
}

}  // namespace

bool Job::plausible(const proto::StartPrefill& start, const model::Shape& shape,
                    base::NodeId self) {
  const size_t tokens = start.tokens.size();
  const auto known = [&shape](uint32_t token) { return token < shape.vocab; };
  return tokens > 0 && tokens <= shape.max_context && start.prompt_tokens <= tokens &&
         std::ranges::all_of(start.tokens, known) && plausible_chain(start, self) && start.decode &&
         start.cached_blocks <= start.block_keys.size() &&
         size_t{start.cached_blocks} * kBlockTokens < tokens &&
         (start.held_blocks == 0 || start.shares.empty()) &&
         start.held_blocks <= model::blocks_in_slots(shape, static_cast<uint32_t>(tokens)) &&
         (start.cached_blocks == 0 || start.store || !start.sources.empty()) &&
         proto::plausible(start.sampling) && plausible_shares(start);
}

Job::Job(const StageFacts& facts, proto::StartPrefill start, std::vector<model::BlockId> blocks)
    : facts_(facts),
      key_{start.request, start.attempt},
      start_(std::move(start)),
      sampling_(proto::from_wire(start_.sampling)),
      total_(static_cast<uint32_t>(start_.tokens.size())),
      ranks_(start_.sequence_ranks),
      stage_(place_of(start_, facts.ctx.self().node) / ranks_),
      rank_(place_of(start_, facts.ctx.self().node) % ranks_),
      blocks_(std::move(blocks)),
      kv_{&facts.pool, blocks_},
      deadline_(facts.ctx.now() +
                std::chrono::milliseconds(std::min(start_.deadline_ms, kDeadlineMost_ms))),
      recomputed_(facts.shape.mtp_steps > 0 && start_.cached_blocks > 0 ? 1 : 0),
      done_(start_.cached_blocks * kBlockTokens - recomputed_),
      offered_(facts.layers.count(), start_.cached_blocks),
      inputs_(done_, total_, facts.shape.hidden * sizeof(float), StageInputs::Share{ranks_, rank_}),
      shipper_(facts.ctx, *this, shipper_facts(key_, start_, facts, kv_), start_.shares,
               facts.shipped) {
  Party& party = *this;
  if ((stage_ + 1) * ranks_ < start_.stages.size()) {
    const Address next{start_.stages[(stage_ + 1) * ranks_ + rank_], proto::kPrefill};
    sender_.emplace(facts.ctx, party, key_, next, facts.shipped);
  }
  if (ranks_ > 1) {
    SequenceExchange::Facts shared{
        key_, {}, rank_, total_, facts.layers, kv_, facts.shape.kv_latent_bytes};
    for (const base::NodeId rank : ranks_of_stage())
      shared.ranks.push_back({rank, proto::kPrefill});
    exchange_.emplace(facts.ctx, party, std::move(shared), facts.exchanged);
  }
  if (start_.cached_blocks == 0) return;
  CacheLoader::Facts cached;
  cached.ships = rank_ == 0;
  cached.sources = start_.sources;
  const size_t groups = (start_.cached_blocks + base::kBlocksOfGroup - 1) / base::kBlocksOfGroup;
  cached.sources.resize(groups, start_.store);
  cached.copy_to = start_.copy_to;
  cached.copy_to.resize(groups);
  cached.blocks = start_.cached_blocks;
  cached.chain = chain();
  cached.shape = &facts_.shape;
  cached.recomputed = recomputed_;
  cached.layers = facts.layers;
  cached.kv = kv_;
  loader_.emplace(facts.ctx, party, std::move(cached), shipper_, facts.outbox, facts.loaded);
}

void Job::begin() {
  tasks_.start(watch_deadline());
  if (loader_) loader_->start();
}

Task<void> Job::watch_deadline() {
  Task<void> wait = facts_.ctx.sleep(deadline_ - facts_.ctx.now());
  co_await std::move(wait);
  if (over_) co_return;
  base::Error error{base::Code::kDeadline, "the request's deadline has passed during prefill"};
  failed(std::move(error), /*without_cache=*/false);
}

void Job::unreachable(base::NodeId node) {
  base::Error error{base::Code::kUnavailable, "the decode rank does not answer this stage"};
  facts_.owner.job_failed(*this, std::move(error), /*without_cache=*/false, node);
}

// Its rank may be reached too slowly. An attempt that keeps coming back there has nowhere else to
// go: it is left alone.
void Job::waits_for(base::NodeId rank) {
  const base::Time now = facts_.ctx.now();
  if (!computed() || now - computed_at_ < kLate) return;
  if (facts_.links.late(rank, now)) {
    ++facts_.counters.links_slow;
    facts_.ctx.log(base::Level::kInfo, "kv.link.slow", {{"rank", rank.value}});
  }
  const bool moves = key_.attempt <= kMovesMost && now - computed_at_ >= kMovesAfter;
  if (!moves || !facts_.links.rests(rank, now) || !facts_.links.has_better(rank, now)) return;
  base::Error error{base::Code::kUnavailable, "KV reaches the decode rank too slowly"};
  facts_.owner.job_failed(*this, std::move(error), /*without_cache=*/false, rank);
}

proto::Outcome Job::accept(const proto::StageInput& input, const base::Blob& rows) {
  if (stage_ == 0) return proto::Outcome::kCorrupt;  // it cuts the chunks itself
  return inputs_.accept(input.token_begin, input.token_count, rows);
}

bool Job::runnable() const {
  if (over_ || computing_ || computed()) return false;
  if (loader_ && !loader_->has(facts_.layers.begin)) return false;
  if (sender_ && sender_->full()) return false;
  return stage_ == 0 || inputs_.has_next();
}

uint32_t Job::next_count() const {
  return stage_ == 0 ? facts_.chunks.next(done_, total_) : inputs_.next_count();
}

uint64_t Job::chunk_cost() const { return facts_.chunks.cost.tokens(done_, done_ + next_count()); }

void Job::begin_chunk() {
  CHECK(runnable(), "a chunk of request {} cannot run now", key_.request.value);
  computing_ = true;
  const uint32_t count = next_count();
  pass_.h.clear();  // nothing is embedded when this rank has no row
  if (stage_ > 0) {
    const StageInputs::Chunk chunk = inputs_.take();
    CHECK(chunk.begin == done_, "chunk at {} for position {}", chunk.begin, done_);
    pass_.h = chunk.rows.to_vector<float>();
  }
  pass_begin_ = done_;
  pass_end_ = done_ + count;
  const std::span<const base::TokenId> all(start_.tokens);
  pass_.tokens.clear();
  pass_.segments.clear();
  for (const Piece& piece : zigzag(pass_begin_, count, ranks_, rank_)) {
    const uint32_t back = std::min(piece.begin, facts_.shape.ngram_context);
    model::Segment segment;
    segment.row = pass_.rows();
    segment.count = piece.count;
    segment.position = piece.begin;
    segment.kv = kv_;
    segment.context = all.subspan(piece.begin - back, back);
    pass_.segments.push_back(segment);
    const auto tokens = all.subspan(piece.begin, piece.count);
    pass_.tokens.insert(pass_.tokens.end(), tokens.begin(), tokens.end());
  }
}

Task<bool> Job::gather(uint32_t layer, uint32_t part) {
  const SequenceExchange::Step step{pass_begin_, layer, part};
  const uint32_t count = pass_end_ - pass_begin_;
  exchange_->offer(step, count);
  const bool waits = !exchange_->complete(step);
  if (waits) facts_.owner.job_waits(true);
  Task<bool> others = exchange_->collect(step, count);
  const bool all = co_await std::move(others);
  if (waits) facts_.owner.job_waits(false);
  co_return all;
}

proto::Outcome Job::accept(const proto::SequenceKv& message, base::NodeId from,
                           const base::Blob& rows) {
  if (!exchange_) return proto::Outcome::kCorrupt;
  return exchange_->accept(message, from, rows);
}

Task<void> Job::await_kv(uint32_t layer) {
  const base::Time begun = facts_.ctx.now();
  facts_.owner.job_waits(true);
  while (!has_kv(layer)) {
    base::Slot<bool> slot;
    waiting_ = &slot;
    waiting_layer_ = layer;
    co_await slot;
  }
  facts_.owner.job_waits(false);
  facts_.loaded.wait_seconds += base::seconds(facts_.ctx.now() - begun);
}

void Job::wake_pass() {
  if (waiting_ != nullptr && has_kv(waiting_layer_)) tasks_.start(resume_pass());
}

// In a turn of its own: what the pass does next may end the job.
Task<void> Job::resume_pass() {
  Task<void> later = facts_.ctx.sleep(base::Duration{0});
  co_await std::move(later);
  if (base::Slot<bool>* slot = std::exchange(waiting_, nullptr)) slot->set(true);
}

void Job::moved() {
  wake_pass();
  facts_.owner.job_moved(*this);
}

void Job::layer_done(uint32_t layer) {
  if (rank_ != 0) return;
  const Slots slots = final_slots(layer);
  if (slots.begin < slots.end) shipper_.push(layer, slots.begin, slots.end - slots.begin);
  offer_to_store(layer, slots.end);
}

// The drafting block's slots are one row behind (draft_slots.h), and the last row is not made here.
Job::Slots Job::final_slots(uint32_t layer) const {
  if (layer < facts_.shape.layers) return {pass_begin_, pass_end_};
  return {pass_begin_ == 0 ? 0 : pass_begin_ + 1, std::min(pass_end_ + 1, total_)};
}

Task<bool> Job::draft(model::Site& site, model::Engine& engine) {
  std::function<void()> compute = [this, &engine] {
    drafted_.compute(engine, pass_, start_.tokens);
  };
  return run_draft_rows(site, facts_.shape.layers, pass_, std::move(compute));
}

node::BlockChain Job::chain() const {
  return {start_.block_root, start_.space, start_.block_keys, start_.tokens, kBlockTokens};
}

// Full blocks that were not found in the stores, as soon as their last row is there.
void Job::offer_to_store(uint32_t layer, uint32_t slots) {
  const uint32_t full =
      std::min(slots / kBlockTokens, static_cast<uint32_t>(start_.block_keys.size()));
  uint32_t& offered = offered_[layer - facts_.layers.begin];
  if (offered >= full) return;
  const node::StoreSites sites = node::stores_in(facts_.view);
  for (; offered < full; ++offered) {
    const size_t size = facts_.pool.entry_bytes();
    const auto stores = sites.of(base::group_key(start_.block_keys, offered));
    if (stores.empty() || !facts_.outbox.has_room(size)) continue;
    base::Blob rows =
        model::slots_of(kv_, facts_.shape, layer, offered * kBlockTokens, kBlockTokens);
    facts_.outbox.push(facts_.ctx, stores.front(),
                       node::describe(chain(), offered, layer, facts_.shape.kv_layers()),
                       std::move(rows));
  }
}

void Job::numerical_error(const std::string& what) {
  base::Error error{base::Code::kInternal, "numerical_error: " + what};
  failed(std::move(error), /*without_cache=*/start_.cached_blocks > 0);
}

void Job::end_chunk() {
  computing_ = false;
  if (over_) return;
  done_ = pass_end_;
  if (computed()) computed_at_ = facts_.ctx.now();
  if (!sender_) return;
  base::Blob rows = base::Blob::of(std::span<const float>(pass_.h));
  sender_->push(pass_begin_, pass_end_ - pass_begin_, std::move(rows));
}

void Job::sample(model::Engine& engine, std::unique_ptr<grammar::Grammar>& grammar) {
  const uint32_t last_row = pass_.rows() - 1;
  std::vector<float> logits(facts_.shape.vocab);
  engine.head(pass_, std::span(&last_row, 1), logits, drafts() ? &hidden_ : nullptr);
  finite_ = model::all_finite(logits);
  if (!finite_) return;
  const std::span<const base::TokenId> all(start_.tokens);
  model::SampleInput input;
  input.logits = logits;
  input.prompt = all.first(start_.prompt_tokens);
  input.emitted = all.subspan(start_.prompt_tokens);
  input.eos = facts_.shape.eos;
  if (!grammar && sampling_.grammar.kind != base::GrammarKind::kNone) grammar = compile_grammar();
  std::optional<grammar::Matcher> matcher;
  if (grammar) {
    matcher.emplace(*grammar, sampling_.stop_tokens);
    input.constraint = &*matcher;
    if (matcher->allowed(input.emitted).empty())
      refused_ = base::Error{base::Code::kUnsupported, "the answer so far breaks the grammar"};
  }
  if (!refused_) first_ = model::sample(input, sampling_);
}

std::unique_ptr<grammar::Grammar> Job::compile_grammar() {
  base::Result<std::unique_ptr<grammar::Grammar>> made = nullptr;
  if (facts_.vocabulary) {
    made = grammar::Grammar::compile(sampling_.grammar, *facts_.vocabulary);
  } else {
    made = base::fail(facts_.vocabulary.error());
  }
  if (made) return std::move(*made);
  refused_ = base::Error{base::Code::kUnsupported, made.error().what};
  return nullptr;
}

bool Job::conclude() {
  shipper_.proceed();
  if (shipper_.committed() && (!sender_ || sender_->idle())) return true;
  const bool all_left =
      computed() && !computing_ && shipper_.idle() && (!exchange_ || exchange_->idle());
  if (!all_left || committing_) return false;
  if (rank_ != 0) return !sender_ || sender_->idle();
  if (!finite_) {
    numerical_error("the logits are not finite");
    return false;
  }
  if (refused_) {
    failed(*refused_, /*without_cache=*/false);
    return false;
  }
  committing_ = true;
  facts_.counters.kv_exposed += facts_.ctx.now() - computed_at_;
  proto::KvCommit commit;
  commit.request = key_.request;
  commit.attempt = key_.attempt;
  commit.tokens = total_;
  commit.cached_tokens = start_.cached_blocks * kBlockTokens;
  if (first_) {
    commit.has_token = true;
    commit.token = first_->token;
    if (sampling_.top_logprobs >= 0)
      commit.logprobs.push_back({first_->logprobs.logprob, first_->logprobs.top});
  }
  base::Blobs blobs;
  if (first_ && drafts()) {
    blobs.push_back(base::Blob::of(std::span<const float>(hidden_)));
    commit.hidden = base::hash128(blobs[0].view());
  }
  shipper_.commit(std::move(commit), std::move(blobs));
  return false;
}

std::vector<base::NodeId> Job::ranks_of_stage() const {
  const auto first = start_.stages.begin() + stage_ * ranks_;
  return {first, first + ranks_};
}

// A pass that waits for other ranks comes back in a turn of its own.
void Job::end() {
  over_ = true;
  wake_pass();
  if (exchange_) exchange_->interrupt();
}

bool Job::involves(base::NodeId node) const {
  return node == start_.decode || std::ranges::find(start_.stages, node) != start_.stages.end() ||
         std::ranges::find(start_.shares, node, &proto::KvShare::node) != start_.shares.end();
}

uint32_t Job::unacknowledged() const {
  return shipper_.unacknowledged() + (sender_ ? sender_->unacknowledged() : 0) +
         (exchange_ ? exchange_->unacknowledged() : 0);
}

}  // namespace prefill
