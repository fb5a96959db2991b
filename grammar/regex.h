// Regular expressions to rules. The usual subset: literals, escapes (\d \w \s \D \W \S \n \t \r \f
// \v \0 \xHH \uHHHH \u{H…} and any punctuation), classes, '.', groups (plain, (?:…), named),
// alternation, the quantifiers * + ? {m} {m,} {m,n}, each also lazy. '^' and '$' at the ends of the
// pattern or of its outermost alternatives. Refused: look-around, back references, \b, \p, flags,
// possessive quantifiers, anchors elsewhere.
#pragma once
#include <string_view>

#include "base/result.h"
#include "grammar/rules.h"

namespace grammar {

struct RegexOptions {
  // The pattern need only match somewhere in the text, unless it is anchored (JSON Schema's
  // `pattern`); else it is the whole text's.
  bool search = false;
  // Characters are written as inside a JSON string: quotes, backslashes and control characters as
  // escapes.
  bool json_string = false;
};

base::Result<ExprId> parse_regex(Rules& rules, std::string_view pattern,
                                 const RegexOptions& options);

// One character of the set, or this text, written as inside a JSON string.
ExprId json_characters(Rules& rules, const CodeSet& set);
std::string json_escaped(std::string_view text);

}  // namespace grammar
