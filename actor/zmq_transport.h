// ZmqTransport: the sockets of one process. A ROUTER receives from everybody, one DEALER per linked
// peer sends, a monitor per DEALER tells when its connection comes and goes. Frames of a message:
// header, body, blobs; blobs of 8 KiB and more cross without a copy on both sides.
//
// Thread safety: one thread; a sent blob is let go on it by one of the next calls of wait(). No
// exception of the library leaves this class.
//
// Socket options and their reasons:
//   SNDHWM, RCVHWM 1000        the bound of a peer's queue; a full one refuses the message
//   IMMEDIATE 0                messages wait, within that bound, for a connection that is not up
//                              yet, so the first message after a link is not lost
//   MAXMSGSIZE                 a larger frame drops the connection it came from
//   HANDSHAKE_IVL 2 s          a connection that says nothing is closed
//   HEARTBEAT_IVL, _TIMEOUT    DEALER: a ping every interval; 5 intervals without the pong drop the
//                              connection
//   TCP_KEEPALIVE              ROUTER: connections of hosts that lost power. Not HEARTBEAT_TTL: its
//                              timer stops at whole frames only, so that a frame that is a second
//                              on its way would drop the connection, again and again
//   RECONNECT_IVL 20..200 ms, CONNECT_TIMEOUT 1 s, LINGER 0
#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "actor/message.h"
#include "base/time.h"

namespace actor {

class ZmqTransport {
 public:
  static constexpr size_t kMaxBlobs = 64;
  static constexpr size_t kMaxLinks = 1024;

  struct Options {
    std::string bind;       // "tcp://ADDRESS:PORT", port "*": the system chooses
    std::string advertise;  // "": the bound endpoint; a port "*" in it: the bound port
    std::string ipc_path;   // "": no second endpoint
    uint64_t max_message_bytes;
    base::Duration heartbeat;
  };
  enum class Sent { kQueued, kNoLink, kFull, kTooLarge };
  // A link's connection came up or was lost.
  struct Change {
    NodeId node;
    bool up;
  };

  static base::Result<std::unique_ptr<ZmqTransport>> open(const Options& options);
  ~ZmqTransport();

  // For others' link(): tcp, and ipc with the host id when there is one.
  const std::string& endpoint() const;

  // Replaces a link to another endpoint; the same one again changes nothing.
  base::Status link(NodeId node, const std::string& endpoint);
  void unlink(NodeId node);

  Sent send(NodeId to, const Header& header, std::string_view body, const base::Blobs& blobs);

  // Waits until a message or a change is there, wake_fd is readable or the time is over.
  void wait(int wake_fd, base::Duration most);
  std::optional<Change> next_change();
  // The next message, an error for one that is refused, nothing when there is none.
  std::optional<base::Result<Envelope>> receive();

  // Before the end in good order: what is queued for live connections gets 100 ms to leave.
  void flush_on_close();

 private:
  struct State;
  explicit ZmqTransport(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace actor
