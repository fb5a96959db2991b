#include "actor/zmq_transport.h"

#include <unistd.h>

#include <algorithm>
#include <deque>
#include <map>
#include <mutex>
#include <vector>
#include <zmq.hpp>

#include "actor/endpoint.h"

namespace actor {
namespace {

constexpr int kQueue = 1000;         // messages
constexpr int kSockets = 8192;       // three a link, and those on their way out
constexpr size_t kCopyBelow = 8192;  // smaller blobs would pin a shared receive buffer
constexpr int kFlushMs = 100;

int to_ms(base::Duration d) {
  return static_cast<int>(std::chrono::ceil<std::chrono::milliseconds>(d).count());
}

// One DEALER and its monitor.
struct Link {
  std::string endpoint;
  zmq::socket_t dealer;
  zmq::socket_t monitor;
  bool up = false;

  Link(std::string where, zmq::socket_t to, zmq::socket_t events)
      : endpoint(std::move(where)), dealer(std::move(to)), monitor(std::move(events)) {}
  Link(const Link&) = delete;
  Link& operator=(const Link&) = delete;
  ~Link() { ::zmq_socket_monitor(dealer.handle(), nullptr, 0); }
};

// Takes one frame if one is there.
bool take(zmq::socket_t& from, zmq::message_t& frame) {
  while (true) {
    if (::zmq_msg_recv(frame.handle(), from.handle(), ZMQ_DONTWAIT) >= 0) return true;
    if (zmq_errno() != EINTR) return false;
  }
}

bool put(zmq::socket_t& to, zmq::message_t& frame, bool more) {
  const int flags = ZMQ_DONTWAIT | (more ? ZMQ_SNDMORE : 0);
  while (true) {
    if (::zmq_msg_send(frame.handle(), to.handle(), flags) >= 0) return true;
    if (zmq_errno() != EINTR) return false;
  }
}

// Blobs whose bytes are in frames on their way. The library lets go of a frame on its own thread;
// the blob itself is let go on ours, because its owner may be anything.
//
// Thread safety: one thread, except let_go().
class Loans {
 public:
  zmq::message_t lend(const base::Blob& blob) {
    if (blob.size() < kCopyBelow) return zmq::message_t(blob.view().data(), blob.size());
    void* const bytes = const_cast<std::byte*>(blob.view().data());  // the library only reads it
    lent_.emplace(bytes, blob);
    return zmq::message_t(bytes, blob.size(), let_go, this);
  }
  void collect() {
    std::vector<const void*> back;
    {
      const std::scoped_lock lock(mutex_);
      back.swap(back_);
    }
    for (const void* bytes : back) lent_.erase(lent_.find(bytes));
  }

 private:
  static void let_go(void* bytes, void* loans) {
    Loans* const home = static_cast<Loans*>(loans);
    const std::scoped_lock lock(home->mutex_);
    home->back_.push_back(bytes);
  }
  std::multimap<const void*, base::Blob> lent_;  // by first byte; one entry a frame
  std::mutex mutex_;
  std::vector<const void*> back_;  // guarded by mutex_
};

base::Blob unshare(zmq::message_t&& frame) {
  const base::ByteView bytes{frame.data<std::byte>(), frame.size()};
  if (bytes.size() < kCopyBelow) return base::Blob::copy_of(bytes);
  auto owner = std::make_shared<zmq::message_t>(std::move(frame));
  const base::ByteView view{owner->data<std::byte>(), owner->size()};
  return base::Blob(std::move(owner), view);
}

void set_common(zmq::socket_t& socket, const ZmqTransport::Options& options) {
  socket.set(zmq::sockopt::linger, 0);
  socket.set(zmq::sockopt::sndhwm, kQueue);
  socket.set(zmq::sockopt::rcvhwm, kQueue);
  socket.set(zmq::sockopt::maxmsgsize, static_cast<int64_t>(options.max_message_bytes));
  socket.set(zmq::sockopt::handshake_ivl, 2000);
}

void set_router(zmq::socket_t& socket) {
  socket.set(zmq::sockopt::backlog, 1024);
  socket.set(zmq::sockopt::tcp_keepalive, 1);
  socket.set(zmq::sockopt::tcp_keepalive_idle, 5);
  socket.set(zmq::sockopt::tcp_keepalive_intvl, 1);
  socket.set(zmq::sockopt::tcp_keepalive_cnt, 5);
}

void set_dealer(zmq::socket_t& socket, const ZmqTransport::Options& options) {
  socket.set(zmq::sockopt::immediate, 0);
  socket.set(zmq::sockopt::reconnect_ivl, 20);
  socket.set(zmq::sockopt::reconnect_ivl_max, 200);
  socket.set(zmq::sockopt::connect_timeout, 1000);
  socket.set(zmq::sockopt::heartbeat_ivl, to_ms(options.heartbeat));
  socket.set(zmq::sockopt::heartbeat_timeout, 5 * to_ms(options.heartbeat));
}

}  // namespace

struct ZmqTransport::State {
  Options options;
  std::string endpoint;
  Loans loans;
  // The sockets go before the context, which waits for them; the loans are back then.
  zmq::context_t context{/*io_threads=*/1, kSockets};
  zmq::socket_t router{context, zmq::socket_type::router};
  std::map<NodeId, Link> links;
  std::deque<Change> changes;
  uint64_t monitors = 0;  // ever made
  // What wait() polls: wake_fd, router, monitors in the order of `links`.
  std::vector<zmq_pollitem_t> items;
  bool items_stale = true;

