#include "fake_nodes.h"

#include <algorithm>
#include <set>

namespace coordinator {

using actor::Address;
using actor::CallOptions;
using actor::Context;
using actor::Incoming;
using base::FinishReason;
using base::RequestId;
using base::Task;
using proto::Outcome;
using proto::Role;
using std::chrono::milliseconds;
using std::chrono::seconds;

TokenId next_token(const std::vector<TokenId>& tokens, uint64_t seed) {
  return static_cast<TokenId>(base::hash64(std::as_bytes(std::span<const TokenId>(tokens)), seed) %
                              kVocab);
}

std::vector<TokenId> truth(const std::vector<TokenId>& prompt, uint64_t seed, uint32_t max_tokens) {
  std::vector<TokenId> tokens = prompt;
  for (uint32_t i = 0; i < max_tokens; ++i) {
    tokens.push_back(next_token(tokens, seed));
    if (tokens.back() == kEos) break;
  }
  return {tokens.begin() + static_cast<std::ptrdiff_t>(prompt.size()), tokens.end()};
}

namespace {

// What all fakes are: a registered node.
class FakeNode : public actor::Actor, public node::MembershipClient::Owner {
 public:
  FakeNode(Knobs& knobs, Role role, std::string name, base::Hash128 model)
      : knobs_(knobs), client_(identity(role, std::move(name), model), *this) {}

  void start(Context& ctx) override {
    ctx_ = &ctx;
    client_.start(ctx);
  }
  void on(Context& ctx, const Incoming<proto::HeartbeatReply>& in) { client_.on(ctx, in); }
  void on(Context& ctx, const Incoming<proto::ClusterView>& in) { client_.on(ctx, in); }

  void welcomed(Context& ctx, const proto::HelloReply&) override { client_.ready(ctx); }
  void view_changed(Context&, const node::View&) override {}
  void life_lost(Context&) override {}
  void fill(proto::Heartbeat&) override {}

 protected:
  static node::Identity identity(Role role, std::string name, base::Hash128 model) {
    node::Identity identity;
    identity.role = role;
    identity.name = std::move(name);
    identity.coordinator = "sim://coordinator";
    identity.version = "test";
    if (role != Role::kKvstore) {
      identity.model = model;
      identity.layout = {2, 2};
      identity.arithmetic = {3, 3};
    }
    return identity;
  }
  const std::string& name() const { return client_.identity().name; }

  Knobs& knobs_;
  node::MembershipClient client_;
  Context* ctx_ = nullptr;
};

using Key = std::pair<RequestId, uint32_t>;

// Attempts ended here: those of `ended[request]` and below.
class Fence {
 public:
  bool stale(const Key& key) const {
    const auto it = ended_.find(key.first);
    return it != ended_.end() && it->second >= key.second;
  }
  void raise(const Key& key) {
    uint32_t& attempt = ended_[key.first];
    attempt = std::max(attempt, key.second);
  }

 private:
  std::map<RequestId, uint32_t> ended_;
};

class FakePrefill final : public FakeNode {
 public:
  using In =
      actor::Accepts<proto::HeartbeatReply, proto::ClusterView, proto::StartPrefill, proto::Cancel>;
  using FakeNode::FakeNode;
  using FakeNode::on;
  ~FakePrefill() override { knobs_.prefilling[name()] = 0; }
  void receive(Context& ctx, actor::Envelope&& e) override {
    In::dispatch(*this, ctx, std::move(e));
  }
  void life_lost(Context&) override {
    live_.clear();
    tell();
  }
  void fill(proto::Heartbeat& beat) override { beat.slow_ranks = knobs_.slow_ranks; }

  void on(Context& ctx, const Incoming<proto::StartPrefill>& in) {
    const Key key{in->request, in->attempt};
    proto::Done done;
    const bool last = in->stages.back() == ctx.self().node;
    if (fence_.stale(key)) {
      done.outcome = Outcome::kStale;
    } else if (last && !live_.contains(key) && knobs_.refuse_starts > 0) {
      --knobs_.refuse_starts;
      done.outcome = Outcome::kNoRoom;
    } else if (!live_.contains(key) && live_.size() >= knobs_.stage_jobs) {
      done.outcome = Outcome::kNoRoom;
    } else if (live_.insert(key).second) {
      ++knobs_.starts;
      if (in->stages.front() == ctx.self().node) {
        knobs_.cached_blocks.push_back(in->cached_blocks);
        knobs_.held.push_back(in->held_blocks);
      }
      tell();
      ctx.spawn(compute(*this, ctx, in.msg));
    }
    ctx.reply(in, done);
  }
  void on(Context& ctx, const Incoming<proto::Cancel>& in) {
    end({in->request, in->attempt});
    ctx.reply(in, proto::Done{});
  }

