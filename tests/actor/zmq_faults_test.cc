// What a ZmqHost does when peers die, lie, or say nothing.
#include <sys/socket.h>
#include <unistd.h>
#include <zmq.h>

#include "actor/zmq_host.h"
#include "base/rng.h"
#include "zmq_fixture.h"

namespace zmq_test {
namespace {

using base::Code;

// Counters of the peer, while the script waits for them.
uint64_t refused_by(EchoNode& node) { return node.counters().refused; }

Task<void> oversized(Context& ctx, Player& me) {
  introduce(ctx, *me.peer);
  const base::Blobs blobs{pattern(2u << 20, 1)};
  Answer large = co_await ask(ctx, me.peer->address, hasty(), blobs);
  EXPECT_TRUE(!large && large.error().code == Code::kDeadline);
  // Sent again, for it may fall into the connection that the large one is about to break.
  Answer small = co_await ask(ctx, me.peer->address, stubborn());
  EXPECT_TRUE(small.has_value());
}

TEST(ZmqFaults, AMessageOverTheReceiversLimitDropsTheConnectionNotTheProcess) {
  Player me;
  actor::ZmqOptions options;
  options.max_message_bytes = 1u << 20;
  me.peer = std::make_unique<EchoNode>(options);
  me.play(oversized);
}

Task<void> own_limit(Context& ctx, Player& me) {
  introduce(ctx, *me.peer);
  const base::Blobs blobs{pattern(2u << 20, 1)};
  ctx.send(me.peer->address, Note{}, blobs);
  EXPECT_EQ(me.host->counters().dropped, 1u);
  Answer small = co_await ask(ctx, me.peer->address, patient());
  EXPECT_TRUE(small.has_value());
}

TEST(ZmqFaults, AMessageOverOurOwnLimitIsDroppedAtTheSender) {
  actor::ZmqOptions options;
  options.max_message_bytes = 1u << 20;
  Player me(options);
  me.peer = std::make_unique<EchoNode>();
  me.play(own_limit);
}

// Many frames, each within the limit, together over it; or too many.
Task<void> too_much_together(Context& ctx, Player& me) {
  introduce(ctx, *me.peer);
  const base::Blobs blobs(4, pattern(300u << 10, 1));
  ctx.send(me.peer->address, Note{}, blobs);
  co_await until(
      ctx, [&] { return refused_by(*me.peer) == 1; }, 20s);
  EXPECT_EQ(refused_by(*me.peer), 1u);
  EXPECT_EQ(me.peer->actor.notes, 0u);
}

TEST(ZmqFaults, FramesThatTogetherAreOverTheLimitAreRefused) {
  Player me;
  actor::ZmqOptions options;
  options.max_message_bytes = 1u << 20;
  me.peer = std::make_unique<EchoNode>(options);
  me.play(too_much_together);
}

Task<void> garbage(Context& ctx, Player& me) {
  const uint16_t port = port_of(me.peer->endpoint);
  std::vector<int> raw;
  base::Rng rng(7);
  for (int i = 0; i < 20; ++i) {
    raw.push_back(connect_raw(port));
    const base::Blob bytes = pattern(1 + rng.below(4000), rng.next());
    EXPECT_EQ(::send(raw.back(), bytes.view().data(), bytes.size(), MSG_NOSIGNAL),
              static_cast<ssize_t>(bytes.size()));
  }
  const std::string_view half_greeting("\xff\0\0\0\0\0\0\0\1\x7f\3", 11);
  for (int i = 0; i < 20; ++i) {
    raw.push_back(connect_raw(port));
    EXPECT_EQ(::send(raw.back(), half_greeting.data(), half_greeting.size(), MSG_NOSIGNAL), 11);
  }
  for (int i = 0; i < 200; ++i) raw.push_back(connect_raw(port));  // and say nothing

  introduce(ctx, *me.peer);
  for (int i = 0; i < 10; ++i) {
    Answer answer = co_await ask(ctx, me.peer->address, patient());
    EXPECT_TRUE(answer.has_value());
  }
  for (const int fd : raw) ::close(fd);
}

TEST(ZmqFaults, GarbageAndSilentConnectionsDoNotDisturbACall) {
  Player me;
  me.peer = std::make_unique<EchoNode>();
  me.play(garbage);
}

// A ZeroMQ client that does not keep our rules.
class Stranger {
 public:
  explicit Stranger(const std::string& endpoint)
      : context_(::zmq_ctx_new()), socket_(::zmq_socket(context_, ZMQ_DEALER)) {
    const int linger = 0;
    ::zmq_setsockopt(socket_, ZMQ_LINGER, &linger, sizeof linger);
    CHECK(::zmq_connect(socket_, endpoint.c_str()) == 0, "connect");
  }
  ~Stranger() {
    ::zmq_close(socket_);
    ::zmq_ctx_term(context_);
  }
  void send(const std::vector<std::string>& frames) {
    for (size_t i = 0; i < frames.size(); ++i) {
      const int more = i + 1 < frames.size() ? ZMQ_SNDMORE : 0;
      CHECK(::zmq_send(socket_, frames[i].data(), frames[i].size(), more) >= 0, "send");
    }
  }

