// bench_kv_transfer: what carrying KV rows between two nodes costs beside the bare socket. Each
// line carries the same bytes over loopback TCP between two threads:
//   raw TCP             one stream, written from memory and read into memory
//   calls               messages of one blob over ZmqHost, each acknowledged, `credits` on their
//   way calls, digests      and each blob hashed by both KV transfer         rows copied out of a
//   pool, hashed, carried, hashed, copied into a pool: what
//                       a prefill stage and a decode rank do
#include <arpa/inet.h>
#include <fmt/core.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstring>
#include <functional>
#include <thread>

#include "actor/zmq_host.h"
#include "base/made_blob.h"
#include "base/rng.h"
#include "model/kv_pool.h"
#include "proto/all.h"

namespace {

using base::Task;
using std::chrono::steady_clock;

struct Setup {
  uint32_t rows = 256;        // tokens of a message: a chunk
  uint32_t row_bytes = 2560;  // two latents of 576 and an index key of 128 in bf16
  uint32_t messages = 400;
  uint32_t credits = 8;
  uint32_t rounds = 3;
  size_t bytes() const { return size_t{rows} * row_bytes; }
};

enum class Work : uint8_t { kCalls, kDigests, kPools };

// A message's rows in a pool: the blocks are used again and again.
class Rows {
 public:
  explicit Rows(const Setup& s)
      : pool_(model::KvPool::blocks_for(s.rows), model::LayerRange{0, 1}, s.row_bytes),
        blocks_(*pool_.allocate(pool_.total())) {
    base::Rng rng(1);
    for (const model::BlockId block : blocks_)
      for (size_t at = 0; at + 8 <= pool_.entry_bytes(); at += 8) {
        const uint64_t value = rng.next();
        std::memcpy(pool_.entry(block, 0) + at, &value, 8);
      }
  }
  model::KvView view() { return {&pool_, blocks_}; }

 private:
  model::KvPool pool_;
  const std::vector<model::BlockId> blocks_;
};

// Takes rows as a decode rank does.
class Taker final : public actor::Actor {
 public:
  using In = actor::Accepts<proto::KvLayer>;
  Taker(const Setup& s, Work work) : s_(s), work_(work), rows_(s) {}
  void receive(actor::Context& ctx, actor::Envelope&& e) override {
    In::dispatch(*this, ctx, std::move(e));
  }
  void on(actor::Context& ctx, const actor::Incoming<proto::KvLayer>& in) {
    const base::ByteView bytes = in.blobs.at(0).view();
    proto::KvAck ack;
    if (work_ >= Work::kDigests &&
        proto::kv_digest(in->layer, in->token_begin, bytes) != in->digest)
      ack.outcome = proto::Outcome::kCorrupt;
    if (work_ >= Work::kPools) model::copy_rows_in(rows_.view(), 0, 0, s_.rows, bytes.data());
    ctx.reply(in, ack);
  }

 private:
  const Setup s_;
  const Work work_;
  Rows rows_;
};

// Sends the rows as a stage does, and stops when the last is acknowledged.
class Giver final : public actor::Actor {
 public:
  Giver(const Setup& s, Work work, actor::Address to) : s_(s), work_(work), to_(to), rows_(s) {
    base::Bytes bytes(s.bytes());
    model::copy_rows_out(rows_.view(), 0, 0, s.rows, bytes.data());
    blob_ = base::Blob(std::move(bytes));
  }
  void start(actor::Context& ctx) override {
    begun_ = steady_clock::now();
    for (uint32_t i = 0; i < s_.credits; ++i) ctx.spawn(send(ctx));
  }
  void receive(actor::Context&, actor::Envelope&&) override {}
  double seconds() const { return std::chrono::duration<double>(ended_ - begun_).count(); }
  uint32_t failed() const { return failed_; }

 private:
  Task<void> send(actor::Context& ctx) {
    while (sent_ < s_.messages) {
      ++sent_;
      base::Blob blob = blob_;
      if (work_ >= Work::kPools) {
        const auto copy = [this](std::byte* out) {
          model::copy_rows_out(rows_.view(), 0, 0, s_.rows, out);
        };
        blob = base::made_blob(s_.bytes(), copy);
      }
      proto::KvLayer message;
      message.token_count = s_.rows;
      if (work_ >= Work::kDigests) message.digest = proto::kv_digest(0, 0, blob.view());
      base::Blobs blobs(1, std::move(blob));
      const actor::CallOptions options{"kv.layer"};
      auto call = ctx.call<proto::KvAck>(to_, std::move(message), options, std::move(blobs));
      const auto ack = co_await std::move(call);
      failed_ += !ack || ack->msg.outcome != proto::Outcome::kOk;
      if (++answered_ < s_.messages) continue;
      ended_ = steady_clock::now();
      ctx.stop(0);
    }
  }

