// Tokens become OpenAI's response and stream shapes, byte for byte.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "coordinator/api_answer.h"

namespace coordinator {
namespace {

using base::FinishReason;

const model::Tokenizer& tokenizer() {
  static const model::Tokenizer kTokenizer =
      std::move(*model::Tokenizer::load(SERVAL_SOURCE_DIR "/models/serval-tiny"));
  return kTokenizer;
}

const ApiModel& test_model() {
  static const ApiModel kModel = [] {
    ApiModel model;
    model.name = "tiny";
    model.vocab = 3072;
    model.max_context = 8192;
    model.eos = {2};
    return model;
  }();
  return kModel;
}

AnswerHead head(Dialect dialect) {
  return {dialect, dialect == Dialect::kChat ? "chatcmpl-1" : "cmpl-1", 1700000000, "tiny", "fp",
          false};
}

struct Given {
  Prepared prepared;
  Given() { prepared.prompts = {{4, 5, 6}}; }
  std::unique_ptr<Answer> make() {
    const Dialect dialect = prepared.request.dialect;
    return std::make_unique<Answer>(head(dialect), prepared, test_model(), tokenizer());
  }
};

std::vector<TokenId> ids(const std::string& text) { return tokenizer().encode(text); }

std::string token_list(const std::vector<TokenId>& list) {
  return fmt::format("[{}]", fmt::join(list, ","));
}

TEST(Answer, WritesAChatResponse) {
  Given given;
  auto answer = given.make();
  std::vector<TokenId> tokens = ids("Hi \"you\"");
  tokens.push_back(2);
  EXPECT_TRUE(answer->tokens(0, tokens, {}));
  EXPECT_FALSE(answer->done());
  answer->end(0, FinishReason::kStop, {3, 0, 2, 1});
  ASSERT_TRUE(answer->done());
  EXPECT_EQ(answer->body(),
            fmt::format(R"({{"id":"chatcmpl-1","object":"chat.completion","created":1700000000,)"
                        R"("model":"tiny","system_fingerprint":"fp","choices":[{{"index":0,)"
                        R"("message":{{"role":"assistant","content":"Hi \"you\"","refusal":null}},)"
                        R"("logprobs":null,"finish_reason":"stop"}}],"usage":{{"prompt_tokens":3,)"
                        R"("completion_tokens":{0},"total_tokens":{1},)"
                        R"("prompt_tokens_details":{{"cached_tokens":2}},)"
                        R"("completion_tokens_details":{{"reasoning_tokens":0}}}}}})",
                        tokens.size(), tokens.size() + 3));
}

constexpr const char* kChunk =
    R"(data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1700000000,)"
    R"("model":"tiny","system_fingerprint":"fp",)";

TEST(Answer, WritesAChatStream) {
  Given given;
  given.prepared.request.stream = true;
  given.prepared.request.include_usage = true;
  auto answer = given.make();
  const std::string start = kChunk;
  const auto choice = [&](const char* delta, const char* finish) {
    return start + R"("choices":[{"index":0,"delta":)" + delta +
           R"(,"logprobs":null,"finish_reason":)" + finish + R"(}],"usage":null})" + "\n\n";
  };
  answer->tokens(0, ids("One"), {});
  EXPECT_EQ(answer->take(), choice(R"({"role":"assistant","content":""})", "null") +
                                choice(R"({"content":"One"})", "null"));
  answer->tokens(0, ids(" two"), {});
  EXPECT_EQ(answer->take(), choice(R"({"content":" two"})", "null"));
  answer->end(0, FinishReason::kLength, {3, 2, 0, 1});
  const size_t tokens = ids("One").size() + ids(" two").size();
  EXPECT_EQ(answer->take(),
            choice("{}", "\"length\"") + start +
                fmt::format(R"("choices":[],"usage":{{"prompt_tokens":3,"completion_tokens":{},)"
                            R"("total_tokens":{},"prompt_tokens_details":{{"cached_tokens":0}},)"
                            R"("completion_tokens_details":{{"reasoning_tokens":0}}}}}})",
                            tokens, tokens + 3) +
                "\n\ndata: [DONE]\n\n");
  EXPECT_TRUE(answer->done());
}

TEST(Answer, WritesACompletionStream) {
  Given given;
  given.prepared.request.dialect = Dialect::kCompletion;
  given.prepared.request.stream = true;
  auto answer = given.make();
  answer->tokens(0, ids("x"), {});
  answer->end(0, FinishReason::kStop, {});
  const std::string start =
      R"(data: {"id":"cmpl-1","object":"text_completion","created":1700000000,"model":"tiny",)"
      R"("system_fingerprint":"fp","choices":[{"index":0,"text":)";
  EXPECT_EQ(answer->take(), start + R"("x","logprobs":null,"finish_reason":null}]})" + "\n\n" +
                                start + R"("","logprobs":null,"finish_reason":"stop"}]})" +
                                "\n\ndata: [DONE]\n\n");
}

