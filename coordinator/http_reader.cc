#include "coordinator/http_reader.h"

#include <fmt/core.h>

#include <boost/asio/redirect_error.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/core/string.hpp>
#include <boost/beast/http/error.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/read.hpp>
#include <boost/beast/http/string_body.hpp>

namespace coordinator {

namespace http = boost::beast::http;
using asio::awaitable;
using asio::redirect_error;
using asio::use_awaitable;
using asio::ip::tcp;
using boost::system::error_code;
using Parser = http::request_parser<http::string_body>;

namespace {

constexpr auto kLinger = std::chrono::seconds(2);
constexpr size_t kMostDroppedBytes = 8u << 20;

std::string_view view(boost::beast::string_view text) { return {text.data(), text.size()}; }

}  // namespace

struct RequestReader::State {
  State(tcp::socket& s, Deadline& d, BodyBudget& b, const ReaderLimits& l)
      : socket(s), deadline(d), budget(b), limits(l) {}

  awaitable<void> read_header(error_code& ec);
  awaitable<void> read_body(error_code& ec);
  void hold(uint64_t bytes) {
    budget.held += bytes - held;
    held = bytes;
  }
  std::optional<ApiError> explain(error_code ec) const;

  tcp::socket& socket;
  Deadline& deadline;
  BodyBudget& budget;
  const ReaderLimits limits;
  boost::beast::flat_buffer buffer;
  std::optional<Parser> parser;  // of the request being read
  uint64_t held = 0;             // of the budget
  uint64_t count = 0;            // requests begun
};

RequestReader::RequestReader(tcp::socket& socket, Deadline& deadline, BodyBudget& budget,
                             const ReaderLimits& limits)
    : state_(std::make_unique<State>(socket, deadline, budget, limits)) {}

RequestReader::~RequestReader() { release(); }

void RequestReader::release() { state_->hold(0); }

bool RequestReader::idle() const { return !state_->parser && state_->count > 0; }

// The first wait tells an idle connection, which may be closed without a word, from a request that
// has begun.
awaitable<void> RequestReader::State::read_header(error_code& ec) {
  parser.emplace();
  parser->header_limit(limits.header_bytes);
  parser->body_limit(limits.body_bytes);
  deadline.set(limits.header);
  co_await http::async_read_header(socket, buffer, *parser, redirect_error(use_awaitable, ec));
}

awaitable<void> RequestReader::State::read_body(error_code& ec) {
  const auto& head = parser->get();
  const uint64_t announced = parser->content_length().value_or(0);
  deadline.set(limits.body + std::chrono::seconds(4 * (announced >> 20)));
  if (head.version() >= 11 && boost::beast::iequals(head["expect"], "100-continue")) {
    const std::string text = "HTTP/1.1 100 Continue\r\n\r\n";
    co_await asio::async_write(socket, asio::buffer(text), redirect_error(use_awaitable, ec));
  }
  while (!ec && !parser->is_done()) {
    co_await http::async_read_some(socket, buffer, *parser, redirect_error(use_awaitable, ec));
    hold(head.body().size());
    if (!ec && budget.held > budget.most) ec = asio::error::no_buffer_space;
  }
}

// What a client is told about a request that could not be read; nothing when it has left.
std::optional<ApiError> RequestReader::State::explain(error_code ec) const {
  const auto say = [](int status, std::string message, std::string code) {
    ApiError error = invalid("", std::move(message), std::move(code));
    error.status = status;
    return error;
  };
  if (deadline.expired) return say(408, "The request did not arrive in time", "request_timeout");
  if (ec == asio::error::no_buffer_space) {
    return unavailable("The server holds too many request bodies");
  }
  if (ec == http::error::header_limit || ec == http::error::buffer_overflow) {
    return say(431, fmt::format("Headers may have at most {} bytes", limits.header_bytes),
               "headers_too_large");
  }
  if (ec == http::error::body_limit) {
    return say(413, fmt::format("The body may have at most {} bytes", limits.body_bytes),
               "body_too_large");
  }
  if (ec == http::error::end_of_stream || ec == http::error::partial_message) return std::nullopt;
  const auto& parse_errors = http::make_error_code(http::error::bad_method).category();
  if (ec.category() == parse_errors) return say(400, "This is not valid HTTP", "invalid_http");
  return std::nullopt;
}

awaitable<bool> RequestReader::read(HttpRequest& request) {
  State& s = *state_;
  s.parser.reset();
  error_code ec;
  if (s.buffer.size() == 0) {
    s.deadline.set(s.limits.idle);
    co_await s.socket.async_wait(tcp::socket::wait_read, redirect_error(use_awaitable, ec));
    s.deadline.clear();
    if (ec) co_return false;
  }
  ++s.count;
  co_await s.read_header(ec);
  auto& head = s.parser->get();
  request.routed = find_route(view(head.method_string()), view(head.target()));
  request.request_id = usable_request_id(view(head["x-request-id"]));
  request.wanted_headers = std::string(view(head["access-control-request-headers"]));
  request.tenant = tenant_of(view(head[http::field::authorization]), view(head["x-api-key"]));
  request.http11 = head.version() >= 11;
  request.head = head.method() == http::verb::head;
  request.keep_alive = !ec && head.keep_alive();
  request.refusal.reset();
  if (!ec) co_await s.read_body(ec);
  s.deadline.clear();
  if (ec) {
    request.keep_alive = false;
    request.refusal = s.explain(ec);
    co_return request.refusal.has_value();
  }
  request.body = std::move(head.body());
  co_return true;
}

bool RequestReader::take_early(bool& more) {
  State& s = *state_;
  error_code ec;
  const size_t got = s.socket.read_some(s.buffer.prepare(4096), ec);
  s.buffer.commit(got);
  more = s.buffer.size() < s.limits.header_bytes;
  return !ec || ec == asio::error::would_block;
}

awaitable<void> RequestReader::drop_rest() {
  State& s = *state_;
  error_code ec;
  s.deadline.set(kLinger);
  size_t dropped = 0;
  while (!ec && dropped < kMostDroppedBytes) {
    s.buffer.clear();
    const auto room = s.buffer.prepare(16u << 10);
    dropped += co_await s.socket.async_read_some(room, redirect_error(use_awaitable, ec));
  }
  s.deadline.clear();
}

}  // namespace coordinator
