// EBNF to rules: GBNF as llama.cpp and xgrammar write it, and the part of Lark that says the same.
//
//   root ::= item ("," ws item)*      a rule; its body goes on over line ends inside parentheses,
//   item ::= [a-z]{1,8} | "x" "y"?    after '|' and in lines that begin with '|' or do not begin
//   ws   ::= " "*                     a rule
//   # a comment                       // as well
//
// ':' may stand for '::=', 'start' for 'root', /…/ is a regular expression (regex.h). Quantifiers
// ? * + {m} {m,} {m,n}. Strings have the escapes of C and \u, \U. Refused: left recursion,
// look-ahead, Lark's directives (%…), priorities, templates, aliases and case-blind strings.
#pragma once
#include <string_view>

#include "base/result.h"
#include "grammar/rules.h"

namespace grammar {

// Defines the root rule.
base::Status add_ebnf(Rules& rules, std::string_view text);

}  // namespace grammar
