// Bodies of clients become checked requests or errors that name the value.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "coordinator/api_chat.h"
#include "coordinator/api_grammar.h"
#include "coordinator/http_routes.h"

namespace coordinator {
namespace {

ApiModel test_model() {
  ApiModel model;
  model.name = "tiny";
  model.vocab = 3072;
  model.max_context = 8192;
  model.temperature = 0.7f;
  model.top_p = 0.95f;
  model.thinking = true;
  return model;
}

std::string chat_with(const std::string& fields) {
  return R"({"messages":[{"role":"user","content":"hi"}])" +
         (fields.empty() ? std::string() : "," + fields) + "}";
}
std::string completion_with(const std::string& fields) {
  return R"({"prompt":"hi")" + (fields.empty() ? std::string() : "," + fields) + "}";
}

Parsed<GenerationRequest> chat(const std::string& fields) {
  return parse_chat(chat_with(fields), test_model());
}
Parsed<GenerationRequest> completion(const std::string& fields) {
  return parse_completion(completion_with(fields), test_model());
}

// faults.md S07: no value of any numeric field is more than a 400.
const std::vector<std::string> kValues = {"-1",
                                          "0",
                                          "1",
                                          "2147483648",
                                          "9007199254740993",
                                          "0.5",
                                          "1e400",
                                          "NaN",
                                          "-1e400",
                                          "\"1\"",
                                          "null",
                                          "[]",
                                          "{}",
                                          "true",
                                          "1e300",
                                          "-0.0",
                                          "18446744073709551616",
                                          "[1]",
                                          "Infinity"};

TEST(ApiParse, NoValueOfANumericFieldIsOurFault) {
  const char* chat_fields[] = {"max_tokens",
                               "max_completion_tokens",
                               "temperature",
                               "top_p",
                               "n",
                               "seed",
                               "top_k",
                               "min_p",
                               "frequency_penalty",
                               "presence_penalty",
                               "min_tokens",
                               "repetition_penalty",
                               "top_logprobs",
                               "logprobs",
                               "priority",
                               "stop_token_ids",
                               "logit_bias",
                               "stop",
                               "stream",
                               "stream_options",
                               "ignore_eos",
                               "return_token_ids",
                               "cache_salt",
                               "model",
                               "tools",
                               "tool_choice",
                               "messages",
                               "response_format"};
  for (const char* field : chat_fields) {
    for (const std::string& value : kValues) {
      const std::string body = fmt::format(R"({{"messages":[{{"role":"user","content":"hi"}}],)"
                                           R"("{}":{}}})",
                                           field, value);
      const auto result = parse_chat(body, test_model());
      if (result) continue;
      EXPECT_TRUE(result.error().status == 400 || result.error().status == 404) << body;
      EXPECT_FALSE(result.error().message.empty()) << body;
      EXPECT_EQ(
          result.error().param.find(field) == std::string::npos && result.error().status == 400,
          false)
          << body << " -> " << result.error().param << ": " << result.error().message;
    }
  }
}

TEST(ApiParse, NoValueOfACompletionFieldIsOurFault) {
  for (const char* field : {"max_tokens", "logprobs", "best_of", "n", "prompt", "echo", "suffix",
                            "temperature", "seed"}) {
    for (const std::string& value : kValues) {
      const std::string body = fmt::format(R"({{"{}":{}, "prompt": "x"}})", field, value);
      const auto result = parse_completion(body, test_model());
      if (!result) {
        EXPECT_EQ(result.error().status, 400) << body;
      }
    }
  }
}

struct Accepted {
  const char* fields;
  bool (*check)(const GenerationRequest&);
};

TEST(ApiParse, ReadsWhatClientsSend) {
  const Accepted cases[] = {
      {"", [](const auto& r) { return r.sampling.temperature == 0.7f && r.n == 1 && !r.stream; }},
      {R"("temperature":0)", [](const auto& r) { return r.sampling.temperature == 0.0f; }},
      {R"("temperature":null,"top_p":null)",
       [](const auto& r) { return r.sampling.temperature == 0.7f && r.sampling.top_p == 0.95f; }},
      {R"("max_tokens":5)",
       [](const auto& r) { return r.sampling.max_tokens == 5 && r.has_max_tokens; }},
      {R"("max_tokens":5,"max_completion_tokens":7)",
       [](const auto& r) { return r.sampling.max_tokens == 7; }},
      {R"("max_tokens":5.0)", [](const auto& r) { return r.sampling.max_tokens == 5; }},
      {R"("seed":9007199254740993)",
       [](const auto& r) { return r.has_seed && r.sampling.seed == 9007199254740993u; }},
      {R"("seed":-1)", [](const auto& r) { return r.has_seed && r.sampling.seed == UINT64_MAX; }},
      {R"("stop":"x")", [](const auto& r) { return r.text.stop.size() == 1; }},
      {R"("stop":["x","yy"],"include_stop_str_in_output":true)",
       [](const auto& r) { return r.text.stop.size() == 2 && r.text.include_stop; }},
      {R"("stop":null)", [](const auto& r) { return r.text.stop.empty(); }},
      {R"("logit_bias":{"7":-100,"8":1.5})",
       [](const auto& r) { return r.sampling.logit_bias.size() == 2; }},
      {R"("logprobs":true,"top_logprobs":20)",
       [](const auto& r) { return r.sampling.top_logprobs == 20; }},
      {R"("logprobs":true)", [](const auto& r) { return r.sampling.top_logprobs == 0; }},
      {R"("top_logprobs":0)", [](const auto& r) { return r.sampling.top_logprobs == -1; }},
      {R"("stream":true,"stream_options":{"include_usage":true,"include_obfuscation":false})",
       [](const auto& r) { return r.stream && r.include_usage; }},
      {R"("top_k":-1,"min_p":1,"stop_token_ids":[3,4],"ignore_eos":true,"min_tokens":2)",
       [](const auto& r) {
         return r.sampling.top_k == 0 && r.sampling.min_p < 1.0f &&
                r.sampling.stop_tokens.size() == 2 && r.sampling.ignore_eos;
       }},
      {R"("store":true,"metadata":{"a":"b"},"user":"u","service_tier":"auto","verbosity":"low",)"
       R"("parallel_tool_calls":true,"prompt_cache_key":"k","safety_identifier":"s","unknown":[1])",
       [](const auto& r) { return r.messages.size() == 1; }},
      {R"("response_format":{"type":"text"},"modalities":["text"],"audio":null,"functions":[])",
       [](const auto& r) { return r.n == 1; }},
      {R"("chat_template_kwargs":{"enable_thinking":true})",
       [](const auto& r) { return r.chat.thinking; }},
      {R"("tools":[{"type":"function","function":{"name":"f","parameters":{"type":"object"}}}])",
       [](const auto& r) { return r.tools.size() == 1 && r.tools[0].name == "f"; }},
      {R"("tools":[{"type":"function","function":{"name":"f"}}],"tool_choice":"none")",
       [](const auto& r) { return r.tools.empty(); }},
      {R"("tools":[{"type":"function","function":{"name":"f"}}],"tool_choice":null)",
       [](const auto& r) { return r.tools.size() == 1; }},
      {R"("model":"tiny","cache_salt":"s")", [](const auto& r) { return r.cache_salt == "s"; }},
      {R"("model":"tiny","priority":-3)", [](const auto& r) { return r.priority == -3; }},
      {R"("model":"tiny")", [](const auto& r) { return r.priority == 0; }},
  };
  for (const Accepted& c : cases) {
    const auto result = chat(c.fields);
    ASSERT_TRUE(result.has_value()) << c.fields << ": " << result.error().message;
    EXPECT_TRUE(c.check(*result)) << c.fields;
  }
}

// What each dialect's field comes to.
TEST(ApiParse, ReadsWhatTheAnswerMustKeepTo) {
  using base::GrammarKind;
  const struct {
    const char* fields;
    GrammarKind kind;
    const char* text;
  } cases[] = {
      {R"("response_format":{"type":"text"})", GrammarKind::kNone, ""},
      {R"("response_format":{"type":"json_object"})", GrammarKind::kJsonObject, ""},
      {R"("response_format":{"type":"json_schema","json_schema":{"name":"x","strict":true,)"
       R"("schema":{"properties":{"z":{},"a":{"minimum":1.50}}}}})",
       GrammarKind::kJsonSchema, R"({"properties": {"z": {}, "a": {"minimum": 1.5}}})"},
      {R"("guided_json":{"type":"null"})", GrammarKind::kJsonSchema, R"({"type": "null"})"},
      {R"("guided_json":"{\"type\":\"null\"}")", GrammarKind::kJsonSchema, R"({"type":"null"})"},
      {R"("guided_regex":"a+")", GrammarKind::kRegex, "a+"},
      {R"("guided_choice":["b","a"])", GrammarKind::kChoice, R"(["b","a"])"},
      {R"("guided_grammar":"root ::= \"a\"")", GrammarKind::kEbnf, R"(root ::= "a")"},
      {R"("structured_outputs":{"json":{"type":"null"}})", GrammarKind::kJsonSchema,
       R"({"type": "null"})"},
      {R"("structured_outputs":{"regex":"a","json":null})", GrammarKind::kRegex, "a"},
      {R"("structured_outputs":{"choice":["x"]})", GrammarKind::kChoice, R"(["x"])"},
      {R"("structured_outputs":{"grammar":"g"})", GrammarKind::kEbnf, "g"},
      {R"("structured_outputs":{"json_object":true})", GrammarKind::kJsonObject, ""},
      {R"("json_schema":"{}")", GrammarKind::kJsonSchema, "{}"},
      {R"("regex":"a","ebnf":null)", GrammarKind::kRegex, "a"},
      {R"("ebnf":"g")", GrammarKind::kEbnf, "g"},
      {R"("grammar":"g")", GrammarKind::kEbnf, "g"},
  };
  for (const auto& each : cases) {
    const auto result = chat(each.fields);
    ASSERT_TRUE(result.has_value()) << each.fields << ": " << result.error().message;
    EXPECT_EQ(result->sampling.grammar.kind, each.kind) << each.fields;
    EXPECT_EQ(result->sampling.grammar.text, each.text) << each.fields;
    if (each.kind != GrammarKind::kNone) {
      EXPECT_TRUE(may_name_grammar(each.fields)) << each.fields;
    }
  }
}

struct Refused {
  const char* fields;
  const char* param;
  int status = 400;
};

TEST(ApiParse, NamesWhatItRefuses) {
  const Refused cases[] = {
      {R"("temperature":2.5)", "temperature"},
      {R"("top_p":0)", "top_p"},
      {R"("n":17)", "n"},
      {R"("n":0)", "n"},
      {R"("max_tokens":0)", "max_tokens"},
      {R"("max_tokens":5,"min_tokens":6)", "min_tokens"},
      {R"("top_logprobs":21,"logprobs":true)", "top_logprobs"},
      {R"("top_logprobs":2)", "top_logprobs"},
      {R"("stop":"")", "stop"},
      {R"("stop":["a",""])", "stop[1]"},
      {R"("stop":[1])", "stop[0]"},
      {R"("stop_token_ids":[3072])", "stop_token_ids[0]"},
      {R"("logit_bias":{"3072":1})", "logit_bias"},
      {R"("logit_bias":{"1":101})", "logit_bias"},
      {R"("logit_bias":{"x":1})", "logit_bias"},
      {R"("stream_options":{"include_usage":true})", "stream_options"},
      {R"("stream":true,"stream_options":{"include_usage":1})", "stream_options.include_usage"},
      {R"("model":"other")", "", 404},
      {R"("tool_choice":"required")", "tool_choice"},
      {R"("tool_choice":{"type":"function","function":{"name":"f"}})", "tool_choice"},
      {R"("tool_choice":"maybe")", "tool_choice"},
      {R"("tools":[{"type":"function"}])", "tools[0]"},
      {R"("tools":[{"type":"function","function":{"name":7}}])", "tools[0].function.name"},
      {R"("tools":[{"type":"web","function":{"name":"f"}}])", "tools[0]"},
      {R"("response_format":{"type":"sound"})", "response_format.type"},
      {R"("modalities":["audio"])", "modalities"},
      {R"("audio":{"voice":"x"})", "audio"},
      {R"("web_search_options":{})", "web_search_options"},
      {R"("functions":[{"name":"f"}])", "functions"},
      {R"("chat_template_kwargs":{"chat_template":"x"})", "chat_template_kwargs"},
      {R"("chat_template_kwargs":{"enable_thinking":1})", "chat_template_kwargs.enable_thinking"},
      {R"("response_format":{"type":"json_schema"})", "response_format.json_schema"},
      {R"("response_format":{"type":"json_schema","json_schema":{"schema":123}})",
       "response_format.json_schema.schema"},
      {R"("response_format":{"type":"json_schema","json_schema":{"name":"x"}})",
       "response_format.json_schema.schema"},
      {R"("response_format":{"type":"json_object"},"guided_regex":"a")", "guided_regex"},
      {R"("structured_outputs":{"regex":"a","choice":["b"]})", "structured_outputs.choice"},
      {R"("structured_outputs":{"structural_tag":"x"})", "structured_outputs.structural_tag"},
      {R"("guided_choice":"a")", "guided_choice"},
      {R"("guided_regex":7)", "guided_regex"},
      {R"("guided_whitespace_pattern":" ")", "guided_whitespace_pattern"},
      {R"("regex":"a","chat_template_kwargs":{"enable_thinking":true})", "regex"},
      {R"("temperature":1e400)", "temperature"},
  };
  for (const Refused& c : cases) {
    const auto result = chat(c.fields);
    ASSERT_FALSE(result.has_value()) << c.fields;
    EXPECT_EQ(result.error().status, c.status) << c.fields;
    EXPECT_EQ(result.error().param, c.param) << c.fields;
  }
}

TEST(ApiParse, ReadsMessagesOfAllKinds) {
  const auto result = parse_chat(
      R"({"messages":[
        {"role":"developer","content":"be brief"},
        {"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]},
        {"role":"assistant","content":null,"reasoning_content":"hm","tool_calls":[
          {"id":"call_1","type":"function","function":{"name":"f","arguments":"{\"x\":1}"}},
          {"id":"call_2","type":"function","function":{"name":"g","arguments":{"y":[2]}}}]},
        {"role":"tool","tool_call_id":"call_2","content":"42"},
        {"role":"assistant","content":"done"}]})",
      test_model());
  ASSERT_TRUE(result.has_value()) << result.error().message;
  const auto& messages = result->messages;
  ASSERT_EQ(messages.size(), 5u);
  EXPECT_EQ(messages[0].role, model::ChatMessage::Role::kSystem);
  EXPECT_EQ(messages[1].content, "a\nb");
  EXPECT_EQ(messages[2].reasoning, "hm");
  EXPECT_EQ(messages[2].tool_calls[0].arguments, "{\"x\":1}");
  EXPECT_EQ(messages[2].tool_calls[1].arguments, "{\"y\":[2]}");
  EXPECT_EQ(messages[3].name, "g");
  EXPECT_EQ(messages[3].tool_call_id, "call_2");
}

TEST(ApiParse, RefusesBadMessagesWithTheirPath) {
  const Refused cases[] = {
      {R"({})", "messages"},
      {R"({"messages":[]})", "messages"},
      {R"({"messages":"hi"})", "messages"},
      {R"({"messages":[7]})", "messages[0]"},
      {R"({"messages":[{"content":"x"}]})", "messages[0].role"},
      {R"({"messages":[{"role":"king","content":"x"}]})", "messages[0].role"},
      {R"({"messages":[{"role":"user"}]})", "messages[0].content"},
      {R"({"messages":[{"role":"user","content":7}]})", "messages[0].content"},
      {R"({"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"x"}}]}]})",
       "messages[0].content[0]"},
      {R"({"messages":[{"role":"assistant","tool_calls":[{"function":{"name":"f","arguments":"["}}]}]})",
       "messages[0].tool_calls[0].function.arguments"},
  };
  for (const Refused& c : cases) {
    const auto result = parse_chat(c.fields, test_model());
    ASSERT_FALSE(result.has_value()) << c.fields;
    EXPECT_EQ(result.error().param, c.param) << c.fields;
  }
}

