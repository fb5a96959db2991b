#include "coordinator/http_connection.h"

#include <fmt/format.h>

#include <array>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>

#include "coordinator/api_prompt.h"
#include "coordinator/http_reply.h"

namespace coordinator {

using asio::awaitable;
using asio::redirect_error;
using asio::use_awaitable;
using asio::ip::tcp;
using boost::system::error_code;
using Clock = std::chrono::steady_clock;
using Impl = FrontEnd::Impl;

namespace {

constexpr uint32_t kMostJobs = 64;  // long bodies waiting for the worker

int64_t unix_seconds() {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  return std::chrono::duration_cast<std::chrono::seconds>(now).count();
}

ReaderLimits reader_limits(const FrontEndOptions& o) {
  return {o.max_body_bytes, o.max_header_bytes, o.idle_timeout, o.header_timeout, o.body_timeout};
}

// Counts a request as being answered while it stands.
class Busy {
 public:
  explicit Busy(std::atomic<uint32_t>& count) : count_(count) { ++count_; }
  ~Busy() { --count_; }
  Busy(const Busy&) = delete;
  Busy& operator=(const Busy&) = delete;

 private:
  std::atomic<uint32_t>& count_;
};

}  // namespace

// Waits on its socket or, for what comes from other threads, on a timer used as a bell.
class Connection {
 public:
  Connection(Impl& impl, tcp::socket socket)
      : impl_(impl),
        id_(impl.next_connection++),
        socket_(std::move(socket)),
        bell_(impl.io),
        reader_(socket_, deadline_, impl.bodies, reader_limits(impl.options)) {
    impl_.connections.emplace(id_, this);
    ++impl_.metrics.connections;
  }
  ~Connection() {
    close_generation();
    impl_.connections.erase(id_);
    --impl_.metrics.connections;
  }
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  awaitable<void> run();
  // From the HTTP thread's other handlers.
  void sweep(SteadyTime now);
  void readable();
  void status_came(uint64_t serial, ClusterStatus status);

 private:
  awaitable<void> handle();
  awaitable<void> generate(Dialect dialect);
  AnswerHead answer_head(Dialect dialect) const;
  awaitable<void> stream();
  std::string framed(std::string events, bool first, bool last);
  awaitable<bool> write(std::string text);
  awaitable<void> respond();
  awaitable<void> small_job();
  awaitable<void> ask_cluster();
  // On the worker: what takes too long for the HTTP thread. False: too much waits there.
  awaitable<bool> run_job(std::function<void()> job, bool on_worker);
  bool long_body() const { return request_.body.size() > impl_.options.inline_bytes; }
  template <class T>
  static std::optional<ApiError> failure(bool ran, const std::optional<Parsed<T>>& result);
  awaitable<void> send(Reply reply);
  awaitable<void> linger();
  awaitable<void> wait();
  void ring() { bell_.cancel(); }
  void watch();
  void generation_changed();
  void client_gone();
  void close_socket();
  void close_generation();
  HeaderOptions header() const { return {request_.request_id, keep_, request_.http11}; }
  void log_generation(std::string_view result) const;

