// The front end at its bounds: clients that leave, send too much, too slowly, or do not read.
#include <fmt/format.h>

#include <thread>

#include "front_end_fixture.h"

namespace coordinator {
namespace {

using base::FinishReason;
using std::chrono::milliseconds;

TEST_F(FrontEndTest, AClientThatLeavesItsStreamIsCancelled) {
  start();
  for (const bool reset : {false, true}) {
    RawClient client(port_);
    client.send(post(kChatPath, chat_body(R"("stream":true)")));
    ASSERT_TRUE(gateway_.wait([](const FakeGateway& g) { return g.live() == 1; }));
    reactor_.sync([&] { gateway_.emit(RequestId{gateway_.submissions().size()}, ids("begin")); });
    client.read_until("begin");
    if (reset) {
      client.reset();
    } else {
      client.close();
    }
    EXPECT_TRUE(gateway_.wait([](const FakeGateway& g) { return g.live() == 0; }));
  }
  reactor_.sync([&] { EXPECT_EQ(gateway_.cancelled().size(), 2u); });
  EXPECT_TRUE(metric_becomes("serval_http_disconnects_total", 2));
  EXPECT_TRUE(metric_becomes("serval_http_generations", 0));
  EXPECT_TRUE(metric_becomes(R"(serval_request_success_total{finished_reason="abort"})", 2));
}

TEST_F(FrontEndTest, AClientThatLeavesBeforeItsAnswerIsCancelled) {
  start();
  RawClient client(port_);
  client.send(post(kChatPath, chat_body()) + "\r\n");  // some send a line too many
  ASSERT_TRUE(gateway_.wait([](const FakeGateway& g) { return g.live() == 1; }));
  client.close();
  EXPECT_TRUE(gateway_.wait([](const FakeGateway& g) { return g.cancelled().size() == 1; }));
}

TEST_F(FrontEndTest, ARequestCancelledBeforeItsIdIsKnownIsStillCancelled) {
  start();
  reactor_.hold(true);
  RawClient client(port_);
  client.send(post(kChatPath, chat_body()));
  while (front_end_->answering() == 0) std::this_thread::yield();
  client.close();
  while (front_end_->answering() > 0) std::this_thread::yield();
  reactor_.hold(false);
  EXPECT_TRUE(gateway_.wait([](const FakeGateway& g) {
    return g.submissions().size() == 1 && g.cancelled().size() == 1 && g.live() == 0;
  }));
}

TEST_F(FrontEndTest, AClientThatDoesNotReadIsCutOff) {
  FrontEndOptions options;
  options.most_pending = 100'000;
  options.send_buffer_bytes = 20'000;
  start(options);
  RawClient client(port_, /*receive_buffer=*/10'000);
  client.send(post(kChatPath, chat_body(R"("stream":true)")));
  ASSERT_TRUE(gateway_.wait([](const FakeGateway& g) { return g.live() == 1; }));
  const std::vector<TokenId> tokens = ids("many words that nobody reads ");
  size_t batches = 0;
  EXPECT_TRUE(gateway_.wait([&](const FakeGateway& g) {
    if (g.live() == 0) return true;
    ++batches;
    gateway_.emit(RequestId{1}, tokens);
    return false;
  }));
  EXPECT_LT(batches * 250, 20u << 20);  // it was not all kept
  EXPECT_TRUE(metric_becomes("serval_http_slow_readers_total", 1));
  EXPECT_TRUE(metric_becomes("serval_http_generations", 0));
}

TEST_F(FrontEndTest, AStreamThatCannotBeWrittenInTimeIsCutOff) {
  FrontEndOptions options;
  options.write_timeout = milliseconds(200);
  options.send_buffer_bytes = 20'000;
  start(options);
  RawClient client(port_, /*receive_buffer=*/10'000);
  client.send(post(kChatPath, chat_body(R"("stream":true)")));
  ASSERT_TRUE(gateway_.wait([](const FakeGateway& g) { return g.live() == 1; }));
  std::string text;
  for (int i = 0; i < 5000; ++i) text += "words and ";
  reactor_.sync([&] { gateway_.emit(RequestId{1}, ids(text)); });
  reactor_.sync([&] { gateway_.emit(RequestId{1}, ids(text)); });
  reactor_.sync([&] { gateway_.emit(RequestId{1}, ids(text)); });
  EXPECT_TRUE(gateway_.wait([](const FakeGateway& g) { return g.live() == 0; }));
  EXPECT_TRUE(metric_becomes("serval_http_slow_readers_total", 1));
}

TEST_F(FrontEndTest, SendsPingsWhileNothingComes) {
  FrontEndOptions options;
  options.ping_interval = milliseconds(60);
  start(options);
  RawClient client(port_);
  client.send(post(kChatPath, chat_body(R"("stream":true)")));
  EXPECT_NE(client.read_until(": ping\n\n").find("HTTP/1.1 200 OK"), std::string::npos);
  // Too late for a status: the refusal is an event.
  reactor_.sync([&] { gateway_.refuse(RequestId{1}, base::Code::kExhausted, "full"); });
  EXPECT_NE(client.read_until("\"error\"").find("rate_limit_error"), std::string::npos);
}

TEST_F(FrontEndTest, RefusesBodiesThatAreTooLargeWithoutReadingThem) {
  FrontEndOptions options;
  options.max_body_bytes = 10'000;
  start(options);
  RawClient announced(port_);
  announced.send("POST /tokenize HTTP/1.1\r\nContent-Length: 1000000000\r\n\r\n");
  const RawReply first = announced.read();
  EXPECT_EQ(first.status, 413);
  EXPECT_EQ(first.headers.at("connection"), "close");
  RawClient chunked(port_);
  chunked.send("POST /tokenize HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n");
  const std::string chunk = fmt::format("{:x}\r\n{}\r\n", 4000, std::string(4000, 'x'));
  for (int i = 0; i < 3; ++i) chunked.send(chunk);
  EXPECT_EQ(chunked.read().status, 413);
}

TEST_F(FrontEndTest, AsksForTheBodyOfAClientThatWaits) {
  start();
  RawClient client(port_);
  const std::string body = R"({"content":"a"})";
  client.send(
      fmt::format("POST /tokenize HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: {}\r\n\r\n",
                  body.size()));
  EXPECT_EQ(client.read(/*head=*/true).status, 100);
  client.send(body);
  EXPECT_EQ(client.read().status, 200);
}

TEST_F(FrontEndTest, RefusesHeadersThatAreTooLarge) {
  start();
  EXPECT_EQ(ask("GET /health HTTP/1.1\r\nx: " + std::string(20'000, 'y') + "\r\n\r\n").status, 431);
  std::string many = "GET /health HTTP/1.1\r\n";
  for (int i = 0; i < 100'000; ++i) many += fmt::format("h{}: 1\r\n", i);
  EXPECT_EQ(ask(many + "\r\n").status, 431);
  EXPECT_EQ(ask("GET /" + std::string(20'000, 'p') + " HTTP/1.1\r\n\r\n").status, 431);
}

TEST_F(FrontEndTest, GivesUpOnRequestsThatDoNotArrive) {
  FrontEndOptions options;
  options.header_timeout = milliseconds(150);
  options.body_timeout = milliseconds(150);
  options.idle_timeout = milliseconds(400);
  start(options);
  RawClient header(port_), body(port_), silent(port_);
  header.send("POST /tokenize HTT");
  body.send("POST /tokenize HTTP/1.1\r\nContent-Length: 10\r\n\r\n{");
  const RawReply first = header.read(), second = body.read();
  EXPECT_EQ(first.status, 408);
  EXPECT_EQ(second.status, 408);
  EXPECT_EQ(second.headers.at("connection"), "close");
  EXPECT_EQ(silent.read().status, 0);  // closed without a word
  EXPECT_TRUE(metric_becomes("serval_http_timeouts_total", 2));
}

TEST_F(FrontEndTest, RefusesConnectionsBeyondItsLimit) {
  FrontEndOptions options;
  options.max_connections = 2;
  start(options);
  RawClient a(port_), b(port_);
  a.send(get("/version"));
  b.send(get("/version"));
  EXPECT_EQ(a.read().status, 200);
  EXPECT_EQ(b.read().status, 200);
  {
    RawClient c(port_);
    const RawReply refused = c.read();
    EXPECT_EQ(refused.status, 503);
    EXPECT_EQ(refused.headers.at("retry-after"), "1");
  }
  a.close();
  b.close();
  EXPECT_TRUE(metric_becomes("serval_http_refused_connections_total", 1));
}

TEST_F(FrontEndTest, HoldsNoMoreBodiesThanAllowed) {
  FrontEndOptions options;
  options.max_body_bytes_held = 5000;
  start(options);
  RawClient slow(port_);
  slow.send("POST /tokenize HTTP/1.1\r\nContent-Length: 9000\r\n\r\n" + std::string(4000, ' '));
  const std::string body = R"({"content":")" + std::string(4000, 'a') + R"("})";
  // The first client's bytes are held by the time the second is refused; until then it is served.
  int status = 200;
  const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (status == 200 && std::chrono::steady_clock::now() < until) {
    status = ask(post("/tokenize", body)).status;
  }
  EXPECT_EQ(status, 503);
  slow.close();
  while (status == 503 && std::chrono::steady_clock::now() < until) {
    status = ask(post("/tokenize", body)).status;
  }
  EXPECT_EQ(status, 200);
}

TEST_F(FrontEndTest, ManyStreamsAtOnceLeaveNothingBehind) {
  start();
  answer_all("warm");
  EXPECT_EQ(ask(post(kChatPath, chat_body())).status, 200);
  EXPECT_TRUE(metric_becomes("serval_http_connections", 1));
  const size_t before = open_descriptors();
  reactor_.sync([&] { gateway_.on_submit_ = {}; });
  constexpr size_t kStreams = 200;
  {
    std::vector<std::unique_ptr<RawClient>> clients;
    for (size_t i = 0; i < kStreams; ++i) {
      clients.push_back(std::make_unique<RawClient>(port_));
      clients.back()->send(post(kChatPath, chat_body(R"("stream":true)")));
    }
    ASSERT_TRUE(gateway_.wait([](const FakeGateway& g) { return g.live() == kStreams; }));
    for (int step = 0; step < 20; ++step) {
      reactor_.sync([&] {
        for (size_t i = 0; i < kStreams; ++i) gateway_.emit(RequestId{i + 2}, ids("word "));
      });
    }
    // Every second client leaves; the others get every token.
    for (size_t i = 0; i < kStreams; i += 2) clients[i].reset();
    EXPECT_TRUE(gateway_.wait([](const FakeGateway& g) { return g.live() == kStreams / 2; }));
    reactor_.sync([&] {
      for (size_t i = 0; i < kStreams; ++i) gateway_.end(RequestId{i + 2}, FinishReason::kStop);
    });
    for (size_t i = 1; i < kStreams; i += 2) {
      const RawReply reply = clients[i]->read();
      ASSERT_TRUE(reply.complete);
      size_t words = 0;
      for (size_t at = 0; (at = reply.body.find("word", at)) != std::string::npos; ++at) ++words;
      EXPECT_EQ(words, 20u);
    }
  }
  EXPECT_TRUE(metric_becomes("serval_http_connections", 1));
  EXPECT_TRUE(metric_becomes("serval_http_generations", 0));
  // The last question's own connection may take a moment to go.
  EXPECT_TRUE(gateway_.wait([&](const FakeGateway&) { return open_descriptors() <= before; }));
}

TEST_F(FrontEndTest, DrainingLetsStreamsEnd) {
  start();
  RawClient idle(port_), streaming(port_);
  idle.send(get("/version"));
  EXPECT_EQ(idle.read().status, 200);
  streaming.send(post(kChatPath, chat_body(R"("stream":true)")));
  ASSERT_TRUE(gateway_.wait([](const FakeGateway& g) { return g.live() == 1; }));
  reactor_.sync([&] { gateway_.drain(); });
  front_end_->drain();
  EXPECT_TRUE(idle.closed());
  EXPECT_EQ(ask(get("/health")).status, 503);
  EXPECT_EQ(ask(get("/version")).headers.at("connection"), "close");
  EXPECT_TRUE(gateway_.wait([&](const FakeGateway&) { return front_end_->answering() == 1; }));
  reactor_.sync([&] {
    gateway_.emit(RequestId{1}, ids("bye"));
    gateway_.end(RequestId{1}, FinishReason::kStop);
  });
  EXPECT_TRUE(streaming.read().complete);
  EXPECT_TRUE(streaming.closed());
  EXPECT_TRUE(gateway_.wait([&](const FakeGateway&) { return front_end_->answering() == 0; }));
}

TEST_F(FrontEndTest, StoppingEndsEveryConnection) {
  start();
  RawClient idle(port_), streaming(port_);
  streaming.send(post(kChatPath, chat_body(R"("stream":true)")));
  ASSERT_TRUE(gateway_.wait([](const FakeGateway& g) { return g.live() == 1; }));
  front_end_->stop();
  front_end_.reset();
  EXPECT_TRUE(idle.closed());
  EXPECT_TRUE(streaming.closed());
}

}  // namespace
}  // namespace coordinator
