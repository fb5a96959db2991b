#include "coordinator/front_end.h"

#include <fmt/format.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>

#include "coordinator/http_connection.h"  // before other Boost headers

namespace coordinator {

using asio::awaitable;
using asio::redirect_error;
using asio::use_awaitable;
using asio::ip::tcp;
using boost::system::error_code;

namespace {

constexpr auto kSweep = std::chrono::milliseconds(50);
constexpr uint32_t kRefusalConnections = 256;  // beyond max_connections, only to say 503

}  // namespace

FrontEnd::Impl::Impl(FrontEndOptions o, const model::Tokenizer& t, const model::ChatFormat& f,
                     Gateway& g, actor::Injector& i, base::Log l)
    : options(std::move(o)),
      tokenizer(t),
      format(f),
      gateway(g),
      injector(i),
      log(std::move(l)),
      bodies{0, options.max_body_bytes_held},
      grammars(t, options.model),
      generations({g, i, [this](std::function<void()> run) { asio::post(io, std::move(run)); },
                   options.model, t, options.most_pending},
                  metrics) {}

std::string FrontEnd::Impl::new_id() {
  ++ids;
  return fmt::format("{:016x}{:016x}", base::random_at(options.seed, 0, ids),
                     base::random_at(options.seed, 1, ids));
}

awaitable<void> FrontEnd::Impl::accept(Impl& impl) {
  asio::steady_timer pause(impl.io);
  for (;;) {
    error_code ec;
    tcp::socket socket(impl.io);
    co_await impl.acceptor.async_accept(socket, redirect_error(use_awaitable, ec));
    if (ec == asio::error::operation_aborted) co_return;
    if (ec) {  // out of descriptors: connections that end give some back
      pause.expires_after(kSweep);
      co_await pause.async_wait(redirect_error(use_awaitable, ec));
    } else if (impl.connections.size() < impl.options.max_connections + kRefusalConnections) {
      asio::co_spawn(impl.io, serve(impl, std::move(socket)), asio::detached);
    } else {
      ++impl.metrics.refused_connections;
    }
  }
}

awaitable<void> FrontEnd::Impl::sweep(Impl& impl) {
  asio::steady_timer timer(impl.io);
  for (;;) {
    error_code ec;
    timer.expires_after(kSweep);
    co_await timer.async_wait(redirect_error(use_awaitable, ec));
    sweep_connections(impl, std::chrono::steady_clock::now());
  }
}

base::Status FrontEnd::Impl::listen() {
  const size_t colon = options.listen.rfind(':');
  if (colon == std::string::npos) {
    return base::fail(base::Code::kConfig, "'{}' is not an address of the form host:port",
                      options.listen);
  }
  std::string host = options.listen.substr(0, colon);
  if (host.starts_with('[') && host.ends_with(']')) host = host.substr(1, host.size() - 2);
  error_code ec;
  tcp::resolver resolver(io);
  const auto found =
      resolver.resolve(host, options.listen.substr(colon + 1), tcp::resolver::passive, ec);
  const bool known = !ec && !found.empty();
  const tcp::endpoint at = known ? found.begin()->endpoint() : tcp::endpoint();
  if (!ec) acceptor.open(at.protocol(), ec);
  if (!ec) acceptor.set_option(tcp::acceptor::reuse_address(true), ec);
  if (!ec) acceptor.bind(at, ec);
  if (!ec) acceptor.listen(1024, ec);
  if (ec) {
    return base::fail(base::Code::kUnavailable, "cannot listen on http address {}: {}",
                      options.listen, ec.message());
  }
  return {};
}

base::Result<std::unique_ptr<FrontEnd>> FrontEnd::start(FrontEndOptions options,
                                                        const model::Tokenizer& tokenizer,
                                                        const model::ChatFormat& format,
                                                        Gateway& gateway, actor::Injector& injector,
                                                        base::Log log) {
  auto impl = std::make_unique<Impl>(std::move(options), tokenizer, format, gateway, injector,
                                     std::move(log));
  if (auto status = impl->listen(); !status) return base::fail(status.error());
  asio::co_spawn(impl->io, Impl::accept(*impl), asio::detached);
  asio::co_spawn(impl->io, Impl::sweep(*impl), asio::detached);
  impl->thread = std::thread([&io = impl->io] { io.run(); });
  return std::unique_ptr<FrontEnd>(new FrontEnd(std::move(impl)));
}

FrontEnd::FrontEnd(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

FrontEnd::~FrontEnd() { stop(); }

uint16_t FrontEnd::port() const { return impl_->acceptor.local_endpoint().port(); }

uint32_t FrontEnd::answering() const { return impl_->answering; }

void FrontEnd::drain() {
  asio::post(impl_->io, [impl = impl_.get()] { impl->draining = true; });
}

void FrontEnd::stop() {
  if (!impl_->thread.joinable()) return;
  impl_->io.stop();
  impl_->thread.join();
  impl_->worker.join();
  impl_->generations.stop();
}

}  // namespace coordinator
