#include "actor/zmq_host.h"

#include <signal.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>

#include "actor/zmq_context.h"

namespace actor {
namespace {

// What a signal handler may touch. Signals belong to the process, so this is not a member.
std::atomic<int> signal_wake_fd{-1};
std::atomic<int> signals_seen{0};
static_assert(std::atomic<int>::is_always_lock_free);

extern "C" void serval_on_signal(int) {
  const int saved = errno;
  signals_seen.fetch_add(1);
  const uint64_t one = 1;
  // Fails only on a full counter, and then the reactor is awake anyway.
  [[maybe_unused]] const ssize_t written = ::write(signal_wake_fd.load(), &one, sizeof one);
  errno = saved;
}

// SIGTERM and SIGINT wake the reactor while this lives. One at a time in a process.
class SignalWatch {
 public:
  explicit SignalWatch(int wake_fd) {
    CHECK(signal_wake_fd.exchange(wake_fd) == -1, "one host at a time takes signals");
    signals_seen.store(0);
    struct sigaction action {};
    action.sa_handler = serval_on_signal;
    action.sa_flags = SA_RESTART;
    for (size_t i = 0; i < kSignals.size(); ++i) ::sigaction(kSignals[i], &action, &before_[i]);
  }
  ~SignalWatch() {
    for (size_t i = 0; i < kSignals.size(); ++i) ::sigaction(kSignals[i], &before_[i], nullptr);
    signal_wake_fd.store(-1);
  }
  SignalWatch(const SignalWatch&) = delete;
  SignalWatch& operator=(const SignalWatch&) = delete;

  int seen() const { return signals_seen.load(); }

 private:
  static constexpr std::array<int, 2> kSignals{SIGTERM, SIGINT};
  std::array<struct sigaction, 2> before_{};
};

class ZmqHostOfOne final : public ZmqHost {
 public:
  ZmqHostOfOne(ZmqOptions options, std::unique_ptr<ZmqTransport> transport)
      : context_(std::move(options), std::move(transport)) {}

  Context& context() override { return context_; }
  const TransportCounters& counters() const override { return context_.counters(); }

  int run(Actor& actor, bool handle_signals, std::function<void(Context&)> on_terminate) override {
    std::optional<SignalWatch> signals;
    if (handle_signals) signals.emplace(context_.wake_fd());
    int handled = 0;
    context_.start(actor);
    while (!context_.stopped()) {
      context_.wait();
      if (signals && signals->seen() > handled) {
        terminate(++handled, on_terminate);
      }
      context_.turn();
    }
    signals.reset();
    context_.end();
    return context_.exit_code();
  }

 private:
  void terminate(int nth, const std::function<void(Context&)>& on_terminate) {
    context_.log(base::Level::kInfo, "host.terminate", {{"signals", nth}});
    if (nth == 1 && on_terminate) {
      on_terminate(context_);
    } else {
      context_.stop(nth == 1 ? 0 : 1);  // asked again before the good order came to its end
    }
  }

  ZmqContext context_;
};

}  // namespace

base::Result<std::unique_ptr<ZmqHost>> ZmqHost::create(ZmqOptions options) {
  ZmqTransport::Options wires{options.bind, options.advertise, options.ipc_path,
                              options.max_message_bytes, options.heartbeat};
  std::unique_ptr<ZmqTransport> transport = TRY(ZmqTransport::open(wires));
  return std::unique_ptr<ZmqHost>(
      std::make_unique<ZmqHostOfOne>(std::move(options), std::move(transport)));
}

}  // namespace actor
