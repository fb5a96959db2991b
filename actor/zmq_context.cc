#include "actor/zmq_context.h"

#include <algorithm>
#include <random>
#include <utility>

namespace actor {
namespace {

constexpr size_t kMessagesPerTurn = 256;
constexpr size_t kTimersPerTurn = 256;
constexpr size_t kMostToSelf = 1000;  // like the queue of a peer
constexpr Duration kPeerDownAfter = std::chrono::milliseconds(100);
constexpr Duration kLongestWait = std::chrono::seconds(1);

uint64_t seed_of_the_system() {
  std::random_device device;
  return (uint64_t{device()} << 32) | device();
}

bool is_power_of_two(uint64_t n) { return (n & (n - 1)) == 0; }

}  // namespace

// A call on its way, in the frame of call_raw: sends, sends again, gives up.
class ZmqContext::OutgoingCall {
 public:
  OutgoingCall(ZmqContext& host, Address to, uint16_t type, std::string body, base::Blobs blobs,
               const CallOptions& options)
      : slot(entry_.slot),
        host_(host),
        to_(to),
        type_(type),
        body_(std::move(body)),
        blobs_(std::move(blobs)),
        options_(options),
        entry_(host.calls_, to.node),
        retry_(host.timers_),
        deadline_(host.timers_) {}

  void begin() {
    CHECK(options_.retry > Duration::zero(), "call '{}' would be sent without end", options_.label);
    deadline_.set(host_.now() + options_.deadline, [this] { give_up(); });
    send();
  }

  base::Slot<PendingCalls::Answer>& slot;

 private:
  void send() {
    host_.transmit(to_, type_, entry_.number(), 0, body_, blobs_);
    retry_.set(host_.now() + options_.retry, [this] {
      ++host_.counters_.resent;
      host_.log(base::Level::kDebug, "call.retry",
                {{"label", options_.label}, {"to", to_.node.value}});
      send();
    });
  }
  void give_up() {
    entry_.resolve(base::fail(base::Code::kDeadline, "call '{}' had no answer from node {} in {} s",
                              options_.label, to_.node.value, base::seconds(options_.deadline)));
  }

  ZmqContext& host_;
  const Address to_;
  const uint16_t type_;
  const std::string body_;
  const base::Blobs blobs_;
  const CallOptions options_;
  PendingCalls::Entry entry_;
  Timer retry_;
  Timer deadline_;
};

// An offloaded job, in the frame that waits for it. A frame that goes earlier waits for the end of
// a job that runs, for the job may refer to the frame.
class ZmqContext::RunningJob {
 public:
  RunningJob(ZmqContext& host, ComputeJob job) : host_(host), id_(++host.last_job_) {
    job.id = id_;
    host_.jobs_.emplace(id_, &done);
    host_.pool_.submit(std::move(job));
  }
  ~RunningJob() {
    host_.jobs_.erase(id_);
    if (!done.full()) host_.pool_.withdraw(id_);
  }
  RunningJob(const RunningJob&) = delete;
  RunningJob& operator=(const RunningJob&) = delete;

  base::Slot<bool> done;

