// RequestReader: one HTTP request after another from one socket, each whole or refused. The file
// behind it is the one that includes Beast.
#pragma once
// <utility> first: Boost 1.74's awaitable.hpp uses std::exchange without including it.
// clang-format off
#include <utility>
#include <boost/asio/awaitable.hpp>
// clang-format on
#include <boost/asio/ip/tcp.hpp>
#include <chrono>
#include <memory>
#include <optional>
#include <string>

#include "base/time.h"
#include "coordinator/http_routes.h"

namespace coordinator {

namespace asio = boost::asio;
using SteadyTime = std::chrono::steady_clock::time_point;

// How long the socket operation in progress may take. Whoever sweeps cancels it when it is over.
struct Deadline {
  static constexpr SteadyTime kNever = SteadyTime::max();
  SteadyTime at = kNever;
  bool expired = false;
  void set(base::Duration d) {
    at = std::chrono::steady_clock::now() + d;
    expired = false;
  }
  void clear() { at = kNever; }
};

// Bytes of request bodies in memory, of all connections together.
struct BodyBudget {
  uint64_t held = 0;
  uint64_t most = 0;
};

struct ReaderLimits {
  uint64_t body_bytes;
  uint32_t header_bytes;
  base::Duration idle, header, body;  // body: and 4 s per MiB announced
};

struct HttpRequest {
  Routed routed;
  std::string request_id;      // the client's, or empty
  std::string wanted_headers;  // of a preflight
  std::string tenant;          // tenant_of() its headers
  std::string body;
  bool http11 = true, head = false, keep_alive = false;
  std::optional<ApiError> refusal;  // it could not be read; the connection ends after the answer
};

class RequestReader {
 public:
  // `socket`, `deadline` and `budget` outlive this.
  RequestReader(asio::ip::tcp::socket& socket, Deadline& deadline, BodyBudget& budget,
                const ReaderLimits& limits);
  ~RequestReader();

  // False: the client has left, or was idle for too long. A body counts against the budget until
  // release().
  asio::awaitable<bool> read(HttpRequest& request);
  void release();
  bool idle() const;  // between requests, nothing of the next one here
  // Bytes that came early, while an answer is being made; false when there were none because the
  // client closed its end. `more` tells whether further bytes would be kept.
  bool take_early(bool& more);
  // Reads and drops what the client still sends, for a while.
  asio::awaitable<void> drop_rest();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace coordinator
