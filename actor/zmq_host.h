// ZmqHost: one process of one actor on ZeroMQ. One reactor thread runs the actor; a pool of compute
// threads runs what it offloads. A ROUTER receives, one DEALER per linked peer sends; frames are
// header, body, blobs (zero-copy).
//
// Bounds and what happens at them: 1000 messages queued per peer (further sends are dropped and
// counted, their callers retry), max_message_bytes per message (the peer's connection is dropped),
// 2 s for a handshake, 1024 links. Timers are up to a millisecond late, never early.
//
// The host outlives the actor and everything else that holds one of its coroutines.
#pragma once
#include <functional>
#include <memory>
#include <string>

#include "actor/actor.h"

namespace actor {

struct ZmqOptions {
  std::string bind = "tcp://127.0.0.1:*";  // "*" lets the system choose the port
  std::string advertise;  // default: the bound endpoint; a port "*" becomes the bound one
  std::string ipc_path;   // "" or a path for a second, ipc endpoint
  NodeId node;            // 0: drawn at random; the coordinator's is fixed
  uint16_t actor_id = 0;
  uint16_t protocol = 1;
  uint32_t compute_threads = 1;
  uint64_t max_message_bytes = 64u << 20;
  Duration heartbeat = std::chrono::milliseconds(200);
  base::Log log = base::Log::discard();
};

// Counters for /metrics and tests; read on the reactor thread.
struct TransportCounters {
  uint64_t sent = 0, received = 0, sent_bytes = 0, received_bytes = 0;
  uint64_t dropped = 0;  // no route or a full queue
  uint64_t refused = 0;  // bad header, wrong addressee, too large
  uint64_t resent = 0;   // retries of calls
};

class ZmqHost {
 public:
  // Binds; kUnavailable when the address is taken.
  static base::Result<std::unique_ptr<ZmqHost>> create(ZmqOptions options);
  virtual ~ZmqHost() = default;

  virtual Context& context() = 0;
  // Runs the actor on the calling thread until Context::stop, SIGTERM or SIGINT (only when
  // handle_signals); returns the exit code. On a signal on_terminate(actor context) is called, if
  // given; without it the host stops with code 0. A second signal stops it at once with code 1.
  virtual int run(Actor& actor, bool handle_signals,
                  std::function<void(Context&)> on_terminate = {}) = 0;
  virtual const TransportCounters& counters() const = 0;
};

}  // namespace actor
