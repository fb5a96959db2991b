#include "front_end_fixture.h"

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <thread>

namespace coordinator {

namespace {
const std::string kFolder = SERVAL_SOURCE_DIR "/models/serval-tiny";
}

const model::Tokenizer& FrontEndTest::tokenizer() {
  static const model::Tokenizer kTokenizer = std::move(*model::Tokenizer::load(kFolder));
  return kTokenizer;
}

const model::ChatFormat& FrontEndTest::format() {
  static const model::ChatFormat kFormat =
      std::move(*model::ChatFormat::load(kFolder, tokenizer()));
  return kFormat;
}

void FrontEndTest::start(FrontEndOptions options) {
  options.listen = "127.0.0.1:0";
  options.version = "1.2.3";
  options.model.name = "tiny";
  options.model.vocab = 3072;
  options.model.max_context = 8192;
  options.model.eos = {2};
  options.model.longest_token = 32;
  gateway_.status_.ready = true;
  auto started = FrontEnd::start(std::move(options), tokenizer(), format(), gateway_, reactor_,
                                 base::Log::discard());
  ASSERT_TRUE(started.has_value()) << started.error().what;
  front_end_ = std::move(*started);
  port_ = front_end_->port();
}

void FrontEndTest::TearDown() {
  if (front_end_) front_end_->stop();
  reactor_.stop();
}

void FrontEndTest::answer_all(const std::string& text) {
  reactor_.sync([&] {
    gateway_.on_submit_ = [tokens = ids(text)](FakeGateway& gateway, RequestId id,
                                               const Submission&) {
      for (const TokenId token : tokens) gateway.emit(id, {token});
      gateway.end(id, base::FinishReason::kStop);
    };
  });
}

RawReply FrontEndTest::ask(const std::string& request, bool head) {
  RawClient client(port_);
  client.send(request);
  return client.read(head);
}

double FrontEndTest::metric(const std::string& name) {
  const std::string text = "\n" + ask(get("/metrics")).body;
  const size_t at = text.find("\n" + name + " ");
  return at == std::string::npos ? -1 : std::atof(text.c_str() + at + name.size() + 2);
}

bool FrontEndTest::metric_becomes(const std::string& name, double value) {
  const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (std::chrono::steady_clock::now() < until) {
    if (metric(name) == value) return true;
    std::this_thread::yield();
  }
  return false;
}

std::string chat_body(const std::string& fields) {
  return R"({"messages":[{"role":"user","content":"hello"}])" +
         (fields.empty() ? std::string() : "," + fields) + "}";
}

size_t open_descriptors() {
  size_t count = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    ++count;
  }
  return count;
}

}  // namespace coordinator
