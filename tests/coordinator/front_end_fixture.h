// A FrontEnd on a free port, before a FakeGateway that answers as the test says.
#pragma once
#include <gtest/gtest.h>

#include "coordinator/front_end.h"
#include "fake_gateway.h"
#include "raw_client.h"

namespace coordinator {

class FrontEndTest : public testing::Test {
 protected:
  static const model::Tokenizer& tokenizer();
  static const model::ChatFormat& format();
  static std::vector<TokenId> ids(const std::string& text) { return tokenizer().encode(text); }

  void start() { start(FrontEndOptions{}); }
  void start(FrontEndOptions options);
  void TearDown() override;

  // Answers every submission with `text`, then an end.
  void answer_all(const std::string& text);
  RawReply ask(const std::string& request, bool head = false);
  double metric(const std::string& name);
  // Waits until the front end shows this value.
  bool metric_becomes(const std::string& name, double value);

  FakeReactor reactor_;
  FakeGateway gateway_{reactor_};
  std::unique_ptr<FrontEnd> front_end_;
  uint16_t port_ = 0;
};

inline constexpr const char* kChatPath = "/v1/chat/completions";
std::string chat_body(const std::string& fields = "");
size_t open_descriptors();

}  // namespace coordinator