 private:
  ZmqContext& host_;
  const uint64_t id_;
};

ZmqContext::ZmqContext(ZmqOptions options, std::unique_ptr<ZmqTransport> transport)
    : options_(std::move(options)),
      started_(std::chrono::steady_clock::now()),
      rng_(seed_of_the_system()),
      node_(options_.node ? options_.node : draw_node()),
      inbox_(Inbox::create()),
      transport_(std::move(transport)),
      calls_(rng_.next() >> 1),
      pool_(std::max(1u, options_.compute_threads), [this](ComputePool::Ids ids) {
        inbox_.post([this, ids = std::move(ids)] { jobs_done(ids); });
      }) {}

ZmqContext::~ZmqContext() { end(); }

Time ZmqContext::now() const {
  return Time(std::chrono::duration_cast<Duration>(std::chrono::steady_clock::now() - started_));
}

void ZmqContext::log(base::Level level, std::string_view event, base::Fields fields) {
  options_.log.write(now(), level, event, fields);
}

NodeId ZmqContext::draw_node() {
  NodeId node;
  while (node.value <= 1) node.value = rng_.next();  // 0 is none, 1 the coordinator
  return node;
}

// --- waiting and running

Task<void> ZmqContext::sleep(Duration d) {
  base::Slot<bool> due;
  Timer timer(timers_);
  timer.set(now() + d, [&due] { due.set(true); });
  co_await due;
}

Task<void> ZmqContext::compute(ComputeJob job) {
  RunningJob running(*this, std::move(job));
  co_await running.done;
}

void ZmqContext::jobs_done(const ComputePool::Ids& ids) {
  for (const uint64_t id : ids) {  // what one resumes may let the frame of another go
    const auto it = jobs_.find(id);
    if (it != jobs_.end()) it->second->set(true);
  }
}

void ZmqContext::spawn(Task<void> task) {
  const uint64_t id = ++last_root_;
  base::Future<void> future = base::start(root(id, std::move(task)));
  if (!future.done()) roots_.emplace(id, std::move(future));
}

Task<void> ZmqContext::root(uint64_t id, Task<void> task) {
  co_await std::move(task);
  ended_.push_back(id);
}

// A frame is not destroyed from within its own resume, hence here.
void ZmqContext::reap() {
  for (const uint64_t id : std::exchange(ended_, {})) roots_.erase(id);
}

// --- who is where

void ZmqContext::link(NodeId node, const std::string& endpoint) {
  if (node == node_) return;
  const base::Status status = transport_->link(node, endpoint);
  if (!status) {
    log(base::Level::kWarn, "transport.no_link",
        {{"node", node.value}, {"why", status.error().what}});
  }
}

void ZmqContext::unlink(NodeId node) {
  transport_->unlink(node);
  lost_.erase(node);
  full_.erase(node);
  fail_later(calls_.to(node), base::Code::kPeerGone, "the node left while its answer was awaited");
}

NodeId ZmqContext::renew_life() {
  fail_later(calls_.all(), base::Code::kStale, "this node began a new life before the answer");
  node_ = draw_node();
  return node_;
}

void ZmqContext::fail_later(const std::vector<uint64_t>& calls, base::Code code, const char* why) {
  for (const uint64_t call : calls) {
    soon_.push_back([this, call, code, why] { calls_.fail(call, base::Error{code, why}); });
  }
}

void ZmqContext::stop(int exit_code) {
  if (stopped_) return;
  stopped_ = true;
  exit_code_ = exit_code;
}

// --- messages out

Task<base::Result<Envelope>> ZmqContext::call_raw(Address to, uint16_t type, std::string body,
                                                  base::Blobs blobs, CallOptions options) {
  OutgoingCall call(*this, to, type, std::move(body), std::move(blobs), options);
  call.begin();
  PendingCalls::Answer answer = co_await call.slot;
  co_return answer;
}

void ZmqContext::transmit(const Address& to, uint16_t type, uint64_t call, uint32_t flags,
                          std::string body, base::Blobs blobs) {
  Header header;
  header.protocol = options_.protocol;
  header.type = type;
  header.from_actor = options_.actor_id;
  header.to_actor = to.actor;
  header.from_node = node_.value;
  header.to_node = to.node.value;
  header.call = call;
  header.flags = flags;
  if (to.node == node_) {
    send_to_self(header, body, blobs);
  } else {
    send_envelope(to, header, body, blobs);
  }
}

void ZmqContext::send_envelope(const Address& to, const Header& header, const std::string& body,
                               const base::Blobs& blobs) {
  switch (transport_->send(to.node, header, body, blobs)) {
    case ZmqTransport::Sent::kQueued:
      ++counters_.sent;
      counters_.sent_bytes += Header::kBytes + body.size();
      for (const base::Blob& blob : blobs) counters_.sent_bytes += blob.size();
      if (const auto it = full_.find(to.node); it != full_.end()) {
        log(base::Level::kInfo, "transport.flows_again",
            {{"to", to.node.value}, {"dropped", it->second}});
        full_.erase(it);
      }
      return;
    case ZmqTransport::Sent::kFull:
      ++counters_.dropped;
      if (full_[to.node]++ == 0) {
        log(base::Level::kWarn, "transport.full", {{"to", to.node.value}});
      }
      return;
    case ZmqTransport::Sent::kTooLarge:
      ++counters_.dropped;
      log(base::Level::kWarn, "transport.too_large",
          {{"to", to.node.value}, {"type", header.type}, {"most", options_.max_message_bytes}});
      return;
    case ZmqTransport::Sent::kNoLink:
      ++counters_.dropped;
      return;
  }
}

void ZmqContext::send_to_self(const Header& header, const std::string& body,
                              const base::Blobs& blobs) {
  if (to_self_ >= kMostToSelf) {
    ++counters_.dropped;
    return;
  }
  ++to_self_;
  ++counters_.sent;
  soon_.push_back([this, envelope = Envelope{header, body, blobs}]() mutable {
    --to_self_;
    deliver(std::move(envelope));
  });
}

// --- messages in

void ZmqContext::deliver(Envelope&& envelope) {
  const Header& header = envelope.header;
  if (header.to_node != node_.value || header.to_actor != options_.actor_id) {
    return refuse(
        fmt::format("it is addressed to actor {} of node {}", header.to_actor, header.to_node));
  }
  if (header.from_node == 0) return refuse("it has no sender");
  ++counters_.received;
  counters_.received_bytes += Header::kBytes + envelope.body.size();
  for (const base::Blob& blob : envelope.blobs) counters_.received_bytes += blob.size();
  if ((header.flags & Header::kReply) != 0 && header.call != 0) {
    const uint64_t call = header.call;
    const NodeId from{header.from_node};
    calls_.answer(call, from, std::move(envelope));  // an answer nobody waits for is a late one
    return;
  }
  actor_->receive(*this, std::move(envelope));
}

// Anyone can make us refuse, so the log grows only with the logarithm of the count.
void ZmqContext::refuse(const std::string& why) {
  ++counters_.refused;
  if (is_power_of_two(counters_.refused)) {
    log(base::Level::kWarn, "transport.refused", {{"why", why}, {"count", counters_.refused}});
  }
}

// --- the reactor

void ZmqContext::start(Actor& actor) {
  CHECK(actor_ == nullptr, "a host runs one actor, once");
  actor_ = &actor;
  actor.start(*this);
  reap();
}

void ZmqContext::wait() {
  Duration most = soon_.empty() && !stopped_ ? kLongestWait : Duration::zero();
  if (const auto due = timers_.next()) most = std::min(most, *due - now());
  transport_->wait(inbox_.fd(), most);
}

void ZmqContext::turn() {
  for (auto& run : inbox_.take()) run();
  run_soon();
  run_changes();
  run_messages();
  if (!stopped_) timers_.run_due(now(), kTimersPerTurn);
  reap();
}

void ZmqContext::run_soon() {
  for (auto& run : std::exchange(soon_, {})) {
    if (stopped_) return;
    run();
  }
}

void ZmqContext::run_changes() {
  while (!stopped_) {
    const auto change = transport_->next_change();
    if (!change) return;
    const NodeId node = change->node;
    log(base::Level::kDebug, change->up ? "transport.up" : "transport.lost",
        {{"node", node.value}});
    if (change->up) {
      lost_.erase(node);
      continue;
    }
    lost_.try_emplace(node, timers_).first->second.set(now() + kPeerDownAfter, [this, node] {
      lost_.erase(node);
      actor_->peer_down(*this, node);
    });
  }
}

void ZmqContext::run_messages() {
  for (size_t i = 0; i < kMessagesPerTurn && !stopped_; ++i) {
    auto message = transport_->receive();
    if (!message) return;
    if (*message) {
      deliver(std::move(**message));
    } else {
      refuse(message->error().what);
    }
  }
}

void ZmqContext::end() {
  pool_.stop();
  roots_.clear();
  soon_.clear();
  inbox_.close();
  transport_->flush_on_close();
}

}  // namespace actor
