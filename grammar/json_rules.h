// JsonRules: the rules of JSON itself, made when first asked for. What they write is JSON that
// every parser takes: numbers fit a double, integers 64 bits, strings are UTF-8 without lone
// surrogates. Between tokens at most one space, or a line end and up to 20 blanks, so that an
// answer cannot consist of blanks.
#pragma once
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "grammar/rules.h"

namespace grammar {

class JsonRules {
 public:
  explicit JsonRules(Rules& rules) : rules_(rules) {}

  ExprId blank();
  ExprId value();  // any
  ExprId object();
  ExprId array();
  ExprId string();
  ExprId number();
  ExprId integer();
  ExprId boolean();
  ExprId null() { return rules_.bytes("null"); }
  // Of `least` to `most` characters.
  ExprId string_of(uint32_t least, uint32_t most);
  // A key and its colon, of any name but these.
  ExprId key_except(const std::vector<std::string>& names);
  ExprId key(std::string_view name);
  // `least` to `most` of `part` with commas between, and the blanks around.
  ExprId list(ExprId part, uint32_t least, uint32_t most);
  ExprId comma() { return rules_.sequence({rules_.bytes(","), blank()}); }
  // {…} and […] around what may be empty.
  ExprId enclosed(const char* open, ExprId content, const char* close);

 private:
  // The rule of that name; `make` gives its body when it is new.
  template <class Make>
  ExprId named(const char* name, Make make);
  ExprId character();
  ExprId key_tail(const std::vector<std::u32string>& names, size_t depth);

  Rules& rules_;
  std::map<std::string, RuleId> known_;
};

// One of these texts; what they begin with in common stands once.
ExprId one_of(Rules& rules, std::vector<std::string> texts);

}  // namespace grammar
