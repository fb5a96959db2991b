// Masks and matchers: the masks say exactly which tokens can follow, whatever was asked before;
// hostile grammars end quickly.
#include <fmt/core.h>
#include <gtest/gtest.h>

#include <ctime>

#include "base/rng.h"
#include "grammar/cache.h"
#include "tests/grammar/texts.h"

namespace grammar {
namespace {

using base::Code;
using base::GrammarKind;

std::unique_ptr<Grammar> schema_with_everything() {
  return *compiled(
      GrammarKind::kJsonSchema,
      R"({"type":"object","properties":{"name":{"type":"string"},"sons":{"type":"array",)"
      R"("items":{"$ref":"#"},"maxItems":2},"age":{"type":"integer"}},"required":["name"]})");
}

bool is_set(std::span<const uint64_t> mask, TokenId id) {
  return (mask[id / 64] >> (id % 64) & 1) != 0;
}

// By the bytes alone, through a grammar that has no masks yet.
void expect_exact(std::span<const uint64_t> mask, const std::vector<TokenId>& before) {
  const std::unique_ptr<Grammar> fresh = schema_with_everything();
  Matcher matcher(*fresh);
  for (TokenId id = 0; id < vocabulary().size(); ++id) {
    std::vector<TokenId> tokens = before;
    tokens.push_back(id);
    EXPECT_EQ(is_set(mask, id), matcher.keeps(tokens))
        << "token " << id << " after " << before.size();
  }
}

TEST(Masks, HoldExactlyTheTokensThatCanFollow) {
  const std::unique_ptr<Grammar> grammar = schema_with_everything();
  Matcher matcher(*grammar);
  const std::string text =
      R"({"name": "ab","sons":[{"name":"", "sons": [{"name":"x"}]},{"name":"y","age":-12}], "age":1})";
  const std::vector<TokenId> tokens = as_bytes(text);
  for (size_t length = 0; length <= tokens.size(); ++length) {
    const std::vector<TokenId> before(tokens.begin(), tokens.begin() + static_cast<long>(length));
    const std::span<const uint64_t> mask = matcher.allowed(before);
    ASSERT_FALSE(mask.empty()) << length;
    expect_exact(std::vector<uint64_t>(mask.begin(), mask.end()), before);
  }
  EXPECT_GT(grammar->counters().reused, 20u) << "inner levels repeat what outer ones have found";
}

TEST(Masks, AllowAnEndOnlyWhereTheGrammarDoes) {
  const auto grammar = *compiled(GrammarKind::kRegex, "a(bc)?");
  Matcher matcher(*grammar);
  EXPECT_FALSE(is_set(matcher.allowed({}), eos()));
  EXPECT_TRUE(is_set(matcher.allowed(as_bytes("a")), eos()));
  EXPECT_FALSE(is_set(matcher.allowed(as_bytes("ab")), eos()));
  EXPECT_EQ(matcher.only_token(as_bytes("abc")), eos());
  EXPECT_FALSE(matcher.keeps(as_bytes("abd")));
  EXPECT_TRUE(matcher.allowed(as_bytes("abd")).empty());
}

TEST(Masks, GiveStopTokensTheRightsOfAnEnd) {
  const auto grammar = *compiled(GrammarKind::kRegex, "ab*");
  Matcher matcher(*grammar, {TokenId{'b'}, TokenId{'\n'}});
  EXPECT_FALSE(is_set(matcher.allowed({}), '\n'));
  EXPECT_TRUE(is_set(matcher.allowed(as_bytes("a")), '\n'));
  EXPECT_TRUE(is_set(matcher.allowed(as_bytes("a")), 'b')) << "as an end";
  EXPECT_TRUE(matcher.may_end(as_bytes("ab")));
  EXPECT_FALSE(matcher.keeps(as_bytes("abb"))) << "nothing follows the end";
  std::vector<TokenId> ended = as_bytes("a\n");
  EXPECT_EQ(matcher.only_token(ended), eos());
}

TEST(Masks, OfOneTokenAreKnownWithoutTheMask) {
  const base::GrammarText texts[] = {
      {GrammarKind::kRegex, "a(bc)?d[ef]xyz(g|h)?"},
      {GrammarKind::kChoice, R"(["abc","abd","b"])"},
      {GrammarKind::kJsonSchema, R"({"type":"object","properties":{"k":{"const":true}},)"
                                 R"("required":["k"],"additionalProperties":false})"}};
  uint32_t single = 0;
  for (const base::GrammarText& text : texts) {
    for (const std::vector<TokenId>& stops :
         {std::vector<TokenId>{}, {TokenId{'g'}, TokenId{'d'}}, {TokenId{'!'}}}) {
      const auto masks = *Grammar::compile(text, vocabulary());
      const auto grammar = *Grammar::compile(text, vocabulary());
      Matcher asked(*masks, stops), matcher(*grammar, stops);
      base::Rng rng(3);
      for (int walk = 0; walk < 20; ++walk) {
        std::vector<TokenId> emitted;
        while (emitted.size() < 20) {
          const std::span<const uint64_t> mask = asked.allowed(emitted);
          std::vector<TokenId> allowed;
          for (TokenId id = 0; id < vocabulary().size(); ++id)
            if (is_set(mask, id)) allowed.push_back(id);
          ASSERT_FALSE(allowed.empty());
          const bool one = allowed.size() == 1;
          EXPECT_EQ(matcher.only_token(emitted), one ? allowed[0] : Matcher::kNoToken);
          single += one ? 1 : 0;
          emitted.push_back(allowed[rng.below(allowed.size())]);
        }
      }
    }
  }
  EXPECT_GT(single, 100u);
}

TEST(Masks, OfALongBoundedTextAreSharedByItsPlaces) {
  const auto grammar = *compiled(GrammarKind::kRegex, "[a-z]{1,2000}!");
  Matcher matcher(*grammar);
  std::vector<TokenId> emitted;
  for (int i = 0; i < 1990; ++i) {
    ASSERT_FALSE(matcher.allowed(emitted).empty());
    emitted.push_back('a' + static_cast<TokenId>(i % 26));
  }
  EXPECT_LE(grammar->distinct_masks(), 40u) << "the first place, the last ones, and all others";
  EXPECT_TRUE(is_set(matcher.allowed(as_bytes("abc")), '!'));
}

TEST(Masks, EndWhereNoTokenSpellsWhatMustFollow) {
  const Vocabulary poor({"a", "b", ""}, {2});
  const auto grammar = *Grammar::compile({GrammarKind::kRegex, "ax"}, poor);
  Matcher matcher(*grammar);
  EXPECT_EQ(matcher.only_token(std::vector<TokenId>{0}), 2u);
  EXPECT_TRUE(matcher.keeps(std::vector<TokenId>{0, 2}));
}

TEST(Matchers, DependOnTheTokensAloneAndCanGoBack) {
  const std::unique_ptr<Grammar> grammar = schema_with_everything();
  Matcher one(*grammar), other(*grammar);
  const std::vector<TokenId> whole = as_bytes(R"({"name":"ab","age":12})");
  const std::vector<TokenId> half(whole.begin(), whole.begin() + 9);
  std::vector<TokenId> wrong = half;
  for (const TokenId id : as_bytes("ab\"]")) wrong.push_back(id);
  const auto copy = [](std::span<const uint64_t> mask) {
    return std::vector<uint64_t>(mask.begin(), mask.end());
  };
  const std::vector<uint64_t> at_half = copy(one.allowed(half));
  EXPECT_TRUE(one.may_end(whole));
  EXPECT_FALSE(one.keeps(wrong));
  EXPECT_EQ(copy(one.allowed(half)), at_half);
  EXPECT_EQ(copy(other.allowed(half)), at_half);
  Matcher copied = one;
  EXPECT_TRUE(copied.may_end(whole));
  EXPECT_EQ(copy(one.allowed(half)), at_half);
}

TEST(Matchers, GoOnAfterTheGrammarHasForgottenItsStates) {
  // Every answer of its own way through the states, so that many of them are made.
  const auto grammar = *compiled(GrammarKind::kRegex, "([ab]*a[ab]{16}c)*");
  Matcher kept(*grammar);
  const std::vector<TokenId> tokens = as_bytes("babababababababababac");
  ASSERT_TRUE(kept.may_end(tokens));
  const uint64_t age = grammar->states().age();
  base::Rng rng(7);
  for (int i = 0; i < 6000 && grammar->states().age() == age; ++i) {
    Matcher matcher(*grammar);
    std::vector<TokenId> random;
    for (int n = 0; n < 40; ++n) random.push_back(rng.chance(0.5) ? 'a' : 'b');
    ASSERT_TRUE(matcher.keeps(random));
  }
  ASSERT_NE(grammar->states().age(), age) << "nothing was forgotten";
  EXPECT_TRUE(kept.may_end(tokens));
  EXPECT_FALSE(kept.keeps(as_bytes("c")));
}

TEST(Matchers, TellWhatIsForced) {
  const std::unique_ptr<Grammar> grammar = schema_with_everything();
  Matcher matcher(*grammar);
  EXPECT_EQ(matcher.forced_bytes({}), "{");
  EXPECT_EQ(matcher.forced_bytes(as_bytes("{\"n")), "ame\":");
  EXPECT_EQ(matcher.forced_bytes(as_bytes(R"({"name":"a)")), "");
  EXPECT_EQ(matcher.forced_bytes(as_bytes(R"({"name":"a"})")), "") << "it may end";
}

TEST(Cache, KeepsWhatIsInUseAndForgetsTheRest) {
  Cache cache(2);
  const auto put = [&](const std::string& pattern) {
    return cache.insert({GrammarKind::kRegex, pattern}, *compiled(GrammarKind::kRegex, pattern));
  };
  Cache::Handle kept = put("a");
  for (const char* pattern : {"b", "c", "d", "e"}) put(pattern);
  EXPECT_LE(cache.size(), 4u);
  EXPECT_EQ(cache.users(), 1u);
  EXPECT_TRUE(cache.find({GrammarKind::kRegex, "a"}));
  EXPECT_FALSE(cache.find({GrammarKind::kRegex, "b"}));
  Cache::Handle moved = std::move(kept);
  EXPECT_TRUE(takes(*moved, "a"));
  EXPECT_EQ(cache.take({GrammarKind::kRegex, "a"}), nullptr) << "somebody uses it";
  moved = {};
  EXPECT_EQ(cache.users(), 0u);
}

TEST(Cache, LendsAGrammarToOneAtATime) {
  Cache cache(2);
  const base::GrammarText text{GrammarKind::kRegex, "ab"};
  EXPECT_EQ(cache.take(text), nullptr);
  cache.insert(text, *compiled(text.kind, text.text));
  std::unique_ptr<Grammar> taken = cache.take(text);
  ASSERT_NE(taken, nullptr);
  const Grammar* const same = taken.get();
  EXPECT_EQ(cache.take(text), nullptr);
  cache.insert(text, std::move(taken));
  EXPECT_EQ(cache.take(text).get(), same);
}

std::string times(const std::string& text, int count) {
  std::string out;
  for (int i = 0; i < count; ++i) out += text;
  return out;
}

TEST(Hostile, GrammarsEndOrAreRefusedWithin300Milliseconds) {
  std::string words = "[\"w0\"", ways = "w0", optional = "{\"properties\":{\"p0\":{}";
  for (int i = 1; i < 1000; ++i) {
    words += fmt::format(",\"w{}\"", i);
    ways += fmt::format("|w{}", i);
    optional += fmt::format(",\"p{}\":{{}}", i);
  }
  std::string chain = "root ::= r0\n";
  for (int i = 0; i < 1500; ++i) chain += fmt::format("r{} ::= r{}? r{}?\n", i, i + 1, i + 1);
  chain += "r1500 ::= \"x\"\n";
  std::string doubling = R"({"$ref":"#/$defs/a0","$defs":{"a30":{"const":1})";
  for (int i = 0; i < 30; ++i) {
    doubling += fmt::format(R"(,"a{}":{{"type":"array","prefixItems":[{{"$ref":"#/$defs/a{}"}},)"
                            R"({{"$ref":"#/$defs/a{}"}}],"minItems":2}})",
                            i, i + 1, i + 1);
  }
  const struct {
    const char* what;
    GrammarKind kind;
    std::string text;
    bool refused;
  } cases[] = {
      {"nested stars", GrammarKind::kRegex, "(a+)+$", false},
      {"deeper stars", GrammarKind::kRegex, times("(", 60) + "a" + times("*)*", 60), false},
      {"empty loops", GrammarKind::kRegex, "(|a|())*(|b)+", false},
      {"a long repetition", GrammarKind::kRegex, "a{1,1000000}", true},
      {"a repetition of repetitions", GrammarKind::kRegex, "((((a{1,100}){1,100}){1,100}){1,100})",
       true},
      {"repeated nothing", GrammarKind::kRegex, "(((()){90000}){90000})*", true},
      {"subsets", GrammarKind::kRegex, "[ab]*a[ab]{2000}", false},
      {"overlapping repetitions", GrammarKind::kRegex, "(.{0,300}){0,100}x", true},
      {"groups", GrammarKind::kRegex, times("(", 30000) + times(")", 30000), true},
      {"an open class", GrammarKind::kRegex, times("[", 60000), true},
      {"alternatives", GrammarKind::kRegex, ways, false},
      {"words", GrammarKind::kChoice, words + "]", false},
      {"too long", GrammarKind::kRegex, times("a", 70000), true},
      {"nested arrays", GrammarKind::kJsonSchema,
       times("{\"items\":", 7000) + "true" + times("}", 7000), true},
      {"a reference to itself", GrammarKind::kJsonSchema, R"({"$ref":"#"})", true},
      {"a reference in a circle", GrammarKind::kJsonSchema,
       R"({"$ref":"#/$defs/a","$defs":{"a":{"$ref":"#/$defs/b"},"b":{"anyOf":[{"$ref":"#/$defs/a"}]}}})",
       true},
      {"optional members", GrammarKind::kJsonSchema, optional + "}}", false},
      {"a tree of two branches", GrammarKind::kJsonSchema, doubling + "}}", false},
      {"many items", GrammarKind::kJsonSchema,
       R"({"items":{"items":{"items":{"type":"string","minLength":1000},"minItems":1000},)"
       R"("minItems":1000},"minItems":100000})",
       true},
      {"left recursion", GrammarKind::kEbnf, "root ::= root \"a\" | \"a\"", true},
      {"hidden left recursion", GrammarKind::kEbnf,
       "root ::= e root \"a\" | \"a\"\ne ::= \"\" | \"b\"", true},
      {"no end", GrammarKind::kEbnf, "root ::= \"a\" root", true},
      {"ambiguity", GrammarKind::kEbnf, "root ::= s\ns ::= \"a\" s s | \"a\" s | \"a\"", false},
      {"a chain of empty rules", GrammarKind::kEbnf, chain, true},
      {"a rule of rules", GrammarKind::kEbnf, "root ::= (a{1000}){1000}\na ::= \"x\"", true},
      {"deep groups", GrammarKind::kEbnf, "root ::= " + times("(", 30000), true},
  };
  for (const auto& each : cases) {
    const std::clock_t begin = std::clock();  // CPU time: others of the machine are not its fault
    const auto made = compiled(each.kind, each.text);
    EXPECT_LT((std::clock() - begin) * 1000 / CLOCKS_PER_SEC, 300) << each.what;
    EXPECT_EQ(!made.has_value(), each.refused)
        << each.what << ": " << (made ? "taken" : made.error().what);
    if (!made) {
      EXPECT_LT(made.error().what.size(), 400u) << "a sentence, not a book";
    }
  }
}

TEST(Hostile, ATextThatCanBeReadInTooManyWaysEndsThere) {
  const auto grammar =
      *compiled(GrammarKind::kEbnf, "root ::= s\ns ::= \"a\" s \"b\" s | \"a\" s \"c\" | \"a\"");
  Matcher matcher(*grammar);
  std::vector<TokenId> tokens;
  while (tokens.size() < 5000 && matcher.keeps(tokens)) tokens.push_back('a');
  EXPECT_LT(tokens.size(), 5000u) << "nesting is bounded";
  tokens.pop_back();
  EXPECT_TRUE(matcher.keeps(tokens));
}

}  // namespace
}  // namespace grammar
