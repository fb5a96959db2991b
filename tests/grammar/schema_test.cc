// JSON Schema: which values a schema takes, what is refused and how; and that whatever is drawn
// under the masks of random schemas is JSON that satisfies them.
#include <fmt/core.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "tests/grammar/random_schemas.h"
#include "tests/grammar/texts.h"
#include "tests/grammar/validator.h"

namespace grammar {
namespace {

using base::Code;
using base::GrammarKind;

void expect_takes(const std::string& schema, std::vector<std::string> yes,
                  std::vector<std::string> no) {
  SCOPED_TRACE(schema);
  const auto made = compiled(GrammarKind::kJsonSchema, schema);
  ASSERT_TRUE(made.has_value()) << made.error().what;
  for (const std::string& text : yes) EXPECT_TRUE(takes(**made, text)) << text;
  for (const std::string& text : no) EXPECT_FALSE(takes(**made, text)) << text;
}

TEST(JsonObject, IsAnyObjectAndNothingElse) {
  const auto made = compiled(GrammarKind::kJsonObject, "");
  ASSERT_TRUE(made.has_value()) << made.error().what;
  for (const char* text :
       {"{}", R"({"a":1})", R"({"a": [1, -2.5e+10, "x\u00e9\n", null], "b": {"c": true}})",
        "{\n  \"a\": {\n    \"b\": []\n  }\n}"})
    EXPECT_TRUE(takes(**made, text)) << text;
  for (const char* text : {"", "[]", "{", R"({"a":01})", R"({"a":1,})", R"({a:1})", R"({"a":"\x"})",
                           R"({"a":"\ud800"})", "{\"a\":\"\n\"}", "{} ", "{   }"})
    EXPECT_FALSE(takes(**made, text)) << text;
}

TEST(JsonSchema, TakesWhatTheKeywordsSay) {
  expect_takes(R"({"type":"object","properties":{"a":{"type":"integer"},"b":{"type":"string"}},)"
               R"("required":["a"],"additionalProperties":false})",
               {R"({"a":1})", R"({"a":-10,"b":"x"})", R"({ "a": 0, "b": "" })"},
               {"{}", R"({"b":"x"})", R"({"b":"x","a":1})", R"({"a":1.5})", R"({"a":1,"c":2})",
                R"({"a":1,})"});
  expect_takes(R"({"type":"object","properties":{"ab":{"type":"null"}},"additionalProperties":)"
               R"({"type":"boolean"}})",
               {"{}", R"({"ab":null})", R"({"ab":null,"a":true,"abc":false})", R"({"x":true})"},
               {R"({"ab":true})", R"({"x":true,"ab":false})", R"({"a":1})", R"({"\u0061b":true})"});
  expect_takes(R"({"type":"array","items":{"enum":[1,"a"]},"minItems":1,"maxItems":3})",
               {"[1]", R"([1, "a",1])"}, {"[]", "[1,1,1,1]", "[2]", "[1,]"});
  expect_takes(R"({"prefixItems":[{"type":"integer"},{"type":"null"}],"items":{"type":"boolean"},)"
               R"("minItems":1})",
               {"[1]", "[1,null]", "[1,null,true,false]"},
               {"[]", "[null]", "[1,true]", "[1,null,1]"});
  expect_takes(R"({"type":"string","minLength":2,"maxLength":3})",
               {R"("ab")", "\"\xc3\xa9\xe2\x82\xac\"", R"("\n\u00e9x")"}, {R"("a")", R"("abcd")"});
  expect_takes(R"({"type":"string","pattern":"^a\"b\\d$"})", {R"("a\"b1")"},
               {R"("a"b1")", R"("xa\"b1")"});
  expect_takes(R"({"type":"string","pattern":"b"})", {R"("b")", R"("abc")"}, {R"("ac")"});
  expect_takes(R"({"type":"integer","minimum":-12,"exclusiveMaximum":105})",
               {"-12", "-1", "0", "9", "99", "104"}, {"-13", "105", "1000", "01", "1.0", "-0"});
  expect_takes(R"({"type":"number","minimum":-0.25,"maximum":12.5})",
               {"-0.25", "-0.2", "0", "0.001", "12", "12.5", "12.49", "7.99"},
               {"-0.26", "-1", "12.51", "12.500001", "13", "1e1"});
  expect_takes(R"({"type":"number","exclusiveMinimum":1.5})", {"1.51", "1.500001", "2", "1000.5"},
               {"1.5", "1", "1.50", "0", "-2"});
  expect_takes(R"({"anyOf":[{"const":{"a":[1]}},{"type":["integer","null"]}]})",
               {R"({"a": [1]})", "5", "null"}, {"{}", "true"});
  expect_takes(
      R"({"allOf":[{"$ref":"#/$defs/x"},{"required":["b"]}],"properties":{"b":{"const":2}},)"
      R"("$defs":{"x":{"type":"object","properties":{"a":{"const":1}}}}})",
      {R"({"b":2})", R"({"b":2,"a":1})"}, {R"({"a":1})"});
  expect_takes(R"({"type":"object","properties":{"sons":{"type":"array","items":{"$ref":"#"}}},)"
               R"("required":["sons"]})",
               {R"({"sons":[]})", R"({"sons":[{"sons":[]},{"sons":[{"sons":[]}]}]})"},
               {"{}", R"({"sons":[1]})"});
  expect_takes("true", {"1", R"([{"a":null}])"}, {"", "x"});
}

TEST(JsonSchema, RefusesWithTheReason) {
  struct {
    const char* schema;
    Code code;
    const char* says;
  } const cases[] = {
      {"{", Code::kInvalidArgument, "schema"},
      {"[]", Code::kInvalidArgument, "object"},
      {R"({"type":123})", Code::kInvalidArgument, "type"},
      {R"({"type":"hiccup"})", Code::kInvalidArgument, "type"},
      {R"({"$ref":"#"})", Code::kUnsupported, "itself"},
      {R"({"$ref":"#/$defs/x"})", Code::kInvalidArgument, "points to nothing"},
      {R"({"$ref":"http://x/y"})", Code::kInvalidArgument, "points to nothing"},
      {R"({"type":"object","properties":{"a":{"$ref":"#"}},"required":["a"]})",
       Code::kInvalidArgument, "no text"},
      {R"({"type":"object","properties":{"a":{"not":{}}}})", Code::kUnsupported, "#/properties/a"},
      {R"({"type":"object","patternProperties":{}})", Code::kUnsupported, "patternProperties"},
      {R"({"type":"array","uniqueItems":true})", Code::kUnsupported, "uniqueItems"},
      {R"({"type":"integer","multipleOf":5})", Code::kUnsupported, "multipleOf"},
      {R"({"type":"string","format":"colour"})", Code::kUnsupported, "colour"},
      {R"x({"type":"string","pattern":"(?=a)"})x", Code::kUnsupported, "look-around"},
      {R"({"type":"string","pattern":"a","maxLength":3})", Code::kUnsupported, "pattern"},
      {R"({"oneOf":[{"type":"integer"},{"type":"number"}]})", Code::kUnsupported, "oneOf"},
      {R"({"type":"integer","minimum":5,"maximum":4})", Code::kInvalidArgument, "no text"},
      {R"({"type":"array","minItems":4,"maxItems":3})", Code::kInvalidArgument, "items"},
      {R"({"enum":[]})", Code::kInvalidArgument, "enum"},
      {R"({"type":"string","enum":[1]})", Code::kInvalidArgument, "type"},
  };
  for (const auto& [schema, code, says] : cases) {
    const auto made = compiled(GrammarKind::kJsonSchema, schema);
    ASSERT_FALSE(made.has_value()) << schema;
    EXPECT_EQ(made.error().code, code) << schema << ": " << made.error().what;
    EXPECT_NE(made.error().what.find(says), std::string::npos)
        << schema << ": " << made.error().what;
  }
}

TEST(JsonSchema, TakesOneOfWhoseSchemasExcludeEachOther) {
  expect_takes(
      R"({"oneOf":[{"type":"object","properties":{"t":{"const":1}},"required":["t"]},)"
      R"({"type":"object","properties":{"t":{"const":2},"u":{"type":"null"}},"required":["t"]},)"
      R"({"type":"array","items":{"type":"null"}}]})",
      {R"({"t":1})", R"({"t":2,"u":null})", "[null]"}, {R"({"t":1,"u":null})", R"({"t":3})"});
}

// Draws among the allowed tokens; after a while what closes is preferred.
std::vector<TokenId> random_answer(Matcher& matcher, base::Rng& rng) {
  constexpr size_t kLoose = 60, kMost = 4000;
  static const std::vector<TokenId> kClosers = [] {
    std::vector<TokenId> out = {eos()};
    for (const char c : {'"', '}', ']', 'b', 'Z', '0', '\\', ' '})
      out.push_back(static_cast<uint8_t>(c));
    return out;
  }();
  std::vector<TokenId> tokens;
  while (tokens.size() < kMost && (tokens.empty() || tokens.back() != eos())) {
    const std::span<const uint64_t> mask = matcher.allowed(tokens);
    const auto is_allowed = [&](TokenId id) { return (mask[id / 64] >> (id % 64) & 1) != 0; };
    std::vector<TokenId> ids;
    const bool close = rng.chance(tokens.size() > kLoose ? 0.9 : 0.2);
    if (close) {
      std::ranges::copy_if(kClosers, std::back_inserter(ids), is_allowed);
      if (!ids.empty() && (ids[0] == eos() || ids[0] == '"')) ids.resize(1);
    }
    for (TokenId id = 0; ids.empty() && id < vocabulary().size(); ++id)
      if (is_allowed(id)) ids.push_back(id);
    if (!close)
      for (TokenId id = ids[0] + 1; id < vocabulary().size(); ++id)
        if (is_allowed(id)) ids.push_back(id);
    tokens.push_back(ids[rng.below(ids.size())]);
  }
  return tokens;
}

std::string text_of(const std::vector<TokenId>& tokens) {
  std::string text;
  for (const TokenId id : tokens) text += vocabulary().bytes(id);
  return text;
}

void expect_that_answers_satisfy_random_schemas(uint64_t schemas) {
  constexpr uint64_t kSamples = 5;
  base::Rng rng(20);
  for (uint64_t i = 0; i < schemas; ++i) {
    const std::string text = random_schema(rng).dump();
    const auto made = compiled(GrammarKind::kJsonSchema, text);
    ASSERT_TRUE(made.has_value()) << made.error().what << "\n" << text;
    const nlohmann::json schema = nlohmann::json::parse(text);
    for (uint64_t sample = 0; sample < kSamples; ++sample) {
      Matcher matcher(**made);
      const std::vector<TokenId> tokens = random_answer(matcher, rng);
      ASSERT_EQ(tokens.back(), eos()) << "no end: " << text_of(tokens) << "\n" << text;
      const std::string answer = text_of(tokens);
      const nlohmann::json value = nlohmann::json::parse(answer, nullptr, false);
      ASSERT_FALSE(value.is_discarded()) << answer << "\n" << text;
      const std::string why = violation(schema, schema, value);
      ASSERT_EQ(why, "") << answer << "\n" << text;
    }
  }
}

TEST(JsonSchema, WhateverIsDrawnUnderTheMasksOfSomeSchemasSatisfiesThem) {
  expect_that_answers_satisfy_random_schemas(50);
}

TEST(JsonSchema, WhateverIsDrawnUnderTheMasksOfAThousandSchemasSatisfiesThem) {
  expect_that_answers_satisfy_random_schemas(1000);
}

}  // namespace
}  // namespace grammar