  explicit State(Options o) : options(std::move(o)) {}
  void read_monitor(NodeId node, Link& link);
  void refresh_items(int wake_fd);
};

ZmqTransport::ZmqTransport(std::unique_ptr<State> state) : state_(std::move(state)) {}

ZmqTransport::~ZmqTransport() {
  // The library removes this file only when it binds there again.
  if (!state_->options.ipc_path.empty()) ::unlink(state_->options.ipc_path.c_str());
}

const std::string& ZmqTransport::endpoint() const { return state_->endpoint; }

base::Result<std::unique_ptr<ZmqTransport>> ZmqTransport::open(const Options& options) {
  std::string binding = options.bind;
  try {
    auto state = std::make_unique<State>(options);
    set_common(state->router, options);
    set_router(state->router);
    state->router.set(zmq::sockopt::ipv6, is_ipv6(binding));
    state->router.bind(binding);
    state->endpoint = advertised(options.advertise, state->router.get(zmq::sockopt::last_endpoint));
    if (!options.ipc_path.empty()) {
      binding = "ipc://" + options.ipc_path;
      state->router.bind(binding);
      state->endpoint += fmt::format(" {}@{}", binding, host_id());
    }
    return std::unique_ptr<ZmqTransport>(new ZmqTransport(std::move(state)));
  } catch (const zmq::error_t& error) {
    return base::fail(base::Code::kUnavailable, "cannot listen on {}: {}", binding, error.what());
  }
}

base::Status ZmqTransport::link(NodeId node, const std::string& endpoint) {
  State& s = *state_;
  const auto known = s.links.find(node);
  if (known != s.links.end() && known->second.endpoint == endpoint) return {};
  if (known == s.links.end() && s.links.size() >= kMaxLinks) {
    return base::fail(base::Code::kExhausted, "there are {} links already", kMaxLinks);
  }
  const std::string target = TRY(reachable(endpoint, host_id()));
  unlink(node);
  try {
    zmq::socket_t dealer(s.context, zmq::socket_type::dealer);
    set_common(dealer, s.options);
    set_dealer(dealer, s.options);
    dealer.set(zmq::sockopt::ipv6, is_ipv6(target));
    const std::string events = fmt::format("inproc://monitor-{}", ++s.monitors);
    const int wanted = ZMQ_EVENT_HANDSHAKE_SUCCEEDED | ZMQ_EVENT_DISCONNECTED;
    if (::zmq_socket_monitor(dealer.handle(), events.c_str(), wanted) != 0) throw zmq::error_t();
    zmq::socket_t monitor(s.context, zmq::socket_type::pair);
    monitor.set(zmq::sockopt::linger, 0);
    monitor.connect(events);
    const auto [it, added] =
        s.links.try_emplace(node, endpoint, std::move(dealer), std::move(monitor));
    CHECK(added, "the former link is gone");
    s.items_stale = true;
    it->second.dealer.connect(target);
  } catch (const zmq::error_t& error) {
    unlink(node);
    return base::fail(base::Code::kInvalidArgument, "cannot link to {}: {}", target, error.what());
  }
  return {};
}

void ZmqTransport::unlink(NodeId node) {
  if (state_->links.erase(node) == 0) return;
  state_->items_stale = true;
  std::erase_if(state_->changes, [node](const Change& c) { return c.node == node; });
}

ZmqTransport::Sent ZmqTransport::send(NodeId to, const Header& header, std::string_view body,
                                      const base::Blobs& blobs) {
  const auto it = state_->links.find(to);
  if (it == state_->links.end()) return Sent::kNoLink;
  uint64_t bytes = Header::kBytes + body.size();
  for (const base::Blob& blob : blobs) bytes += blob.size();
  if (bytes > state_->options.max_message_bytes) return Sent::kTooLarge;
  CHECK(blobs.size() <= kMaxBlobs, "{} blobs in message {}", blobs.size(), header.type);

  zmq::socket_t& socket = it->second.dealer;
  zmq::message_t first(Header::kBytes);
  header.write(first.data<std::byte>());
  // Fullness shows at the first frame; then nothing of the message is queued.
  if (!put(socket, first, /*more=*/true)) return Sent::kFull;
  // A pipe that breaks in between swallows the rest up to the last frame, so all are put.
  zmq::message_t second(body.data(), body.size());
  bool whole = put(socket, second, !blobs.empty());
  for (size_t i = 0; i < blobs.size(); ++i) {
    zmq::message_t frame = state_->loans.lend(blobs[i]);
    whole = put(socket, frame, i + 1 < blobs.size()) && whole;
  }
  return whole ? Sent::kQueued : Sent::kFull;
}

void ZmqTransport::State::refresh_items(int wake_fd) {
  if (items_stale) {
    items.assign(1, {nullptr, wake_fd, ZMQ_POLLIN, 0});
    items.push_back({router.handle(), 0, ZMQ_POLLIN, 0});
    for (auto& [node, link] : links) items.push_back({link.monitor.handle(), 0, ZMQ_POLLIN, 0});
    items_stale = false;
  }
  items[0].fd = wake_fd;
}

void ZmqTransport::State::read_monitor(NodeId node, Link& link) {
  zmq::message_t event;
  zmq::message_t address;
  while (take(link.monitor, event) && take(link.monitor, address)) {
    uint16_t number = 0;
    std::memcpy(&number, event.data(), sizeof number);
    if (number != ZMQ_EVENT_HANDSHAKE_SUCCEEDED && number != ZMQ_EVENT_DISCONNECTED) continue;
    link.up = number == ZMQ_EVENT_HANDSHAKE_SUCCEEDED;
    changes.push_back({node, link.up});
  }
}

void ZmqTransport::wait(int wake_fd, base::Duration most) {
  State& s = *state_;
  s.loans.collect();
  s.refresh_items(wake_fd);
  const int ready = ::zmq_poll(
      s.items.data(), static_cast<int>(s.items.size()),
      std::max(0, to_ms(std::min<base::Duration>(most, base::Duration(std::chrono::hours(1))))));
  if (ready <= 0) return;  // an interrupted wait is a short one
  size_t i = 2;
  for (auto& [node, link] : s.links) {
    if (s.items[i++].revents & ZMQ_POLLIN) s.read_monitor(node, link);
  }
}

std::optional<ZmqTransport::Change> ZmqTransport::next_change() {
  if (state_->changes.empty()) return std::nullopt;
  const Change change = state_->changes.front();
  state_->changes.pop_front();
  return change;
}

std::optional<base::Result<Envelope>> ZmqTransport::receive() {
  zmq::socket_t& router = state_->router;
  zmq::message_t frame;
  if (!take(router, frame)) return std::nullopt;  // the sender's identity, of no use
  // The other frames of the message are there with its first.
  std::vector<zmq::message_t> frames;
  uint64_t bytes = 0;
  size_t count = 0;
  for (bool more = frame.more(); more;) {
    if (!take(router, frame)) return base::fail(base::Code::kInternal, "half a message");
    more = frame.more();
    bytes += frame.size();
    if (++count <= 2 + kMaxBlobs) frames.push_back(std::move(frame));
  }
  if (count < 2 || count > 2 + kMaxBlobs) {
    return base::fail(base::Code::kCorrupt, "a message of {} frames", count);
  }
  if (bytes > state_->options.max_message_bytes) {
    return base::fail(base::Code::kTooLarge, "a message of {} bytes", bytes);
  }
  Envelope envelope;
  base::Result<Header> header = Header::read({frames[0].data<std::byte>(), frames[0].size()});
  if (!header) return base::fail(std::move(header.error()));
  envelope.header = *header;
  envelope.body = frames[1].to_string();
  for (size_t i = 2; i < frames.size(); ++i) {
    envelope.blobs.push_back(unshare(std::move(frames[i])));
  }
  return envelope;
}

void ZmqTransport::flush_on_close() {
  for (auto& [node, link] : state_->links) {
    const int linger = link.up ? kFlushMs : 0;
    ::zmq_setsockopt(link.dealer.handle(), ZMQ_LINGER, &linger, sizeof linger);
  }
}

}  // namespace actor