TEST(Answer, AStopStringEndsTheChoiceAndAsksForCancel) {
  Given given;
  given.prepared.request.text.stop = {"two"};
  auto answer = given.make();
  const auto tokens = ids("one two three");
  bool wanted = true;
  size_t taken = 0;
  for (; taken < tokens.size() && wanted; ++taken) {
    wanted = answer->tokens(0, std::span(&tokens[taken], 1), {});
  }
  EXPECT_FALSE(wanted);
  EXPECT_LT(taken, tokens.size());
  EXPECT_TRUE(answer->done());
  EXPECT_NE(answer->body().find(R"("content":"one ")"), std::string::npos);
  EXPECT_NE(answer->body().find(R"("finish_reason":"stop")"), std::string::npos);
  EXPECT_EQ(answer->usage().completion_tokens, taken);
}

TEST(Answer, ShowsNoTextOfTheTokenThatStops) {
  Given given;
  const TokenId stop = ids("x").front();
  given.prepared.request.sampling.stop_tokens = {stop};
  auto answer = given.make();
  std::vector<TokenId> tokens = ids("abc");
  tokens.push_back(stop);
  answer->tokens(0, tokens, {});
  answer->end(0, FinishReason::kStop, {});
  EXPECT_NE(answer->body().find(R"("content":"abc")"), std::string::npos);
}

TEST(Answer, GivesTokenIdsWhenAsked) {
  Given given;
  given.prepared.request.return_token_ids = true;
  given.prepared.request.stream = true;
  auto answer = given.make();
  const auto tokens = ids("abc");
  answer->tokens(0, tokens, {});
  const std::string text = answer->take();
  EXPECT_NE(text.find(R"("prompt_token_ids":[4,5,6])"), std::string::npos);
  EXPECT_NE(text.find(R"("token_ids":)" + token_list(tokens)), std::string::npos);
  EXPECT_EQ(text.find("prompt_token_ids", text.find("prompt_token_ids") + 1), std::string::npos);
}

TEST(Answer, LogprobTokensJoinToTheContent) {
  Given given;
  given.prepared.request.logprobs = true;
  auto answer = given.make();
  std::vector<TokenId> tokens = ids("a\"b");
  tokens.push_back(2);
  std::vector<base::TokenLogprobs> probs(tokens.size());
  probs[0] = {-0.5f, {{tokens[0], -0.5f}, {tokens[1], -std::numeric_limits<float>::infinity()}}};
  answer->tokens(0, tokens, probs);
  answer->end(0, FinishReason::kStop, {});
  const std::string body = answer->body();
  EXPECT_NE(body.find(R"("logprobs":{"content":[{"token":"a","logprob":-0.5,"bytes":[97],)"
                      R"("top_logprobs":[{"token":"a","logprob":-0.5,"bytes":[97]},)"),
            std::string::npos)
      << body;
  EXPECT_NE(body.find("-9999.0"), std::string::npos);
  EXPECT_NE(body.find(R"(],"refusal":null})"), std::string::npos);
  EXPECT_EQ(body.find("longcat"), std::string::npos);
}

TEST(Answer, KeepsChoicesApart) {
  Given given;
  given.prepared.request.n = 2;
  given.prepared.request.dialect = Dialect::kCompletion;
  given.prepared.prompts = {{4}, {5, 6}};
  auto answer = given.make();
  ASSERT_EQ(answer->choices(), 4u);
  for (uint32_t i = 4; i-- > 0;) {
    answer->tokens(i, ids(std::string(1, static_cast<char>('a' + i))), {});
    answer->end(i, FinishReason::kStop, {0, 1, i, 1});
  }
  EXPECT_TRUE(answer->done());
  const std::string body = answer->body();
  size_t at = 0;
  for (const char* text : {R"("index":0,"text":"a")", R"("index":1,"text":"b")",
                           R"("index":2,"text":"c")", R"("index":3,"text":"d")"}) {
    at = body.find(text, at);
    ASSERT_NE(at, std::string::npos) << text << " in " << body;
  }
  EXPECT_EQ(answer->usage().prompt_tokens, 3u);
  EXPECT_EQ(answer->usage().completion_tokens, 4u);
  EXPECT_EQ(answer->usage().cached_tokens, 2u);  // of the first choice of each prompt
}

TEST(Answer, HoldsAnUnfinishedCharacterBackToTheEnd) {
  Given given;
  given.prepared.request.stream = true;
  auto answer = given.make();
  const auto tokens = ids("\xE2\x82");  // two bytes of three
  answer->tokens(0, tokens, {});
  EXPECT_EQ(answer->take().find("\"content\":\"\xEF"), std::string::npos);
  answer->end(0, FinishReason::kLength, {});
  EXPECT_NE(answer->take().find("\"content\":\"\xEF\xBF\xBD"), std::string::npos);
}

}  // namespace
}  // namespace coordinator
