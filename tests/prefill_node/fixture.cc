#include "tests/prefill_node/fixture.h"

#include <numeric>

#include "model/draft_slots.h"
#include "model/forward.h"
#include "model/sampler.h"

namespace prefill_test {

namespace {

using proto::Outcome;

constexpr uint32_t kLayers = 4;

model::OracleOptions oracle(uint32_t mtp_steps) {
  model::OracleOptions options;
  options.layers = kLayers;
  options.mtp_steps = mtp_steps;
  return options;
}

node::Identity identity(proto::Role role, const std::string& name) {
  node::Identity out;
  out.role = role;
  out.name = name;
  out.coordinator = "sim://coordinator";
  return out;
}

std::string stage_name(uint32_t index) { return "prefill-" + std::to_string(index); }

}  // namespace

// --- coordinator

void FakeCoordinator::on(Context& ctx, const Incoming<proto::Hello>& in) {
  const std::string& name = in->name;
  for (const auto& [id, entry] : nodes_) {
    if (entry.name != name || id == in.from.node) continue;
    nodes_.erase(id);
    break;
  }
  ctx.link(in.from.node, in->endpoint);
  proto::HelloReply reply;
  reply.verdict = proto::HelloReply::Verdict::kWelcome;
  reply.coordinator_life = 1;
  reply.heartbeat_ms = 50;
  if (in->role == proto::Role::kPrefill) {
    reply.position = static_cast<uint32_t>(name.back() - '0');
    reply.positions = stages_ * ranks_;
    reply.layer_begin = layers_ * (reply.position / ranks_) / stages_;
    reply.layer_end = layers_ * (reply.position / ranks_ + 1) / stages_;
  }
  const bool known = nodes_.contains(in.from.node);
  proto::ViewNode entry;
  entry.node = in.from.node;
  entry.role = in->role;
  entry.position = reply.position;
  entry.name = name;
  entry.endpoint = in->endpoint;
  nodes_[entry.node] = entry;
  ctx.reply(in, reply);
  if (known) return;
  ++epoch_;
  send_view();
}

proto::ClusterView FakeCoordinator::view() const {
  proto::ClusterView out;
  out.coordinator_life = 1;
  out.epoch = epoch_;
  for (const auto& [id, entry] : nodes_) out.nodes.push_back(entry);
  return out;
}

void FakeCoordinator::send_view() {
  for (const auto& [id, entry] : nodes_)
    ctx_->send(actor::Address{id, static_cast<uint16_t>(entry.role)}, view());
}

void FakeCoordinator::on(Context& ctx, const Incoming<proto::Heartbeat>& in) {
  proto::HeartbeatReply reply;
  reply.known = nodes_.contains(in.from.node);
  reply.coordinator_life = 1;
  reply.view_epoch = epoch_;
  ctx.reply(in, reply);
  if (!reply.known) return;
  if (std::exchange(nodes_[in.from.node].state, in->state) != in->state) {
    ++epoch_;
    send_view();
  }
  if (in->view_epoch < epoch_) ctx.send(in.from, view());
}

void FakeCoordinator::on(Context& ctx, const Incoming<proto::AttemptFailed>& in) {
  bool known = false;
  for (const auto& other : failures)
    known = known || (other.request == in->request && other.attempt == in->attempt);
  if (!known) failures.push_back(in.msg);
  ctx.reply(in, proto::Done{});
}

NodeId FakeCoordinator::node(const std::string& name) const {
  for (const auto& [id, entry] : nodes_) {
    if (entry.name == name) return id;
  }
  return {};
}

bool FakeCoordinator::ready(const std::string& name) const {
  const NodeId id = node(name);
  return id && nodes_.at(id).state == proto::NodeState::kReady;
}

void FakeCoordinator::declare_dead(const std::string& name) {
  nodes_.erase(node(name));
  ++epoch_;
  send_view();
}

base::Task<void> FakeCoordinator::run_look_up(Context* ctx, NodeId store,
                                              proto::LookupPrefix message,
                                              std::optional<uint32_t>* blocks) {
  const actor::Address to{store, proto::kKvstore};
  auto call = ctx->call<proto::PrefixFound>(to, std::move(message), {"store.lookup"});
  const auto answer = co_await std::move(call);
  if (answer) *blocks = answer->msg.blocks;
}

// --- decode rank

FakeDecode::FakeDecode() : membership_(identity(proto::Role::kDecode, "decode-0"), *this) {}

void FakeDecode::on(Context& ctx, const Incoming<proto::KvLayer>& in) {
  if (silent) return;
  proto::KvAck ack;
  ack.outcome = answer_rows;
  const bool whole = in.blobs.size() == 1 &&
                     proto::kv_digest(in->layer, in->token_begin, in.blobs[0].view()) == in->digest;
  if (corrupt_first > 0) {
    --corrupt_first;
    ack.outcome = Outcome::kCorrupt;
  } else if (!whole) {
    ack.outcome = Outcome::kCorrupt;
  } else if (ack.outcome == Outcome::kOk) {
    auto& rows = collected[{in->request, in->attempt}].rows;
    const auto place = std::make_pair(in->layer, in->token_begin);
    const auto [at, fresh] = rows.try_emplace(place, in->digest, in.blobs[0]);
    if (!fresh && at->second.first != in->digest) ++conflicts;
  }
  ctx.reply(in, ack);
}

void FakeDecode::on(Context& ctx, const Incoming<proto::KvCommit>& in) {
  if (silent) return;
  Collected& got = collected[{in->request, in->attempt}];
  got.commits[in->layer_begin] = in.msg;
  if (in.blobs.size() == 1) got.hidden = in.blobs[0];
  if (in->has_token) commit_order.try_emplace(in->request.value, commit_order.size());
  proto::Done done;
  for (uint32_t layer = in->layer_begin; layer < in->layer_end; ++layer) {
    base::Hash128 chain;
    for (const auto& [place, rows] : got.rows) {
      if (place.first == layer) chain = proto::kv_chain(chain, rows.first);
    }
    if (chain != in->digests[layer - in->layer_begin]) done.outcome = Outcome::kCorrupt;
  }
  ctx.reply(in, done);
}

// --- cluster

Cluster::Cluster(const ClusterOptions& options)
    : sim({.seed = options.seed}),
      shape(model::make_oracle_engine(oracle(options.mtp_steps))->shape()),
      options_(options),
      judge_(model::make_oracle_engine(oracle(options.mtp_steps))) {
  const uint32_t stages = options.stages, ranks = options.sequence_ranks;
  sim.add(
      "coordinator", proto::kCoordinator,
      [=] { return std::make_unique<FakeCoordinator>(stages, ranks, kLayers); },
      proto::kCoordinatorNode);
  for (uint32_t i = 0; i < nodes(); ++i) {
    prefill::PrefillConfig config;
    config.identity = identity(proto::Role::kPrefill, stage_name(i));
    config.shape = shape;
    config.kv_bytes = options.kv_bytes;
    config.chunk_tokens = options.chunk_tokens;
    config.dynamic_chunks = options.dynamic_chunks;
    config.share_experts = options.share_experts;
    config.jobs = options.jobs;
    config.passes = options.passes;
    auto make = options.make_engine;
    if (!make)
      make = [steps = options.mtp_steps] { return model::make_oracle_engine(oracle(steps)); };
    config.make_engine = [make](model::LayerRange) -> base::Result<std::unique_ptr<model::Engine>> {
      return make();
    };
    sim.add(stage_name(i), proto::kPrefill,
            [config] { return std::make_unique<prefill::PrefillActor>(config); });
  }
  sim.add("decode-0", proto::kDecode, [] { return std::make_unique<FakeDecode>(); });
  for (uint32_t i = 0; i < options.stores; ++i) {
    const std::string name = "store-" + std::to_string(i);
    sim.add(name, proto::kKvstore, [name] {
      return std::make_unique<kvstore::KvstoreActor>(identity(proto::Role::kKvstore, name),
                                                     kvstore::IndexLimits{});
    });
  }
}

prefill::PrefillActor& Cluster::stage(uint32_t index) {
  return *static_cast<prefill::PrefillActor*>(sim.actor(stage_name(index)));
}
FakeCoordinator& Cluster::coordinator() {
  return *static_cast<FakeCoordinator*>(sim.actor("coordinator"));
}
FakeDecode& Cluster::decode() { return *static_cast<FakeDecode*>(sim.actor("decode-0")); }
kvstore::KvstoreActor& Cluster::store(uint32_t index) {
  return *static_cast<kvstore::KvstoreActor*>(sim.actor("store-" + std::to_string(index)));
}

void Cluster::await_ready() {
  const auto all = [this] {
    for (uint32_t i = 0; i < nodes(); ++i) {
      if (!coordinator().ready(stage_name(i))) return false;
    }
    for (uint32_t i = 0; i < options_.stores; ++i) {
      if (!coordinator().ready("store-" + std::to_string(i))) return false;
    }
    return coordinator().ready("decode-0");
  };
  ASSERT_TRUE(sim.run_until(all, std::chrono::seconds(30))) << sim.recent_log();
  sim.run_for(std::chrono::milliseconds(300));  // the last view is everywhere
}

std::vector<uint32_t> Cluster::tokens(uint64_t request, uint32_t count) const {
  std::vector<uint32_t> out(count);
  for (uint32_t i = 0; i < count; ++i)
    out[i] = static_cast<uint32_t>(base::random_at(request, 5, i) % shape.vocab);
  return out;
}

proto::StartPrefill Cluster::request(uint64_t id, uint32_t count, uint32_t attempt) {
  const FakeCoordinator& names = coordinator();
  proto::StartPrefill start;
  start.request = {id};
  start.attempt = attempt;
  start.tokens = tokens(id, count);
  start.prompt_tokens = count;
  base::Sampling sampling;
  sampling.seed = id;
  sampling.max_tokens = 10;
  sampling.top_logprobs = 2;
  start.sampling = proto::to_wire(sampling);
  for (uint32_t i = 0; i < nodes(); ++i) start.stages.push_back(names.node(stage_name(i)));
  start.decode = names.node("decode-0");
  start.credits = 3;
  start.deadline_ms = 60'000;
  start.sequence_ranks = options_.sequence_ranks;
  start.block_root = {3, 3};
  start.space = {4, 4};
  name_blocks(start);
  return start;
}

void Cluster::name_blocks(proto::StartPrefill& start) {
  start.block_keys.clear();
  base::Hash128 key = start.block_root;
  const std::span<const uint32_t> tokens(start.tokens);
  for (size_t at = 0; at + model::kBlockTokens <= tokens.size(); at += model::kBlockTokens) {
    key = proto::block_key(key, tokens.subspan(at, model::kBlockTokens));
    start.block_keys.push_back(key);
  }
}

void Cluster::start(const proto::StartPrefill& start) {
  for (const NodeId stage : start.stages) coordinator().ask(stage, proto::kPrefill, start, nullptr);
}

Outcome Cluster::start_at(uint32_t stage, const proto::StartPrefill& start) {
  Outcome outcome = Outcome::kMissing;
  coordinator().ask(start.stages[stage], proto::kPrefill, start, &outcome);
  const auto answered = [&outcome] { return outcome != Outcome::kMissing; };
  EXPECT_TRUE(sim.run_until(
      answered, base::Duration(sim.now().time_since_epoch()) + std::chrono::seconds(5)));
  return outcome;
}

uint32_t Cluster::look_up(const proto::LookupPrefix& message) {
  std::optional<uint32_t> blocks;
  coordinator().look_up(coordinator().node("store-0"), message, &blocks);
  EXPECT_TRUE(sim.run_until([&] { return blocks.has_value(); },
                            sim.now().time_since_epoch() + std::chrono::seconds(10)));
  return blocks.value_or(0);
}

void Cluster::cancel(uint64_t request, uint32_t attempt) {
  proto::Cancel message;
  message.request = {request};
  message.attempt = attempt;
  for (uint32_t i = 0; i < nodes(); ++i)
    coordinator().ask(coordinator().node(stage_name(i)), proto::kPrefill, message, nullptr);
}

bool Cluster::committed(const proto::StartPrefill& start) {
  const auto found = decode().collected.find({start.request, start.attempt});
  return found != decode().collected.end() && found->second.commits.size() == options_.stages;
}

bool Cluster::idle() {
  for (uint32_t i = 0; i < nodes(); ++i) {
    if (stage(i).ledger() != prefill::Ledger{}) return false;
  }
  return true;
}

// The KV of some tokens and their last hidden row, in one pass, in this process.
struct Cluster::Judged {
  Judged(model::Engine& engine, const std::vector<uint32_t>& tokens)
      : pool(model::KvPool::blocks_for(static_cast<uint32_t>(tokens.size())),
             {0, engine.shape().kv_layers()}, engine.shape().kv_row_bytes),
        blocks(*pool.allocate(pool.total())),
        last(static_cast<uint32_t>(tokens.size()) - 1) {
    pass.tokens = tokens;
    model::Segment segment;
    segment.count = last + 1;
    segment.kv = kv();
    pass.segments.push_back(segment);
    model::InlineSite site(engine);
    const model::LayerRange layers{0, engine.shape().layers};
    EXPECT_TRUE(base::run_inline(model::forward(engine, layers, pass, site)));
    engine.final_norm(pass, std::span(&last, 1), hidden);
    if (engine.shape().mtp_steps == 0 || last == 0) return;
    model::Pass drafts;  // the whole block, where a stage computes its KV only
    std::vector<uint32_t> rows(last);
    std::iota(rows.begin(), rows.end(), 0u);
    engine.final_norm(pass, rows, drafts.h);
    drafts.tokens.assign(tokens.begin() + 1, tokens.end());
    segment.count = last;
    drafts.segments.push_back(segment);
    engine.draft(drafts, model::DraftIndex::kFresh);
  }
  model::KvView kv() { return {&pool, blocks}; }
  model::KvPool pool;
  std::vector<model::BlockId> blocks;
  const uint32_t last;
  model::Pass pass;
  std::vector<float> hidden;
};

void Cluster::expect_arrived(const proto::StartPrefill& start) {
  SCOPED_TRACE("request " + std::to_string(start.request.value));
  ASSERT_TRUE(committed(start)) << sim.recent_log();
  const Collected& got = decode().collected.at({start.request, start.attempt});
  Judged judged(*judge_, start.tokens);
  for (uint32_t layer = 0; layer < shape.kv_layers(); ++layer) {
    uint32_t next = model::slots_in_blocks(shape, layer, start.held_blocks);
    for (const auto& [place, rows] : got.rows) {
      if (place.first != layer) continue;
      ASSERT_EQ(place.second, next) << "layer " << layer;
      const auto n = static_cast<uint32_t>(rows.second.size() / shape.kv_row_bytes);
      base::Bytes expected(rows.second.size());
      model::copy_slots_out(judged.kv(), shape, layer, next, n, expected.data());
      EXPECT_TRUE(std::ranges::equal(expected, rows.second.view())) << layer << " at " << next;
      next += n;
    }
    EXPECT_EQ(next, judged.last + 1) << "layer " << layer;
  }
  std::vector<float> logits(shape.vocab);
  judge_->head(judged.pass, std::span(&judged.last, 1), logits);
  const std::span<const uint32_t> all(start.tokens);
  const model::SampleInput input{logits, all.first(start.prompt_tokens),
                                 all.subspan(start.prompt_tokens), shape.eos};
  const model::Sampled expected = model::sample(input, proto::from_wire(start.sampling));
  const proto::KvCommit& commit = std::prev(got.commits.end())->second;
  ASSERT_TRUE(commit.has_token);
  EXPECT_EQ(commit.token, expected.token);
  ASSERT_EQ(commit.logprobs.size(), 1u);
  EXPECT_EQ(commit.logprobs[0].logprob, expected.logprobs.logprob);
  EXPECT_EQ(commit.cached_tokens, start.cached_blocks * model::kBlockTokens);
  EXPECT_EQ(got.commits.begin()->second.has_token, options_.stages == 1);
  if (shape.mtp_steps == 0) {
    EXPECT_EQ(got.hidden.size(), 0u);
  } else {
    EXPECT_EQ(got.hidden.to_vector<float>(), judged.hidden);
    EXPECT_EQ(commit.hidden, base::hash128(got.hidden.view()));
  }
}

}  // namespace prefill_test