 private:
  // Every stage computes for itself; the last one's commit starts the rank.
  static Task<void> compute(FakePrefill& self, Context& ctx, proto::StartPrefill message) {
    const Key key{message.request, message.attempt};
    Task<void> work = ctx.sleep(self.knobs_.prefill_time);
    co_await std::move(work);
    if (!self.live_.contains(key)) co_return;
    if (message.stages.back() == ctx.self().node) {
      proto::KvCommit commit;
      commit.request = message.request;
      commit.attempt = message.attempt;
      commit.tokens = static_cast<uint32_t>(message.tokens.size());
      commit.has_token = true;
      commit.token = next_token(message.tokens, message.sampling.seed);
      const CallOptions options{"kv.commit", milliseconds(100), seconds(60)};
      auto call = ctx.call<proto::Done>(Address{message.decode, proto::kDecode}, std::move(commit),
                                        options);
      auto answer = co_await std::move(call);
      const bool ok = answer && answer->msg.outcome == Outcome::kOk;
      if (!ok && self.live_.contains(key)) {
        proto::AttemptFailed failed;
        failed.request = message.request;
        failed.attempt = message.attempt;
        failed.code = static_cast<uint16_t>(base::Code::kPeerGone);
        failed.what = "the commit was not taken";
        const CallOptions tell{"attempt.failed", milliseconds(250), seconds(30)};
        auto report = ctx.call<proto::Done>(node::coordinator_address(), std::move(failed), tell);
        auto heard = co_await std::move(report);
        (void)heard;
      }
    }
    self.end(key);
  }
  void end(const Key& key) {
    fence_.raise(key);
    std::erase_if(live_, [&](const Key& k) { return k.first == key.first && k <= key; });
    tell();
  }
  void tell() { knobs_.prefilling[name()] = live_.size(); }

  Fence fence_;
  std::set<Key> live_;
};

class FakeDecode final : public FakeNode {
 public:
  using In = actor::Accepts<proto::HeartbeatReply, proto::ClusterView, proto::ReserveKv,
                            proto::KvCommit, proto::Cancel>;
  using FakeNode::FakeNode;
  using FakeNode::on;
  ~FakeDecode() override { knobs_.sequences[name()] = 0; }
  void receive(Context& ctx, actor::Envelope&& e) override {
    In::dispatch(*this, ctx, std::move(e));
  }
  void life_lost(Context&) override {
    live_.clear();
    tell();
  }
  void fill(proto::Heartbeat& beat) override {
    beat.blocks_total = knobs_.blocks_total;
    beat.running = static_cast<uint32_t>(live_.size());
  }

  void on(Context& ctx, const Incoming<proto::ReserveKv>& in) {
    const Key key{in->request, in->attempt};
    proto::KvReserved reply;
    reply.credits = 4;
    reply.held_blocks = knobs_.held_blocks;
    ++knobs_.reserves;
    if (fence_.stale(key)) {
      reply.outcome = Outcome::kStale;
    } else if (!live_.contains(key)) {
      const uint32_t blocks = (in->prompt_tokens + in->sampling.max_tokens + 63) / 64;
      if (knobs_.refuse_reserves > 0 || used() + blocks > knobs_.blocks_total) {
        if (knobs_.refuse_reserves > 0) --knobs_.refuse_reserves;
        reply.outcome = Outcome::kNoRoom;
      } else {
        end({in->request, in->attempt - 1});
        Sequence& s = live_[key];
        s.tokens = in->tokens;
        s.prompt = in->prompt_tokens;
        s.sampling = in->sampling;
        s.blocks = blocks;
        knobs_.reserved.push_back(in->request);
        knobs_.most_at_once = std::max(knobs_.most_at_once, static_cast<uint32_t>(live_.size()));
        tell();
      }
    }
    ctx.reply(in, reply);
  }
  void on(Context& ctx, const Incoming<proto::KvCommit>& in) {
    const Key key{in->request, in->attempt};
    proto::Done done;
    const auto it = live_.find(key);
    if (it == live_.end()) {
      done.outcome = fence_.stale(key) ? Outcome::kStale : Outcome::kUnknown;
    } else if (!it->second.running && in->has_token) {
      it->second.running = true;
      ctx.spawn(decode(*this, ctx, key, in->token));
    }
    ctx.reply(in, done);
  }
  void on(Context& ctx, const Incoming<proto::Cancel>& in) {
    end({in->request, in->attempt});
    ctx.reply(in, proto::Done{});
  }

 private:
  struct Sequence {
    std::vector<TokenId> tokens;
    uint32_t prompt = 0, blocks = 0;
    proto::SamplingFields sampling;
    bool running = false;
  };