  Impl& impl_;
  const uint64_t id_;
  tcp::socket socket_;
  asio::steady_timer bell_;
  Deadline deadline_;
  RequestReader reader_;
  // Of the request being answered.
  HttpRequest request_;
  std::optional<ClusterStatus> status_;
  Generation* generation_ = nullptr;
  SteadyTime arrived_{};
  bool job_done_ = false;
  // Of the connection.
  uint64_t serial_ = 0;                    // counts requests
  SteadyTime wake_at_ = Deadline::kNever;  // rings the bell
  bool keep_ = true;                       // it serves another request
  bool gone_ = false;                      // closed by the client, or by us because of it
  bool watching_ = false;
};

// --- waiting and leaving -----------------------------------------------------------------------

// Until ring(). Whoever waits looks first: a bell nobody listens to is lost.
awaitable<void> Connection::wait() {
  error_code ec;
  bell_.expires_at(Deadline::kNever);
  co_await bell_.async_wait(redirect_error(use_awaitable, ec));
}

void Connection::sweep(SteadyTime now) {
  error_code ec;
  if (now >= deadline_.at) {
    deadline_.clear();
    deadline_.expired = true;
    socket_.cancel(ec);
  }
  if (now >= wake_at_) ring();
  if (impl_.draining && reader_.idle()) socket_.cancel(ec);
}

// Learns of a client that leaves while its answer is being made: its end becomes readable.
void Connection::watch() {
  if (std::exchange(watching_, true)) return;
  socket_.async_wait(tcp::socket::wait_read, [&impl = impl_, id = id_](error_code ec) {
    const auto it = impl.connections.find(id);
    if (!ec && it != impl.connections.end()) it->second->readable();
  });
}

void Connection::readable() {
  watching_ = false;
  if (!generation_) return;
  bool more = false;
  if (!reader_.take_early(more)) return client_gone();
  if (more) watch();
}

void Connection::client_gone() {
  ++impl_.metrics.disconnects;
  log_generation("client_gone");
  close_generation();
  close_socket();
}

void Connection::close_socket() {
  gone_ = true;
  error_code ec;
  socket_.close(ec);
  ring();
}

void Connection::close_generation() {
  if (generation_) impl_.generations.close(*std::exchange(generation_, nullptr));
}

void Connection::generation_changed() {
  if (generation_ && generation_->overflow && !gone_) {
    ++impl_.metrics.slow_readers;
    log_generation("slow_reader");
    close_socket();
  }
  ring();
}

void Connection::log_generation(std::string_view result) const {
  if (!generation_) return;
  const base::Duration took = Clock::now() - arrived_;
  const AnswerUsage usage = generation_->answer.usage();
  impl_.log.write(base::Time(Clock::now() - impl_.begun), base::Level::kInfo, "http.generation",
                  {{"id", request_.request_id},
                   {"route", request_.routed.label},
                   {"result", result},
                   {"seconds", fmt::format("{:.3f}", base::seconds(took))},
                   {"prompt_tokens", usage.prompt_tokens},
                   {"cached_tokens", usage.cached_tokens},
                   {"tokens", usage.completion_tokens},
                   {"attempts", generation_->attempts}});
}

// --- answering ---------------------------------------------------------------------------------

awaitable<void> Connection::run() {
  error_code ec;
  socket_.non_blocking(true, ec);
  socket_.set_option(tcp::no_delay(true), ec);
  socket_.set_option(asio::socket_base::send_buffer_size(impl_.options.send_buffer_bytes), ec);
  if (impl_.connections.size() > impl_.options.max_connections) {
    ++impl_.metrics.refused_connections;
    request_.routed.label = "unknown";
    request_.refusal = unavailable("Too many connections");
    keep_ = false;
    co_await handle();
    co_await linger();
    co_return;
  }
  while (keep_ && !gone_) {
    const bool whole = co_await reader_.read(request_);
    if (!whole) co_return;
    ++serial_;
    arrived_ = Clock::now();
    keep_ = request_.keep_alive && !impl_.draining;
    co_await handle();
    reader_.release();
    if (!keep_ && !gone_) co_await linger();
  }
}

awaitable<void> Connection::handle() {
  const Busy busy(impl_.answering);
  if (request_.request_id.empty()) request_.request_id = impl_.new_id();
  Reply reply;
  if (request_.refusal) {
    if (request_.refusal->status == 408) ++impl_.metrics.timeouts;
    reply = refusal(*request_.refusal);
    co_await send(std::move(reply));
    co_return;
  }
  switch (request_.routed.route) {
    case Route::kChat:
      co_await generate(Dialect::kChat);
      co_return;
    case Route::kCompletions:
      co_await generate(Dialect::kCompletion);
      co_return;
    case Route::kTokenize:
    case Route::kDetokenize:
      co_await small_job();
      co_return;
    case Route::kHealth:
    case Route::kLive:
    case Route::kReady:
    case Route::kMetrics:
    case Route::kCluster:
      co_await ask_cluster();
      reply = cluster_reply(request_.routed.route, status_ ? &*status_ : nullptr, impl_.metrics,
                            impl_.options.version);
      break;
    case Route::kPreflight:
      reply = preflight_reply(request_.wanted_headers);
      break;
    default:
      reply = fixed_reply(request_.routed, impl_.options.model, impl_.options.version);
  }
  co_await send(std::move(reply));
}

// Runs `job` here when the body is short, else on the worker thread. False: too many wait already.
awaitable<bool> Connection::run_job(std::function<void()> job, bool on_worker) {
  job_done_ = false;
  const auto guarded = [&job] {
    try {
      job();
    } catch (const std::exception&) {
      // Out of memory, or a library's surprise: there is no result, which failure() tells.
    }
  };
  if (!on_worker) {
    guarded();
    co_return true;
  }
  if (impl_.jobs >= kMostJobs) co_return false;
  ++impl_.jobs;
  // The worker is joined before connections are destroyed, so `this` stays.
  asio::post(impl_.worker, [this, &guarded] {
    guarded();
    asio::post(impl_.io, [this] {
      job_done_ = true;
      ring();
    });
  });
  while (!job_done_) co_await wait();
  --impl_.jobs;
  co_return true;
}

// Why a job has no result; none when it has one.
template <class T>
std::optional<ApiError> Connection::failure(bool ran, const std::optional<Parsed<T>>& result) {
  if (!ran) return unavailable("Too many long requests");
  if (!result) return from_gateway({base::Code::kInternal, "The request could not be processed"});
  if (!*result) return result->error();
  return std::nullopt;
}

awaitable<void> Connection::small_job() {
  std::optional<Parsed<std::string>> result;
  std::function<void()> job = [&] {
    const ApiModel& model = impl_.options.model;
    result = request_.routed.route == Route::kTokenize
                 ? tokenize(request_.body, model, impl_.tokenizer, impl_.format)
                 : detokenize(request_.body, model, impl_.tokenizer);
  };
  const bool ran = co_await run_job(std::move(job), long_body());
  Reply reply;
  if (const auto error = failure(ran, result)) {
    reply = refusal(*error);
  } else {
    reply.body = std::move(**result);
  }
  co_await send(std::move(reply));
}

awaitable<void> Connection::ask_cluster() {
  status_.reset();
  impl_.injector.post([&impl = impl_, id = id_, serial = serial_] {
    ClusterStatus status = impl.gateway.status();
    asio::post(impl.io, [&impl, id, serial, status = std::move(status)]() mutable {
      const auto it = impl.connections.find(id);
      if (it != impl.connections.end()) it->second->status_came(serial, std::move(status));
    });
  });
  wake_at_ = Clock::now() + impl_.options.status_timeout;
  while (!status_ && Clock::now() < wake_at_) co_await wait();
  wake_at_ = Deadline::kNever;
}

void Connection::status_came(uint64_t serial, ClusterStatus status) {
  if (serial != serial_) return;
  status_ = std::move(status);
  ring();
}

AnswerHead Connection::answer_head(Dialect dialect) const {
  AnswerHead head;
  head.dialect = dialect;
  head.id = (dialect == Dialect::kChat ? "chatcmpl-" : "cmpl-") + impl_.new_id();
  head.created = unix_seconds();
  head.model = impl_.options.model.name;
  head.fingerprint = impl_.options.model.fingerprint;
  return head;
}

awaitable<void> Connection::generate(Dialect dialect) {
  std::optional<Parsed<Prepared>> prepared;
  const bool on_worker = long_body() || may_name_grammar(request_.body);
  GrammarCheck* grammars = on_worker ? &impl_.grammars : nullptr;
  std::function<void()> job = [&] {
    prepared = prepare(dialect, request_.body, impl_.options.model, impl_.tokenizer, impl_.format,
                       grammars);
    if (!*prepared) return;
    std::string& salt = (*prepared)->request.cache_salt;
    salt = salt_of(salt, request_.tenant);
    (*prepared)->request.tenant = request_.tenant;
  };
  const bool ran = co_await run_job(std::move(job), on_worker);
  std::string().swap(request_.body);
  reader_.release();
  if (const auto error = failure(ran, prepared)) {
    Reply reply = refusal(*error);
    co_await send(std::move(reply));
    co_return;
  }
  generation_ = &impl_.generations.open(answer_head(dialect), std::move(**prepared),
                                        [this] { generation_changed(); });
  prepared.reset();
  watch();
  if (generation_->answer.streams()) {
    co_await stream();
  } else {
    co_await respond();
  }
  if (generation_ && !gone_) {
    log_generation(generation_->error ? generation_->error->code
                                      : generation_->answer.finish_reason());
  }
  close_generation();
}

awaitable<void> Connection::respond() {
  while (!gone_ && !generation_->over()) co_await wait();
  if (gone_) co_return;
  Reply reply;
  if (generation_->error) {
    reply = refusal(*generation_->error);
  } else {
    reply.body = generation_->answer.body();
  }
  co_await send(std::move(reply));
}

// The header waits for the first token, so that a refusal has its proper status; after
// ping_interval without one it goes out, and later errors are events.
awaitable<void> Connection::stream() {
  bool begun = false;
  wake_at_ = Clock::now() + impl_.options.ping_interval;
  while (!gone_) {
    if (generation_->error && !begun) {
      Reply reply = refusal(*generation_->error);
      co_await send(std::move(reply));
      break;
    }
    const bool failed = generation_->error.has_value();
    const bool last = failed || generation_->answer.done();
    std::string events = generation_->answer.take();
    if (failed) events += sse_error(*generation_->error);
    if (events.empty() && Clock::now() >= wake_at_) events = ": ping\n\n";
    if (events.empty()) {
      co_await wait();
      continue;
    }
    if (failed || !request_.http11) keep_ = false;
    std::string text = framed(std::move(events), !std::exchange(begun, true), last);
    const bool taken = co_await write(std::move(text));
    if (!taken || last) break;
    wake_at_ = Clock::now() + impl_.options.ping_interval;
  }
  wake_at_ = Deadline::kNever;
}

std::string Connection::framed(std::string events, bool first, bool last) {
  std::string text;
  if (first) {
    text = stream_header_text(header());
    ++impl_.metrics.requests[{request_.routed.label, 200}];
  }
  if (!request_.http11) return text + events;
  return text + fmt::format("{:x}\r\n{}\r\n{}", events.size(), events, last ? "0\r\n\r\n" : "");
}

// A piece of a stream. False: the client does not take it; the connection is closed.
awaitable<bool> Connection::write(std::string text) {
  error_code ec;
  deadline_.set(impl_.options.write_timeout);
  co_await asio::async_write(socket_, asio::buffer(text), redirect_error(use_awaitable, ec));
  deadline_.clear();
  if (!ec) co_return true;
  if (gone_) co_return false;
  if (deadline_.expired) {
    ++impl_.metrics.slow_readers;
    log_generation("slow_reader");
    close_generation();
    close_socket();
  } else {
    client_gone();
  }
  co_return false;
}

awaitable<void> Connection::send(Reply reply) {
  ++impl_.metrics.requests[{request_.routed.label, reply.status}];
  const std::string head = header_text(reply, header());
  if (request_.head) reply.body.clear();
  const std::array<asio::const_buffer, 2> parts = {asio::buffer(head), asio::buffer(reply.body)};
  error_code ec;
  deadline_.set(impl_.options.write_timeout);
  co_await asio::async_write(socket_, parts, redirect_error(use_awaitable, ec));
  deadline_.clear();
  if (ec) keep_ = false;
}

// Closing while the client still sends would reset the connection and lose our answer on its way.
awaitable<void> Connection::linger() {
  error_code ec;
  socket_.shutdown(tcp::socket::shutdown_send, ec);
  co_await reader_.drop_rest();
}

// --- for the thread ----------------------------------------------------------------------------

awaitable<void> serve(Impl& impl, tcp::socket socket) {
  Connection connection(impl, std::move(socket));
  co_await connection.run();
}

void sweep_connections(Impl& impl, SteadyTime now) {
  for (const auto& [id, connection] : impl.connections) connection->sweep(now);
}

}  // namespace coordinator