TEST(ApiParse, RefusesBodiesThatAreNotJsonObjects) {
  std::string deep;
  for (int i = 0; i < 100'000; ++i) deep += '[';
  for (const std::string& body :
       {std::string(), std::string("{"), std::string("[]"), std::string("\"x\""),
        std::string("{\"a\":\xff}"), std::string("{\"a\":NaN}"), std::string("null"),
        "{\"messages\":" + deep, deep}) {
    const auto result = parse_chat(body, test_model());
    ASSERT_FALSE(result.has_value());
    EXPECT_EQ(result.error().status, 400);
  }
}

TEST(ApiParse, ReadsPromptsOfAllForms) {
  const auto with = [](const char* prompt) {
    return parse_completion(fmt::format(R"({{"prompt":{}}})", prompt), test_model());
  };
  EXPECT_EQ(with("\"a\"")->texts.size(), 1u);
  EXPECT_EQ(with(R"(["a","b"])")->texts.size(), 2u);
  EXPECT_EQ(with("[1,2,3]")->ids, (std::vector<std::vector<TokenId>>{{1, 2, 3}}));
  EXPECT_EQ(with("[[1],[2,3]]")->ids.size(), 2u);
  for (const char* bad : {"\"\"", "[]", "[[]]", "[\"\"]", "[\"a\",1]", "[1,\"a\"]", "[[1],\"a\"]",
                          "[3072]", "[-1]", "[1.5]", "{}", "7", "[[[1]]]", "[null]"}) {
    const auto result = with(bad);
    ASSERT_FALSE(result.has_value()) << bad;
    EXPECT_EQ(result.error().param, "prompt") << bad;
  }
  EXPECT_EQ(completion("")->sampling.max_tokens, 16u);
  EXPECT_EQ(completion(R"("logprobs":3)")->sampling.top_logprobs, 3);
  EXPECT_FALSE(completion(R"("echo":true)").has_value());
  EXPECT_FALSE(completion(R"("best_of":3)").has_value());
  EXPECT_TRUE(completion(R"("best_of":2,"n":2)").has_value());
}

TEST(ApiRoutes, FindsEachRouteAndNamesTheAllowedMethods) {
  EXPECT_EQ(find_route("POST", "/v1/chat/completions").route, Route::kChat);
  EXPECT_EQ(find_route("POST", "/v1/chat/completions/?beta=true").route, Route::kChat);
  EXPECT_EQ(find_route("POST", "http://host:1/v1/completions").route, Route::kCompletions);
  EXPECT_EQ(find_route("HEAD", "/health").route, Route::kHealth);
  EXPECT_EQ(find_route("GET", "/v1/models/a%2Fb").argument, "a/b");
  EXPECT_EQ(find_route("OPTIONS", "/anything").route, Route::kPreflight);
  EXPECT_EQ(find_route("GET", "/v1/chat/completions").error.status, 405);
  EXPECT_EQ(find_route("GET", "/v1/chat/completions").allow, "POST, OPTIONS");
  EXPECT_EQ(find_route("DELETE", "/health").error.status, 405);
  for (const char* path : {"", "/", "*", "//v1/models", "/v1/../v1/models", "/V1/models", "/v1",
                           "/health%2f", "http://x"}) {
    EXPECT_EQ(find_route("GET", path).error.status, 404) << path;
  }
}

TEST(ApiRoutes, RepeatsOnlyHarmlessRequestIds) {
  EXPECT_EQ(usable_request_id("req-1.a_B:2"), "req-1.a_B:2");
  EXPECT_EQ(usable_request_id("a b"), "");
  EXPECT_EQ(usable_request_id("a\x1b[31m"), "");
  EXPECT_EQ(usable_request_id(std::string(129, 'a')), "");
}

}  // namespace
}  // namespace coordinator
