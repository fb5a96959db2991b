// Nodes on real loopback sockets. The test's own node plays a script, a coroutine, on the test's
// thread; EchoNodes answer on threads of their own.
#pragma once
#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <functional>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "actor/zmq_host.h"

namespace zmq_test {

using std::chrono_literals::operator""ms;
using std::chrono_literals::operator""s;
using actor::Address;
using actor::Context;
using actor::NodeId;
using base::Task;

template <uint16_t kNumber>
struct Text {
  static constexpr uint16_t kType = kNumber;
  static constexpr const char* kName = "text";
  uint64_t number = 0;
  std::string text;
};
using Ping = Text<1>;  // answered with a Pong of the same content
using Pong = Text<2>;
using Note = Text<3>;   // counted
using Knock = Text<4>;  // a call that is never answered

template <uint16_t kNumber>
std::string encode(const Text<kNumber>& m) {
  std::string out(sizeof m.number, '\0');
  std::memcpy(out.data(), &m.number, sizeof m.number);
  return out + m.text;
}
template <uint16_t kNumber>
base::Status decode(base::ByteView in, Text<kNumber>& m) {
  if (in.size() < sizeof m.number) return base::fail(base::Code::kCorrupt, "short");
  std::memcpy(&m.number, in.data(), sizeof m.number);
  const auto text = in.subspan(sizeof m.number);
  m.text.assign(reinterpret_cast<const char*>(text.data()), text.size());
  return {};
}

class EchoActor : public actor::Actor {
 public:
  using In = actor::Accepts<Ping, Note, Knock>;
  void receive(Context& ctx, actor::Envelope&& e) override {
    In::dispatch(*this, ctx, std::move(e));
  }
  void on(Context& ctx, const actor::Incoming<Ping>& in) {
    ++pings;
    ctx.reply(in, Pong{in->number, in->text}, in.blobs);
  }
  void on(Context&, const actor::Incoming<Note>&) { ++notes; }
  void on(Context&, const actor::Incoming<Knock>& in) {
    last_call = in.call;
    ++knocks;
  }
  void peer_down(Context&, NodeId node) override { down.push_back(node); }

  std::atomic<uint64_t> pings{0}, notes{0}, knocks{0}, last_call{0};
  std::vector<NodeId> down;  // on the reactor thread
};

inline std::unique_ptr<actor::ZmqHost> make_host(actor::ZmqOptions options = {}) {
  auto host = actor::ZmqHost::create(std::move(options));
  CHECK(host.has_value(), "{}", base::to_string(host.error()));
  return std::move(*host);
}

// A node on its own thread, until it is destroyed.
class EchoNode {
 public:
  explicit EchoNode(actor::ZmqOptions options = {}) : host_(make_host(std::move(options))) {
    address = host_->context().self();
    endpoint = host_->context().endpoint();
    thread_ = std::thread([this] { host_->run(actor, /*handle_signals=*/false); });
  }
  ~EchoNode() {
    host_->context().injector().post([this] { host_->context().stop(0); });
    thread_.join();
  }
  // Runs it on the node's reactor thread and waits for its end.
  void within(const std::function<void(Context&)>& run) {
    std::promise<void> done;
    host_->context().injector().post([&] {
      run(host_->context());
      done.set_value();
    });
    const auto state = done.get_future().wait_for(20s);
    CHECK(state == std::future_status::ready, "the node hangs");
  }
  actor::TransportCounters counters() {
    actor::TransportCounters copy;
    within([&](Context&) { copy = host_->counters(); });
    return copy;
  }

  Address address;
  std::string endpoint;
  EchoActor actor;

 private:
  std::unique_ptr<actor::ZmqHost> host_;
  std::thread thread_;
};

// Both know each other afterwards.
inline void introduce(Context& ctx, EchoNode& node) {
  ctx.link(node.address.node, node.endpoint);
  const NodeId self = ctx.self().node;
  const std::string endpoint = ctx.endpoint();
  node.within([&](Context& other) { other.link(self, endpoint); });
}

// Waits until `ready`, at most `limit`; false when it never was.
template <class Ready>
Task<bool> until(Context& ctx, Ready ready, base::Duration limit) {
  const base::Time end = ctx.now() + limit;
  while (!ready()) {
    if (ctx.now() >= end) co_return false;
    co_await ctx.sleep(1ms);
  }
  co_return true;
}

// Sent once: what is lost stays lost.
inline actor::CallOptions patient() { return {.label = "test", .retry = 20s, .deadline = 20s}; }
inline actor::CallOptions stubborn() { return {.label = "test", .retry = 50ms, .deadline = 20s}; }
inline actor::CallOptions hasty() { return {.label = "test", .retry = 50ms, .deadline = 300ms}; }

using Answer = base::Result<actor::Incoming<Pong>>;

// A ping and the answer to it, checked to be an echo. (g++ 12 destroys a braced temporary inside a
// co_await expression twice, hence the named ones.)
inline Task<Answer> ask(Context& ctx, Address to, actor::CallOptions options,
                        base::Blobs blobs = {}) {
  static std::atomic<uint64_t> asked{0};
  const uint64_t number = ++asked;
  Ping ping{number, "hello"};
  Answer answer = co_await ctx.call<Pong>(to, std::move(ping), options, std::move(blobs));
  if (answer) {
    EXPECT_EQ(answer->msg.number, number);
    EXPECT_EQ(answer->msg.text, "hello");
  }
  co_return answer;
}

// The test's own node.
class Player : public EchoActor {
 public:
  using Script = Task<void> (*)(Context&, Player&);  // a coroutine without captures

  explicit Player(actor::ZmqOptions options = {}) : host(make_host(std::move(options))) {}
  // Plays it to its end; fails the test when that takes a minute.
  void play(Script script) {
    script_ = script;
    EXPECT_EQ(host->run(*this, handle_signals, on_terminate), 0);
  }
  void start(Context& ctx) override {
    ctx.spawn(guard(ctx));
    ctx.spawn(run_script(ctx));
  }

  std::unique_ptr<actor::ZmqHost> host;
  std::unique_ptr<EchoNode> peer;
  bool handle_signals = false;
  std::function<void(Context&)> on_terminate;
  bool terminated = false;  // for on_terminate to set

 private:
  Task<void> run_script(Context& ctx) {
    co_await script_(ctx, *this);
    ctx.stop(0);
  }
  static Task<void> guard(Context& ctx) {
    co_await ctx.sleep(60s);
    ADD_FAILURE() << "the script does not end";
    ctx.stop(1);
  }
  Script script_ = nullptr;
};

size_t open_descriptors();
uint16_t port_of(const std::string& endpoint);
// A blocking TCP connection to this port of 127.0.0.1.
int connect_raw(uint16_t port);
// An endpoint where nobody listens.
std::string dead_endpoint();
base::Blob pattern(size_t bytes, uint64_t seed);
bool same(const base::Blob& a, const base::Blob& b);

}  // namespace zmq_test