  static Task<void> decode(FakeDecode& self, Context& ctx, Key key, TokenId token) {
    if (self.knobs_.fail_decodes > 0 || self.knobs_.preempt_decodes > 0) {
      proto::AttemptFailed failed;
      failed.preempted = self.knobs_.preempt_decodes > 0;
      --(failed.preempted ? self.knobs_.preempt_decodes : self.knobs_.fail_decodes);
      failed.request = key.first;
      failed.attempt = key.second;
      failed.code = static_cast<uint16_t>(base::Code::kCorrupt);
      failed.what = self.knobs_.fail_what;
      failed.without_cache = self.knobs_.fail_without_cache;
      const CallOptions options{"attempt.failed", milliseconds(250), seconds(30)};
      auto report = ctx.call<proto::Done>(node::coordinator_address(), std::move(failed), options);
      auto heard = co_await std::move(report);
      (void)heard;
      co_return;
    }
    while (!self.knobs_.mute_decode) {
      const auto it = self.live_.find(key);
      if (it == self.live_.end()) co_return;
      Sequence& s = it->second;
      proto::TokenEntry entry;
      entry.request = key.first;
      entry.attempt = key.second;
      entry.index = static_cast<uint32_t>(s.tokens.size()) - s.prompt;
      entry.tokens = {token};
      s.tokens.push_back(token);
      if (token == kEos) {
        entry.finish = FinishReason::kStop;
      } else if (entry.index + 1 == s.sampling.max_tokens) {
        entry.finish = FinishReason::kLength;
      }
      const bool finished = entry.finish != FinishReason::kNone;
      if (self.knobs_.lose_finish) entry.finish = FinishReason::kNone;
      token = next_token(s.tokens, s.sampling.seed);
      ctx.spawn(emit(self, ctx, key, std::move(entry)));
      if (finished) {
        if (!self.knobs_.lose_finish) self.end(key);
        co_return;
      }
      Task<void> step = ctx.sleep(self.knobs_.step_time);
      co_await std::move(step);
    }
  }
  static Task<void> emit(FakeDecode& self, Context& ctx, Key key, proto::TokenEntry entry) {
    proto::TokenOut out;
    out.entries.push_back(std::move(entry));
    const CallOptions options{"token.out", milliseconds(50), seconds(60)};
    auto call = ctx.call<proto::TokenAck>(node::coordinator_address(), std::move(out), options);
    auto answer = co_await std::move(call);
    if (answer && !answer->msg.stale.empty()) self.end(key);
  }
  void end(const Key& key) {
    fence_.raise(key);
    std::erase_if(live_,
                  [&](const auto& e) { return e.first.first == key.first && e.first <= key; });
    tell();
  }
  uint32_t used() const {
    uint32_t blocks = 0;
    for (const auto& [key, s] : live_) blocks += s.blocks;
    return blocks;
  }
  void tell() { knobs_.sequences[name()] = live_.size(); }

  Fence fence_;
  std::map<Key, Sequence> live_;
};

class FakeStore final : public FakeNode {
 public:
  using In = actor::Accepts<proto::HeartbeatReply, proto::ClusterView, proto::LookupPrefix,
                            proto::ReleaseLease>;
  using FakeNode::FakeNode;
  using FakeNode::on;
  ~FakeStore() override { knobs_.leases = 0; }
  void receive(Context& ctx, actor::Envelope&& e) override {
    In::dispatch(*this, ctx, std::move(e));
  }
  void on(Context& ctx, const Incoming<proto::LookupPrefix>& in) {
    ++knobs_.lookups;
    proto::PrefixFound found;
    found.blocks = std::min(knobs_.store_blocks, static_cast<uint32_t>(in->keys.size()));
    const Key key{in->request, in->attempt};  // a late copy leases nothing anew
    if (found.blocks > 0 && !released_.contains(key)) leases_.insert(key);
    knobs_.leases = static_cast<uint32_t>(leases_.size());
    ctx.reply(in, found);
  }
  void on(Context& ctx, const Incoming<proto::ReleaseLease>& in) {
    released_.insert({in->request, in->attempt});
    leases_.erase({in->request, in->attempt});
    knobs_.leases = static_cast<uint32_t>(leases_.size());
    ctx.reply(in, proto::Done{});
  }

 private:
  std::set<Key> leases_, released_;
};

}  // namespace

std::unique_ptr<actor::Actor> make_fake(Role role, Knobs& knobs, const std::string& name) {
  if (role == Role::kPrefill) {
    return std::make_unique<FakePrefill>(knobs, role, name, base::Hash128{1, 1});
  }
  if (role == Role::kDecode) {
    return std::make_unique<FakeDecode>(knobs, role, name, knobs.decode_model);
  }
  return std::make_unique<FakeStore>(knobs, role, name, base::Hash128{});
}

}  // namespace coordinator
