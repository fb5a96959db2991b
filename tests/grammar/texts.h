// What the tests of grammars share: a vocabulary of bytes and common pieces, and whether a text
// keeps to a grammar.
#pragma once
#include <string>
#include <vector>

#include "grammar/grammar.h"

namespace grammar {

// Token t < 256 is the byte t; then pieces as a tokenizer has them; the last id is EOS.
inline Vocabulary small_vocabulary() {
  std::vector<std::string> bytes;
  for (int byte = 0; byte < 256; ++byte) bytes.emplace_back(1, static_cast<char>(byte));
  for (const char* piece :
       {"\"",  "\":",    "\": ",  "{\"",      "\"}",  "\",",          "\", \"",
        "},",  "}, {\"", "[\"",   "\"]",      "[[",   "]]",           "{}",
        "[]",  ": ",     ", ",    "ab",       "abc",  "abcd",         "name",
        "age", "true",   "false", "null",     "12",   "123",          "0.5",
        "-1",  "\n  ",   "  ",    "\xc3\xa9", "\xc3", "\xe2\x82\xac", "\xf0\x9f\x98\x80",
        "e",   "th",     "the",   " the",     "\\n",  "\\u00",        "x\"}",
        "1}",  "1, ",    "a\": 1"}) {
    bytes.emplace_back(piece);
  }
  bytes.emplace_back();
  const auto eos = static_cast<TokenId>(bytes.size() - 1);
  return Vocabulary(std::move(bytes), {eos});
}

inline const Vocabulary& vocabulary() {
  static const Vocabulary made = small_vocabulary();
  return made;
}
inline TokenId eos() { return vocabulary().eos()[0]; }

inline std::vector<TokenId> as_bytes(std::string_view text) {
  std::vector<TokenId> out;
  for (const char c : text) out.push_back(static_cast<uint8_t>(c));
  return out;
}

inline base::Result<std::unique_ptr<Grammar>> compiled(base::GrammarKind kind,
                                                       const std::string& text) {
  return Grammar::compile({kind, text}, vocabulary());
}

// Whether the whole text satisfies the grammar.
inline bool takes(Grammar& grammar, std::string_view text) {
  Matcher matcher(grammar);
  return matcher.may_end(as_bytes(text));
}
inline bool begins(Grammar& grammar, std::string_view text) {
  Matcher matcher(grammar);
  return matcher.keeps(as_bytes(text));
}

}  // namespace grammar