  const Setup s_;
  const Work work_;
  const actor::Address to_;
  Rows rows_;
  base::Blob blob_;
  uint32_t sent_ = 0, answered_ = 0, failed_ = 0;
  steady_clock::time_point begun_, ended_;
};

double transfer(const Setup& s, Work work) {
  const auto made = [] { return std::move(*actor::ZmqHost::create({})); };
  const std::unique_ptr<actor::ZmqHost> to = made(), from = made();
  Taker taker(s, work);
  Giver giver(s, work, to->context().self());
  from->context().link(to->context().self().node, to->context().endpoint());
  to->context().link(from->context().self().node, from->context().endpoint());
  std::thread receiver([&] { to->run(taker, /*handle_signals=*/false); });
  from->run(giver, /*handle_signals=*/false);
  to->context().injector().post([&] { to->context().stop(0); });
  receiver.join();
  if (giver.failed() > 0) fmt::print("{} messages were not taken\n", giver.failed());
  return giver.seconds();
}

// Both ends of a TCP connection over loopback.
std::pair<int, int> connected() {
  const int listening = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in at{};
  at.sin_family = AF_INET;
  at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof at;
  const int from = ::socket(AF_INET, SOCK_STREAM, 0);
  if (::bind(listening, reinterpret_cast<sockaddr*>(&at), size) != 0 ||
      ::listen(listening, 1) != 0 ||
      ::getsockname(listening, reinterpret_cast<sockaddr*>(&at), &size) != 0 ||
      ::connect(from, reinterpret_cast<sockaddr*>(&at), size) != 0)
    return {-1, -1};
  const int to = ::accept(listening, nullptr, nullptr);
  ::close(listening);
  return {from, to};
}

double raw_tcp(const Setup& s) {
  const auto [from, to] = connected();
  if (from < 0 || to < 0) return 0;
  const base::Bytes source(s.bytes());
  const size_t all = s.bytes() * s.messages;
  const auto begun = steady_clock::now();
  std::thread receiver([&, fd = to] {
    base::Bytes sink(s.bytes());
    for (size_t got = 0; got < all;) {
      const ssize_t n = ::recv(fd, sink.data() + got % s.bytes(), s.bytes() - got % s.bytes(), 0);
      if (n <= 0) return;
      got += static_cast<size_t>(n);
    }
  });
  for (size_t sent = 0; sent < all;) {
    const ssize_t n =
        ::send(from, source.data() + sent % s.bytes(), s.bytes() - sent % s.bytes(), MSG_NOSIGNAL);
    if (n <= 0) break;
    sent += static_cast<size_t>(n);
  }
  receiver.join();
  const double took = std::chrono::duration<double>(steady_clock::now() - begun).count();
  ::close(from);
  ::close(to);
  return took;
}

}  // namespace

int main(int argc, char** argv) {
  Setup s;
  CLI::App app{"KV rows between two nodes over loopback, beside a raw TCP stream."};
  app.add_option("--rows", s.rows, "tokens of a message")->capture_default_str();
  app.add_option("--row-bytes", s.row_bytes, "of a token in a layer")->capture_default_str();
  app.add_option("--messages", s.messages, "of a round")->capture_default_str();
  app.add_option("--credits", s.credits, "messages on their way")->capture_default_str();
  app.add_option("--rounds", s.rounds, "each line once a round, by turns")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  CLI11_PARSE(app, argc, argv);
  const struct {
    const char* name;
    std::function<double()> run;
  } lines[] = {{"raw TCP", [&] { return raw_tcp(s); }},
               {"calls", [&] { return transfer(s, Work::kCalls); }},
               {"calls, digests", [&] { return transfer(s, Work::kDigests); }},
               {"KV transfer", [&] { return transfer(s, Work::kPools); }}};
  std::vector<std::vector<double>> rates(std::size(lines));
  for (uint32_t round = 0; round < s.rounds; ++round)
    for (size_t i = 0; i < std::size(lines); ++i)
      rates[i].push_back(static_cast<double>(s.bytes()) * s.messages / lines[i].run() / 1e9);
  fmt::print("{} messages of {} rows of {} bytes, {} on their way, {} rounds\n", s.messages, s.rows,
             s.row_bytes, s.credits, s.rounds);
  fmt::print("{:<18} {:>12} {:>9} {:>9}\n", "", "median GB/s", "of TCP", "us each");
  for (std::vector<double>& of_line : rates) std::ranges::sort(of_line);
  const double tcp = rates[0][s.rounds / 2];
  for (size_t i = 0; i < std::size(lines); ++i) {
    const double rate = rates[i][s.rounds / 2];
    fmt::print("{:<18} {:>12.2f} {:>8.0f}% {:>9.1f}\n", lines[i].name, rate, 100 * rate / tcp,
               static_cast<double>(s.bytes()) / rate / 1e3);
  }
  return 0;
}
