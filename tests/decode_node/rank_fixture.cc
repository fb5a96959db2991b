#include "tests/decode_node/rank_fixture.h"

#include <algorithm>
#include <numeric>

#include "model/draft_slots.h"

namespace decode {

std::vector<TokenId> Request::tokens() const {
  std::vector<TokenId> out;
  for (const auto& [index, token] : emitted) {
    if (index != out.size()) break;
    out.push_back(token);
  }
  return out;
}

// --- membership

void FakeCluster::on(Context& ctx, const Incoming<proto::Hello>& in) {
  ctx.link(in.from.node, in->endpoint);
  if (!nodes_.contains(in.from.node)) {
    std::erase_if(nodes_, [&](const auto& n) { return n.second.entry.name == in->name; });
    proto::ViewNode entry;
    entry.node = in.from.node;
    entry.role = in->role;
    entry.position = static_cast<uint32_t>(in->name.back() - '0');
    entry.name = in->name;
    entry.endpoint = in->endpoint;
    nodes_[in.from.node] = {entry, ctx.now()};
    publish(ctx);
    restart_orphans(ctx);
  }
  proto::HelloReply reply;
  reply.verdict = proto::HelloReply::Verdict::kWelcome;
  reply.position = nodes_[in.from.node].entry.position;
  reply.positions = static_cast<uint32_t>(nodes_.size());
  reply.coordinator_life = 1;
  reply.heartbeat_ms = 200;
  ctx.reply(in, reply);
}

void FakeCluster::on(Context& ctx, const Incoming<proto::Heartbeat>& in) {
  proto::HeartbeatReply reply;
  reply.coordinator_life = 1;
  const auto node = nodes_.find(in.from.node);
  reply.known = node != nodes_.end();
  if (reply.known) {
    beats_[in.from.node] = in.msg;
    node->second.heard = ctx.now();
    if (node->second.entry.state != in->state) {
      node->second.entry.state = in->state;
      publish(ctx);
    } else if (in->view_epoch < epoch_) {
      send_view(ctx, in.from.node);
    }
  }
  reply.view_epoch = epoch_;
  ctx.reply(in, reply);
}

void FakeCluster::publish(Context& ctx) {
  ++epoch_;
  for (const auto& [id, node] : nodes_) send_view(ctx, id);
}

void FakeCluster::send_view(Context& ctx, NodeId node) {
  proto::ClusterView view;
  view.coordinator_life = 1;
  view.epoch = epoch_;
  for (const auto& [id, known] : nodes_) view.nodes.push_back(known.entry);
  ctx.send({node, proto::kDecode}, view);
}

Task<void> FakeCluster::watch(Context& ctx) {
  for (;;) {
    co_await ctx.sleep(50ms);
    const size_t before = nodes_.size();
    const base::Time now = ctx.now();
    std::erase_if(nodes_, [now](const auto& n) { return now - n.second.heard > 1200ms; });
    if (nodes_.size() == before) continue;
    publish(ctx);
    restart_orphans(ctx);
  }
}

void FakeCluster::restart_orphans(Context& ctx) {
  for (auto& [id, request] : requests_) {
    const bool over = request.cancelled || request.finish != base::FinishReason::kNone;
    if (!over && request.rank && !nodes_.contains(request.rank)) next_attempt(ctx, request);
  }
}

size_t FakeCluster::ready_ranks() const {
  return static_cast<size_t>(std::ranges::count_if(
      nodes_, [](const auto& n) { return n.second.entry.state == proto::NodeState::kReady; }));
}

NodeId FakeCluster::pick_rank(const Request& request) const {
  std::vector<NodeId> ready;
  for (const auto& [id, node] : nodes_) {
    if (only_experts.contains(node.entry.name)) continue;
    if (node.entry.state == proto::NodeState::kReady) ready.push_back(id);
  }
  if (ready.empty()) return {};
  return ready[(request.id.value + request.attempt) % ready.size()];
}

// --- requests

void FakeCluster::submit(Context& ctx, Request request) {
  const RequestId id = request.id;
  requests_[id] = std::move(request);
  next_attempt(ctx, requests_[id]);
}

void FakeCluster::next_attempt(Context& ctx, Request& request) {
  if (request.attempt >= give_up_after + request.preempted) return;
  if (nodes_.contains(request.rank)) {
    proto::Cancel message;
    message.request = request.id;
    message.attempt = request.attempt;
    ctx.spawn(send_cancel(ctx, request.rank, message));
  }
  ++request.attempt;
  request.rank = {};
  ctx.spawn(attempt(ctx, request.id, request.attempt));
}

void FakeCluster::cancel(Context& ctx, RequestId id) {
  Request& request = requests_.at(id);
  request.cancelled = true;
  proto::Cancel message;
  message.request = id;
  message.attempt = request.attempt;
  ctx.spawn(send_cancel(ctx, request.rank, message));
}

Task<void> FakeCluster::send_cancel(Context& ctx, NodeId rank, proto::Cancel message) {
  const actor::CallOptions options{"cancel", 250ms, 30s};
  const actor::Address to{rank, proto::kDecode};
  auto call = ctx.call<proto::Done>(to, message, options);
  co_await std::move(call);
}

bool FakeCluster::current(RequestId id, uint32_t attempt) const {
  const Request& request = requests_.at(id);
  return !request.cancelled && request.attempt == attempt &&
         request.finish == base::FinishReason::kNone;
}

bool FakeCluster::all_done() const {
  return std::ranges::all_of(requests_, [this](const auto& r) {
    const Request& request = r.second;
    return request.cancelled || unwanted.contains(request.id) ||
           (request.finish != base::FinishReason::kNone &&
            request.tokens().size() == request.emitted.size()) ||
           request.failures.size() >= give_up_after;
  });
}

Task<void> FakeCluster::send_layer(Context& ctx, proto::KvLayer message, base::Blob rows,
                                   KvSent* sent) {
  const actor::CallOptions options{"kv.layer", 100ms, 20s};
  Request& request = requests_.at(message.request);
  const actor::Address to{request.rank, proto::kDecode};
  message.digest = proto::kv_digest(message.layer, message.token_begin, rows.view());
  for (;;) {
    base::Blobs blobs(1, rows);
    if (request.corrupt_rows > 0) {
      --request.corrupt_rows;
      base::Bytes damaged(rows.view().begin(), rows.view().end());
      damaged[damaged.size() / 2] ^= std::byte{0x10};
      blobs[0] = base::Blob(std::move(damaged));
    }
    auto call = ctx.call<proto::KvAck>(to, message, options, std::move(blobs));
    const auto answer = co_await std::move(call);
    if (answer && answer->msg.outcome == proto::Outcome::kCorrupt) continue;
    sent->ok = sent->ok && answer && answer->msg.outcome == proto::Outcome::kOk;
    co_return;
  }
}

Task<void> FakeCluster::attempt(Context& ctx, RequestId id, uint32_t attempt) {
  Request& request = requests_.at(id);
  Prefilled prefilled(*engine_, request);
  proto::ReserveKv message;
  message.request = id;
  message.attempt = attempt;
  message.tokens = prefilled.tokens;
  message.prompt_tokens = static_cast<uint32_t>(request.prompt.size());
  message.sampling = proto::to_wire(request.sampling);
  message.deadline_ms = request.deadline_ms;
  message.priority = request.priority;
  message.whole = request.whole;
  Task<bool> reservation = reserve(ctx, std::move(message));
  const bool reserved = co_await std::move(reservation);
  if (!reserved || (request.abandoned && attempt == 1)) co_return;

  KvSent sent;
  prefilled.attempt = attempt;
  Task<void> shipping = ship(ctx, id, &prefilled, &sent);
  co_await std::move(shipping);
  if (!current(id, attempt)) co_return;
  Task<bool> commits = commit(ctx, id, &prefilled, &sent);
  const bool taken = co_await std::move(commits);
  if (!taken && current(id, attempt)) next_attempt(ctx, request);
}

// False when the attempt is over.
Task<bool> FakeCluster::reserve(Context& ctx, proto::ReserveKv message) {
  Request& request = requests_.at(message.request);
  for (;;) {
    if (!current(message.request, message.attempt)) co_return false;
    request.rank = pick_rank(request);
    if (request.rank) {
      const actor::CallOptions options{"kv.reserve", 250ms, 5s};
      const actor::Address to{request.rank, proto::kDecode};
      auto call = ctx.call<proto::KvReserved>(to, message, options);
      const auto answer = co_await std::move(call);
      if (!current(message.request, message.attempt)) co_return false;
      if (answer && answer->msg.outcome == proto::Outcome::kOk) co_return true;
      if (!answer || answer->msg.outcome != proto::Outcome::kNoRoom) {
        next_attempt(ctx, request);
        co_return false;
      }
    }
    co_await ctx.sleep(50ms);
  }
}

FakeCluster::Prefilled::Prefilled(model::Engine& engine, const Request& request)
    : tokens(request.prompt),
      pool(model::KvPool::blocks_for(
               static_cast<uint32_t>(request.prompt.size() + request.tokens().size())),
           {0, engine.shape().kv_layers()}, engine.shape().kv_row_bytes),
      blocks(*pool.allocate(pool.total())) {
  const std::vector<TokenId> emitted = request.tokens();
  tokens.insert(tokens.end(), emitted.begin(), emitted.end());
  model::Pass pass;
  pass.tokens = tokens;
  model::Segment segment;
  segment.count = static_cast<uint32_t>(tokens.size());
  segment.kv = kv();
  pass.segments = {segment};
  model::InlineSite site(engine);
  base::run_inline(model::forward(engine, {0, engine.shape().layers}, pass, site));
  std::vector<float> logits(engine.shape().vocab);
  const uint32_t last = segment.count - 1;
  engine.head(pass, std::span(&last, 1), logits, &hidden);
  const grammar::Vocabulary vocabulary = byte_vocabulary(engine.shape());
  Alone alone(vocabulary, request.sampling);
  first = model::sample({logits, request.prompt, emitted, engine.shape().eos, alone.constraint()},
                        request.sampling);
  if (engine.shape().mtp_steps == 0 || last == 0) return;
  std::vector<uint32_t> rows(last);
  std::iota(rows.begin(), rows.end(), 0u);
  model::Pass drafts;
  engine.final_norm(pass, rows, drafts.h);
  drafts.tokens.assign(tokens.begin() + 1, tokens.end());
  segment.count = last;
  drafts.segments = {segment};
  engine.begin_draft(drafts);
}

Task<void> FakeCluster::ship(Context& ctx, RequestId id, Prefilled* prefilled, KvSent* sent) {
  const model::Shape& shape = engine_->shape();
  const Request& request = requests_.at(id);
  const auto count = static_cast<uint32_t>(prefilled->tokens.size());
  const model::KvView kv = prefilled->kv();
  sent->chains.resize(shape.kv_layers());
  std::vector<base::Future<void>> away;
  for (uint32_t begin = 0; begin < count; begin += request.chunk) {
    for (uint32_t layer = 0; layer < shape.kv_layers(); ++layer) {
      proto::KvLayer message;
      message.request = id;
      message.attempt = prefilled->attempt;
      message.layer = layer;
      message.token_begin = begin;
      message.token_count = std::min(request.chunk, count - begin);
      base::Bytes rows(static_cast<size_t>(message.token_count) * shape.kv_row_bytes);
      model::copy_slots_out(kv, shape, layer, begin, message.token_count, rows.data());
      const base::Hash128 digest = proto::kv_digest(layer, begin, rows);
      sent->chains[layer] = proto::kv_chain(sent->chains[layer], digest);
      away.push_back(base::start(send_layer(ctx, message, base::Blob(std::move(rows)), sent)));
      if (away.size() < DecodeActor::kCredits) continue;
      for (auto& future : away) co_await future;
      away.clear();
    }
  }
  for (auto& future : away) co_await future;
}

// Two stages; the second one has the token. False: the attempt must be made again.
Task<bool> FakeCluster::commit(Context& ctx, RequestId id, Prefilled* prefilled,
                               const KvSent* sent) {
  const Request& request = requests_.at(id);
  const uint32_t layers = engine_->shape().kv_layers();
  for (uint32_t stage = 0; stage < 2; ++stage) {
    if (!sent->ok) co_return false;
    proto::KvCommit message;
    message.request = id;
    message.attempt = prefilled->attempt;
    message.layer_begin = stage == 0 ? 0 : layers / 2;
    message.layer_end = stage == 0 ? layers / 2 : layers;
    message.tokens = static_cast<uint32_t>(prefilled->tokens.size());
    message.digests.assign(sent->chains.begin() + message.layer_begin,
                           sent->chains.begin() + message.layer_end);
    if (request.wrong_chain && prefilled->attempt == 1) message.digests.back().high ^= 4;
    message.has_token = stage == 1;
    message.token = stage == 1 ? prefilled->first.token : 0;
    if (stage == 1 && request.sampling.top_logprobs >= 0) {
      const base::TokenLogprobs& logprobs = prefilled->first.logprobs;
      message.logprobs.push_back({logprobs.logprob, logprobs.top});
    }
    const actor::CallOptions options{"kv.commit", 100ms, 20s};
    const actor::Address to{request.rank, proto::kDecode};
    base::Blobs blobs;
    if (stage == 1 && engine_->shape().mtp_steps > 0) {
      blobs.push_back(base::Blob::of(std::span<const float>(prefilled->hidden)));
      message.hidden = base::hash128(blobs[0].view());
    }
    auto call = ctx.call<proto::Done>(to, message, options, std::move(blobs));
    const auto answer = co_await std::move(call);
    if (answer && answer->msg.outcome == proto::Outcome::kStale) co_return true;
    if (!answer || answer->msg.outcome != proto::Outcome::kOk) co_return false;
  }
  co_return true;
}

void FakeCluster::on(Context& ctx, const Incoming<proto::TokenOut>& in) {
  if (!answer_tokens) return;
  proto::TokenAck ack;
  for (const proto::TokenEntry& entry : in->entries) {
    Request& request = requests_.at(entry.request);
    if (request.cancelled || entry.attempt != request.attempt || unwanted.contains(entry.request)) {
      ack.stale.push_back(entry.request);
      continue;
    }
    for (size_t i = 0; i < entry.tokens.size(); ++i) {
      const uint32_t index = entry.index + static_cast<uint32_t>(i);
      const auto [at, fresh] = request.emitted.try_emplace(index, entry.tokens[i]);
      EXPECT_EQ(at->second, entry.tokens[i]) << "token " << index << " came twice and differs";
      if (fresh && i < entry.logprobs.size()) ++request.logprobs;
    }
    if (entry.finish == base::FinishReason::kNone) continue;
    request.finish = entry.finish;
    request.ended = ctx.now();
  }
  ctx.reply(in, ack);
}

void FakeCluster::on(Context& ctx, const Incoming<proto::AttemptFailed>& in) {
  Request& request = requests_.at(in->request);
  ctx.reply(in, proto::Done{});
  if (in->attempt != request.attempt || request.cancelled) return;
  if (in->preempted) {
    ++request.preempted;
  } else {
    request.failures.push_back(in.msg);
  }
  next_attempt(ctx, request);
}

// --- the test's side

grammar::Vocabulary byte_vocabulary(const model::Shape& shape) {
  std::vector<std::string> bytes(shape.vocab);
  for (size_t id = 0; id < std::min<size_t>(bytes.size(), 256); ++id)
    bytes[id] = std::string(1, static_cast<char>(id));
  for (const TokenId id : shape.eos) bytes[id].clear();
  return grammar::Vocabulary(std::move(bytes), shape.eos);
}

Alone::Alone(const grammar::Vocabulary& vocabulary, const base::Sampling& sampling) {
  if (sampling.grammar.kind == base::GrammarKind::kNone) return;
  grammar = *grammar::Grammar::compile(sampling.grammar, vocabulary);
  matcher.emplace(*grammar, sampling.stop_tokens);
}

void RankTest::build(Setup setup) {
  actor::SimOptions options;
  options.seed = setup.seed;
  sim = std::make_unique<actor::SimHost>(options);
  sim->add(
      "coordinator", proto::kCoordinator, [this] { return std::make_unique<FakeCluster>(oracle); },
      proto::kCoordinatorNode);
  for (uint32_t i = 0; i < setup.ranks; ++i) {
    const std::string name = "decode-" + std::to_string(i);
    sim->add(name, proto::kDecode, [this, name, setup] {
      DecodeConfig config;
      config.identity.role = proto::Role::kDecode;
      config.identity.name = name;
      config.identity.coordinator = "sim://coordinator";
      config.shape = model::make_oracle_engine(oracle)->shape();
      config.make_engine = [this, name, setup]() -> base::Result<std::unique_ptr<model::Engine>> {
        const bool own = setup.make_engine && (setup.engine_of.empty() || setup.engine_of == name);
        return own ? setup.make_engine() : model::make_oracle_engine(oracle);
      };
      config.kv_bytes = setup.kv_bytes;
      config.max_batch = setup.max_batch;
      config.mtp_steps = setup.mtp_steps;
      config.micro_batches = setup.micro_batches;
      config.micro_rows = setup.micro_rows;
      config.max_rows = setup.max_rows;
      config.steps_per_schedule = setup.steps_per_schedule;
      config.force_tokens = setup.force_tokens;
      config.make_vocabulary = [shape = config.shape]() -> base::Result<grammar::Vocabulary> {
        return byte_vocabulary(shape);
      };
      return std::make_unique<DecodeActor>(std::move(config));
    });
  }
}

DecodeActor& RankTest::rank(uint32_t i) {
  return *static_cast<DecodeActor*>(sim->actor("decode-" + std::to_string(i)));
}

bool RankTest::run(base::Duration limit) {
  sim->run_until([] { return false; }, kReady + 200ms);  // past the submissions
  const bool done = sim->run_until([this] { return cluster().all_done(); }, limit);
  EXPECT_EQ(sim->error_logs(), 0u);
  EXPECT_TRUE(done) << sim->recent_log();
  return done;
}

void RankTest::expect_oracle_tokens(uint32_t id) {
  const Request& request = cluster().request(id);
  const grammar::Vocabulary vocabulary = byte_vocabulary(cluster().engine().shape());
  Alone alone(vocabulary, request.sampling);
  model::GenerateOptions options;
  options.constraint = alone.constraint();
  options.force = false;
  const model::Generated expected =
      model::generate(cluster().engine(), request.prompt, request.sampling, options);
  EXPECT_EQ(request.tokens(), expected.tokens) << "request " << id;
  EXPECT_EQ(request.finish, expected.finish) << "request " << id;
  EXPECT_EQ(request.logprobs, expected.logprobs.size()) << "request " << id;
}

void RankTest::expect_oracle_tokens_up_to(uint32_t count) {
  for (uint32_t id = 1; id <= count; ++id) expect_oracle_tokens(id);
}

void RankTest::expect_idle(uint32_t ranks) {
  sim->run_for(5s);
  for (uint32_t i = 0; i < ranks; ++i) {
    EXPECT_EQ(rank(i).ledger(), Ledger{}) << "decode-" << i << "\n" << sim->recent_log();
  }
}

}  // namespace decode
