// The front ends: which texts a grammar takes.
#include <gtest/gtest.h>

#include "tests/grammar/texts.h"

namespace grammar {
namespace {

using base::Code;
using base::GrammarKind;

struct Case {
  GrammarKind kind;
  std::string text;
  std::vector<std::string> yes, no;
};

void check(const Case& each) {
  SCOPED_TRACE(each.text);
  const auto made = compiled(each.kind, each.text);
  ASSERT_TRUE(made.has_value()) << made.error().what;
  for (const std::string& text : each.yes) EXPECT_TRUE(takes(**made, text)) << text;
  for (const std::string& text : each.no) EXPECT_FALSE(takes(**made, text)) << text;
}

TEST(Regex, TakesWhatThePatternSays) {
  const auto regex = [](const char* pattern, std::vector<std::string> yes,
                        std::vector<std::string> no) {
    check({GrammarKind::kRegex, pattern, std::move(yes), std::move(no)});
  };
  regex("abc", {"abc"}, {"", "ab", "abcd"});
  regex("a|bc|", {"a", "bc", ""}, {"b", "abc"});
  regex("[a-c]+\\d{2,3}", {"a12", "cab123"}, {"12", "a1", "a1234"});
  regex("^(foo|bar)?$", {"", "foo", "bar"}, {"foobar"});
  regex("[^\\x00-\\x1f\"]*", {"", "h\xc3\xa9llo \xf0\x9f\x98\x80"}, {"\"", "\n", "\xc3"});
  regex(".", {"a", "\xc3\xa9", "\xe2\x82\xac", "\xf0\x9f\x98\x80"}, {"", "\n", "ab", "\xa9"});
  regex("\\w+@\\w+\\.(com|org)", {"a_1@b.com"}, {"a@b.net", "@b.com"});
  regex("(?:ab){2,}?c", {"ababc", "abababc"}, {"abc"});
  regex("(a+)+", {"a", "aaaa"}, {"", "b"});
  regex("(a*)*", {"", "aaaa"}, {"b"});
  regex("a{0}b", {"b"}, {"ab"});
  regex("x{,3}", {"x{,3}"}, {"x"});
  regex("[\\]\\-a]+", {"]-a"}, {"b"});
  regex("[a-]+", {"a-"}, {"b"});
  regex("\\u00e9\\u{1F600}", {"\xc3\xa9\xf0\x9f\x98\x80"}, {"\xc3\xa9"});
  regex("[\xc3\xa0-\xc3\xbf]", {"\xc3\xa9"}, {"a", "\xc3"});
}

TEST(Regex, RefusesWhatItDoesNotHave) {
  const std::pair<const char*, Code> cases[] = {
      {"(?=a)b", Code::kUnsupported},    {"(?<!a)b", Code::kUnsupported},
      {"(a)\\1", Code::kUnsupported},    {"\\bword", Code::kUnsupported},
      {"\\p{L}", Code::kUnsupported},    {"(?i)a", Code::kUnsupported},
      {"a++", Code::kUnsupported},       {"a^b", Code::kUnsupported},
      {"(a", Code::kInvalidArgument},    {"a)", Code::kInvalidArgument},
      {"[a", Code::kInvalidArgument},    {"*a", Code::kInvalidArgument},
      {"[b-a]", Code::kInvalidArgument}, {"a{3,2}", Code::kInvalidArgument},
      {"\\xg0", Code::kInvalidArgument}, {"\\", Code::kInvalidArgument},
      {"\xff", Code::kInvalidArgument},  {"[]", Code::kInvalidArgument}};
  for (const auto& [pattern, code] : cases) {
    const auto made = compiled(GrammarKind::kRegex, pattern);
    ASSERT_FALSE(made.has_value()) << pattern;
    EXPECT_EQ(made.error().code, code) << pattern << ": " << made.error().what;
  }
}

TEST(Choice, TakesOneOfTheTexts) {
  check({GrammarKind::kChoice,
         R"(["yes","no","yesterday","n\u00f6"])",
         {"yes", "no", "yesterday", "n\xc3\xb6"},
         {"", "ye", "yess", "n"}});
  EXPECT_FALSE(compiled(GrammarKind::kChoice, "[]"));
  EXPECT_FALSE(compiled(GrammarKind::kChoice, "[1]"));
  EXPECT_FALSE(compiled(GrammarKind::kChoice, "\"a\""));
}

TEST(Ebnf, TakesWhatTheRulesSay) {
  check({GrammarKind::kEbnf,
         "# a list\nroot ::= item (\",\" ws item)*\n  | \"none\" // or nothing\n"
         "item ::= [a-z]{1,3} | \"\\\"\" [^\"\\n]* \"\\\"\"\nws ::= \" \"*\n",
         {"ab", "ab, c,def", "none", "\"x y\",z"},
         {"", "abcd", "ab,", "\"x"}});
  check({GrammarKind::kEbnf,
         "root ::= \"(\" root? \")\" root?",
         {"()", "(())()", "()()()"},
         {"", "(", "())"}});
  check({GrammarKind::kEbnf,
         "start: expr\nexpr: NUMBER (\"+\" NUMBER)*\nNUMBER: /[0-9]+/",
         {"1", "12+3"},
         {"", "+1", "1+"}});
  check({GrammarKind::kEbnf,
         "root ::= 'a' b{2,} \n b ::= \"\\x62\" | \"\\u00e9\"",
         {"abb", "ab\xc3\xa9"},
         {"ab", "a"}});
}

TEST(Ebnf, RefusesWhatItDoesNotHave) {
  const std::pair<const char*, Code> cases[] = {
      {"root ::= root \"a\" | \"a\"", Code::kUnsupported},
      {"root ::= a\na ::= b? c\nc ::= a | \"x\"\nb ::= \"b\"", Code::kUnsupported},
      {"root ::= \"a\" b", Code::kInvalidArgument},
      {"item ::= \"a\"", Code::kInvalidArgument},
      {"root ::= \"a", Code::kInvalidArgument},
      {"root ::= (\"a\"", Code::kInvalidArgument},
      {"root ::= \"a\" root", Code::kInvalidArgument},
      {"root ::= (=\"a\") \"a\"", Code::kUnsupported},
      {"%import common.WS\nstart: WS", Code::kUnsupported},
      {"root ::= \"a\"i", Code::kUnsupported},
      {"root ::= \"a\"\nroot ::= \"b\"", Code::kInvalidArgument},
      {"", Code::kInvalidArgument}};
  for (const auto& [text, code] : cases) {
    const auto made = compiled(GrammarKind::kEbnf, text);
    ASSERT_FALSE(made.has_value()) << text;
    EXPECT_EQ(made.error().code, code) << text << ": " << made.error().what;
  }
}

}  // namespace
}  // namespace grammar
