// Small messages and actors for the tests of SimHost.
#pragma once
#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "actor/sim_host.h"

namespace actor::sim_test {

using namespace std::chrono_literals;
using base::Code;

template <class M>
std::string encode_number(const M& m) {
  return fmt::format("{}", m.number);
}
template <class M>
base::Status decode_number(base::ByteView bytes, M& m) {
  m.number = 0;
  if (bytes.empty()) return base::fail(Code::kCorrupt, "no digits");
  for (const std::byte b : bytes) {
    const char c = static_cast<char>(b);
    if (c < '0' || c > '9') return base::fail(Code::kCorrupt, "'{}' is no digit", c);
    m.number = m.number * 10 + static_cast<uint64_t>(c - '0');
  }
  return {};
}

struct Ping {
  static constexpr uint16_t kType = 1;
  static constexpr const char* kName = "Ping";
  uint64_t number = 0;
};
struct Pong {
  static constexpr uint16_t kType = 2;
  static constexpr const char* kName = "Pong";
  uint64_t number = 0;
};
struct Other {
  static constexpr uint16_t kType = 3;
  static constexpr const char* kName = "Other";
  uint64_t number = 0;
};
inline std::string encode(const Ping& m) { return encode_number(m); }
inline std::string encode(const Pong& m) { return encode_number(m); }
inline std::string encode(const Other& m) { return encode_number(m); }
inline base::Status decode(base::ByteView bytes, Ping& m) { return decode_number(bytes, m); }
inline base::Status decode(base::ByteView bytes, Pong& m) { return decode_number(bytes, m); }
inline base::Status decode(base::ByteView bytes, Other& m) { return decode_number(bytes, m); }

// Answers every Ping with Pong{number + 1} and the same blobs; remembers what it saw.
class Echo : public Actor {
 public:
  using In = Accepts<Ping, Pong>;
  void start(Context&) override { started = true; }
  void receive(Context& ctx, Envelope&& e) override { In::dispatch(*this, ctx, std::move(e)); }
  void on(Context& ctx, const Incoming<Ping>& in) {
    seen.push_back(in->number);
    seen_at.push_back(ctx.now());
    blobs = in.blobs;
    if (hook) hook(ctx);
    if (in.call != 0) ctx.reply(in, Pong{in->number + 1}, in.blobs);
  }
  void on(Context&, const Incoming<Pong>&) { ++stray_pongs; }
  void peer_down(Context&, NodeId node) override { down.push_back(node); }

  bool started = false;
  std::vector<uint64_t> seen;
  std::vector<Time> seen_at;
  base::Blobs blobs;
  int stray_pongs = 0;
  std::vector<NodeId> down;
  std::function<void(Context&)> hook;  // in the handler of Ping
};

// What became of a coroutine that waits.
struct Fate {
  int reached = 0;    // it went on after its wait
  int destroyed = 0;  // its frame is gone
  Time at{};          // when it went on
};
struct Witness {
  explicit Witness(Fate* f) : fate(f) {}
  Witness(const Witness&) = delete;
  ~Witness() { ++fate->destroyed; }
  Fate* fate;
};

struct Answer : Fate {
  base::Result<Incoming<Pong>> result = base::fail(Code::kInternal, "no answer yet");
};

inline Task<void> call_ping(Context* ctx, Address to, uint64_t number, CallOptions options,
                            Answer* out) {
  Witness witness(out);
  Ping ping{number};
  out->result = co_await ctx->call<Pong>(to, ping, options);
  ++out->reached;
  out->at = ctx->now();
}
inline Task<void> sleep_for(Context* ctx, Duration d, Fate* out) {
  Witness witness(out);
  co_await ctx->sleep(d);
  ++out->reached;
  out->at = ctx->now();
}
inline Task<void> offload_for(Context* ctx, Duration cost, int* ran, Fate* out) {
  Witness witness(out);
  std::function<void()> job = [ran] { ++*ran; };
  co_await ctx->offload(std::move(job), Cost{cost});
  ++out->reached;
  out->at = ctx->now();
}

// Two nodes, "a" and "b", each linked to the other; more by add().
class SimTest : public testing::Test {
 protected:
  static constexpr uint16_t kActor = 7;

  explicit SimTest(SimOptions options = {}) : sim(std::move(options)) {
    add("a");
    add("b");
    connect("a", "b");
  }
  void add(const std::string& name, NodeId fixed = {}) {
    sim.add(
        name, kActor, [] { return std::make_unique<Echo>(); }, fixed);
  }
  void connect(const std::string& x, const std::string& y) {
    ctx(x).link(address(y).node, ctx(y).endpoint());
    ctx(y).link(address(x).node, ctx(x).endpoint());
  }
  Context& ctx(const std::string& name) { return *sim.context(name); }
  Echo& echo(const std::string& name) { return static_cast<Echo&>(*sim.actor(name)); }
  Address address(const std::string& name) { return ctx(name).self(); }
  void call(const std::string& from, Address to, uint64_t number, CallOptions options,
            Answer* out) {
    ctx(from).spawn(call_ping(&ctx(from), to, number, options, out));
  }

  SimHost sim;
};

}  // namespace actor::sim_test