 private:
  void* context_;
  void* socket_;
};

std::string header_bytes(const actor::Header& header) {
  std::string out(actor::Header::kBytes, '\0');
  header.write(reinterpret_cast<std::byte*>(out.data()));
  return out;
}

Task<void> malformed(Context& ctx, Player& me) {
  introduce(ctx, *me.peer);
  Stranger stranger(me.peer->endpoint);
  actor::Header good;
  good.type = Note::kType;
  good.from_node = 99;
  good.to_node = me.peer->address.node.value;
  actor::Header elsewhere = good;
  elsewhere.to_node ^= 1;
  actor::Header other_actor = good;
  other_actor.to_actor = 5;
  actor::Header nobody = good;
  nobody.from_node = 0;
  std::string bad_magic = header_bytes(good);
  bad_magic[0] = static_cast<char>(bad_magic[0] ^ 1);

  stranger.send({"only one frame"});
  stranger.send({"not a header", "body"});
  stranger.send({header_bytes(good) + "x", "body"});
  stranger.send({bad_magic, "body"});
  stranger.send({header_bytes(elsewhere), "body"});
  stranger.send({header_bytes(other_actor), "body"});
  stranger.send({header_bytes(nobody), "body"});
  stranger.send(std::vector<std::string>(2 + 64 + 1, header_bytes(good)));
  stranger.send({header_bytes(good), "undecodable"});  // kept by the host, dropped by dispatch
  stranger.send({header_bytes(good), encode(Note{})});
  const bool arrived = co_await until(
      ctx, [&] { return me.peer->actor.notes >= 1; }, 20s);
  EXPECT_TRUE(arrived);
  EXPECT_EQ(refused_by(*me.peer), 8u);
}

TEST(ZmqFaults, MalformedAndMisaddressedMessagesAreRefusedAndCounted) {
  Player me;
  me.peer = std::make_unique<EchoNode>();
  me.play(malformed);
}

Task<void> knock(Context& ctx, Address to, Code* code) {
  Knock unanswered;
  Answer answer = co_await ctx.call<Pong>(to, std::move(unanswered), patient());
  *code = answer ? Code::kInternal : answer.error().code;
}

Task<void> forged_reply(Context& ctx, Player& me) {
  introduce(ctx, *me.peer);
  Code code{};
  ctx.spawn(knock(ctx, me.peer->address, &code));
  co_await until(
      ctx, [&] { return me.peer->actor.knocks == 1; }, 20s);
  actor::Header forged;
  forged.type = Pong::kType;
  forged.from_node = 99;
  forged.to_node = ctx.self().node.value;
  forged.flags = actor::Header::kReply;
  forged.call = me.peer->actor.last_call;
  Stranger stranger(ctx.endpoint());
  stranger.send({header_bytes(forged), encode(Pong{666, ""})});
  co_await until(
      ctx, [&] { return me.host->counters().received == 1; }, 20s);
  EXPECT_EQ(me.host->counters().received, 1u);
  EXPECT_EQ(code, Code{});  // still waits
}

TEST(ZmqFaults, OnlyTheNodeThatWasCalledCanAnswer) {
  Player me;
  me.peer = std::make_unique<EchoNode>();
  me.play(forged_reply);
}

Task<void> calls_the_dead(Context& ctx, Player&) {
  const Address nobody{NodeId{42}, 0};
  const std::string endpoint = dead_endpoint();
  ctx.link(nobody.node, endpoint);
  const base::Time begin = ctx.now();
  Answer answer = co_await ask(ctx, nobody, hasty());
  EXPECT_TRUE(!answer && answer.error().code == Code::kDeadline);
  EXPECT_GE(ctx.now() - begin, hasty().deadline);
}

TEST(ZmqFaults, ACallToADeadEndpointFailsWithItsDeadline) {
  Player me;
  me.play(calls_the_dead);
  EXPECT_GE(me.host->counters().resent, 2u);
}

Task<void> calls_a_stranger(Context& ctx, Player& me) {
  const Address never_linked{NodeId{42}, 0};
  Answer answer = co_await ask(ctx, never_linked, hasty());
  EXPECT_TRUE(!answer && answer.error().code == Code::kDeadline);
  EXPECT_GE(me.host->counters().dropped, 1u);
}

TEST(ZmqFaults, ACallToANodeNeverLinkedFailsWithItsDeadline) {
  Player me;
  me.play(calls_a_stranger);
}

Task<void> unlinks(Context& ctx, Player& me) {
  introduce(ctx, *me.peer);
  Code code{};
  ctx.spawn(knock(ctx, me.peer->address, &code));
  co_await until(
      ctx, [&] { return me.peer->actor.knocks == 1; }, 20s);
  ctx.unlink(me.peer->address.node);
  EXPECT_EQ(code, Code{});  // not from within unlink
  co_await ctx.sleep(1ms);
  EXPECT_EQ(code, Code::kPeerGone);
}

TEST(ZmqFaults, UnlinkingANodeFailsItsCallsWithPeerGone) {
  Player me;
  me.peer = std::make_unique<EchoNode>();
  me.play(unlinks);
}

Task<void> renews(Context& ctx, Player& me) {
  introduce(ctx, *me.peer);
  const NodeId before = ctx.self().node;
  Code code{};
  ctx.spawn(knock(ctx, me.peer->address, &code));
  co_await until(
      ctx, [&] { return me.peer->actor.knocks == 1; }, 20s);
  const NodeId after = ctx.renew_life();
  EXPECT_NE(after, before);
  EXPECT_EQ(ctx.self().node, after);
  co_await ctx.sleep(1ms);
  EXPECT_EQ(code, Code::kStale);
  me.peer->within([&](Context& other) { other.send(Address{before, 0}, Note{}); });
  co_await until(
      ctx, [&] { return me.host->counters().refused == 1; }, 20s);
  EXPECT_EQ(me.host->counters().refused, 1u);
  EXPECT_EQ(me.notes, 0u);
  introduce(ctx, *me.peer);
  Answer answer = co_await ask(ctx, me.peer->address, patient());
  EXPECT_TRUE(answer.has_value());
}

TEST(ZmqFaults, ANewLifeFailsOldCallsAsStaleAndRefusesOldMail) {
  Player me;
  me.peer = std::make_unique<EchoNode>();
  me.play(renews);
}

Task<void> peer_restarts(Context& ctx, Player& me) {
  introduce(ctx, *me.peer);
  const Address first = me.peer->address;
  Answer before = co_await ask(ctx, first, patient());
  EXPECT_TRUE(before.has_value());
  actor::ZmqOptions options;
  options.bind = me.peer->endpoint;
  me.peer.reset();
  me.peer = std::make_unique<EchoNode>(options);
  EXPECT_EQ(me.peer->endpoint, options.bind);
  EXPECT_NE(me.peer->address, first);

  introduce(ctx, *me.peer);  // the old link stands, too
  Answer second = co_await ask(ctx, me.peer->address, patient());
  EXPECT_TRUE(second.has_value());
  Answer former = co_await ask(ctx, first, hasty());
  EXPECT_TRUE(!former && former.error().code == Code::kDeadline);
  const bool refused = co_await until(
      ctx, [&] { return refused_by(*me.peer) >= 1; }, 20s);
  EXPECT_TRUE(refused);
  EXPECT_EQ(me.peer->actor.pings, 1u);
}

TEST(ZmqFaults, APeerRestartedOnTheSameEndpointIsReachedByItsNewIdOnly) {
  Player me;
  me.peer = std::make_unique<EchoNode>();
  me.play(peer_restarts);
}

Task<void> peer_dies(Context& ctx, Player& me) {
  introduce(ctx, *me.peer);
  const NodeId node = me.peer->address.node;
  Answer up = co_await ask(ctx, me.peer->address, patient());
  EXPECT_TRUE(up.has_value());
  EXPECT_TRUE(me.down.empty());
  me.peer.reset();
  const base::Time begin = ctx.now();
  co_await until(
      ctx, [&] { return !me.down.empty(); }, 20s);
  EXPECT_EQ(me.down, std::vector<NodeId>{node});
  EXPECT_LE(ctx.now() - begin, 400ms);
}

TEST(ZmqFaults, ADeadPeerIsReportedWithin400Ms) {
  Player me;
  me.peer = std::make_unique<EchoNode>();
  me.play(peer_dies);
}

Task<void> fills_a_queue(Context& ctx, Player& me) {
  const Address nobody{NodeId{42}, 0};
  const std::string endpoint = dead_endpoint();
  ctx.link(nobody.node, endpoint);
  const base::Blobs blobs{pattern(100, 1)};
  for (int i = 0; i < 1500; ++i) ctx.send(nobody, Note{}, blobs);
  EXPECT_EQ(me.host->counters().sent, 1000u);
  EXPECT_EQ(me.host->counters().dropped, 500u);
  ctx.unlink(nobody.node);  // and the queue with it
  co_return;
}

TEST(ZmqFaults, AFullQueueDropsAndCounts) {
  Player me;
  me.play(fills_a_queue);
}

Task<void> bad_endpoints(Context& ctx, Player& me) {
  const Address node{NodeId{42}, 0};
  for (const char* endpoint : {"", "inproc://x", "tcp://127.0.0.1:99999", "tcp://:1"}) {
    ctx.link(node.node, endpoint);
    ctx.send(node, Note{});
  }
  EXPECT_EQ(me.host->counters().dropped, 4u);
  co_return;
}

TEST(ZmqFaults, AnEndpointThatMakesNoSenseLinksNothing) {
  Player me;
  me.play(bad_endpoints);
}

Task<void> links_and_unlinks(Context& ctx, Player& me) {
  const auto settled = [](size_t count) { return [count] { return open_descriptors() <= count; }; };
  const size_t before = open_descriptors();
  for (uint64_t i = 0; i < 1000; ++i) {
    const NodeId node{100 + i};
    ctx.link(node, me.peer->endpoint);
    ctx.send(Address{node, 0}, Note{});
    if (i % 100 == 0) {  // some get as far as a connection
      const uint64_t refused = refused_by(*me.peer);
      co_await until(
          ctx, [&] { return refused_by(*me.peer) > refused; }, 20s);
    }
    ctx.unlink(node);
    // Sockets close in their own time; not faster than they are made.
    if (i % 100 == 99) co_await until(ctx, settled(before + 50), 20s);
  }
  const bool same_again = co_await until(ctx, settled(before), 20s);
  EXPECT_TRUE(same_again) << open_descriptors() << " descriptors, before " << before;
}

TEST(ZmqFaults, AThousandLinksLeaveNoDescriptorBehind) {
  Player me;
  me.peer = std::make_unique<EchoNode>();
  me.play(links_and_unlinks);
}

TEST(ZmqFaults, AHostThatNeverRanLeavesNoDescriptorBehind) {
  make_host();
  const size_t before = open_descriptors();
  make_host();
  EXPECT_EQ(open_descriptors(), before);
}

}  // namespace
}  // namespace zmq_test
