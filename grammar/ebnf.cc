#include "grammar/ebnf.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "grammar/automaton.h"
#include "grammar/number.h"
#include "grammar/regex.h"
#include "model/utf8.h"

namespace grammar {

using base::Code;
using base::Result;
using base::Status;

namespace {

bool is_name(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
         c == '-';
}

class Parser {
 public:
  Parser(Rules& rules, std::string_view text) : rules_(rules), text_(text) {}

  Status run() {
    for (skip(); at_ < text_.size(); skip()) TRY(rule());
    for (const auto& [name, rule] : named_)
      if (!rule.defined) return bad("the rule '{}' is not defined", name);
    for (const char* root : {"root", "start"}) {
      const auto found = named_.find(root);
      if (found == named_.end()) continue;
      rules_.set_root(found->second.id);
      return {};
    }
    return bad("there is no rule 'root'");
  }

 private:
  struct Named {
    RuleId id = 0;
    bool defined = false;
  };

  template <class... Args>
  tl::unexpected<base::Error> bad(fmt::format_string<Args...> text, Args&&... args) const {
    const auto line =
        1 + std::count(text_.begin(), text_.begin() + static_cast<ptrdiff_t>(at_), '\n');
    return base::fail(Code::kInvalidArgument, "the grammar is wrong at line {}: {}", line,
                      fmt::format(text, std::forward<Args>(args)...));
  }
  tl::unexpected<base::Error> refuse(std::string_view what) const {
    const auto line =
        1 + std::count(text_.begin(), text_.begin() + static_cast<ptrdiff_t>(at_), '\n');
    return base::fail(Code::kUnsupported, "the grammar uses {} in line {}, which is not supported",
                      what, line);
  }

  char peek(size_t ahead = 0) const {
    return at_ + ahead < text_.size() ? text_[at_ + ahead] : '\0';
  }
  bool take(std::string_view text) {
    if (!text_.substr(at_).starts_with(text)) return false;
    at_ += text.size();
    return true;
  }
  // Blanks, line ends and comments.
  void skip() {
    for (; at_ < text_.size(); ++at_) {
      const char c = text_[at_];
      if (c == '#' || (c == '/' && peek(1) == '/')) {
        at_ = std::min(text_.find('\n', at_), text_.size());
        if (at_ == text_.size()) return;
      } else if (c != ' ' && c != '\t' && c != '\n' && c != '\r') {
        return;
      }
    }
  }
  std::string name() {
    const size_t begin = at_;
    while (is_name(peek())) ++at_;
    return std::string(text_.substr(begin, at_ - begin));
  }
  // A rule begins here: name, blanks, '::=' or ':'.
  bool at_rule() const {
    size_t i = at_;
    while (i < text_.size() && is_name(text_[i])) ++i;
    if (i == at_) return false;
    while (i < text_.size() && (text_[i] == ' ' || text_[i] == '\t')) ++i;
    return i < text_.size() && text_[i] == ':';
  }

  RuleId rule_of(const std::string& name) {
    const auto [it, fresh] = named_.try_emplace(name);
    if (fresh) it->second.id = rules_.declare(name);
    return it->second.id;
  }

  Status rule() {
    if (peek() == '%') return refuse("a directive of Lark");
    if (peek() == '?' || peek() == '!') ++at_;  // Lark: how the tree is shaped
    const std::string title = name();
    if (title.empty()) return bad("expected a rule, found '{}'", peek());
    skip();
    if (peek() == '.' || peek() == '{') return refuse("a priority or a template");
    if (!take("::=") && !take(":")) return bad("'::=' is missing after '{}'", title);
    const RuleId id = rule_of(title);
    if (std::exchange(named_[title].defined, true)) return bad("the rule '{}' stands twice", title);
    const ExprId body = TRY(alternatives());
    rules_.define(id, body);
    skip();
    if (at_ < text_.size() && !at_rule() && peek() != '%' && peek() != '?' && peek() != '!')
      return bad("unexpected '{}'", peek());
    return {};
  }

  Result<ExprId> alternatives() {
    std::vector<ExprId> ways;
    do ways.push_back(TRY(sequence()));
    while (take("|"));
    return rules_.any(std::move(ways));
  }

  Result<ExprId> sequence() {
    std::vector<ExprId> parts;
    for (;;) {
      skip();
      const char c = peek();
      const bool over = at_ >= text_.size() || c == '|' || c == ')' || at_rule() ||
                        ((c == '?' || c == '!') && is_name(peek(1))) || c == '%';
      if (over) return rules_.sequence(std::move(parts));
      if (rules_.size() > Limits::kExpressions)
        return base::fail(Code::kTooLarge, "the grammar has more than {} parts",
                          Limits::kExpressions);
      parts.push_back(TRY(repeated()));
    }
  }

  Result<ExprId> repeated() {
    ExprId part = TRY(single());
    for (;;) {
      if (take("*")) {
        part = rules_.repeat(part, 0, kUnlimited);
      } else if (take("+")) {
        part = rules_.repeat(part, 1, kUnlimited);
      } else if (peek() == '?' && !is_name(peek(1))) {
        ++at_;
        part = rules_.optional(part);
      } else if (take("{")) {
        const uint32_t least = number();
        skip();
        uint32_t most = least;
        if (take(",")) {
          skip();
          most = peek() == '}' ? kUnlimited : number();
        }
        skip();
        if (!take("}") || most < least) return bad("a repetition must be {{m}}, {{m,}} or {{m,n}}");
        part = rules_.repeat(part, least, most);
      } else {
        return part;
      }
    }
  }
  uint32_t number() { return read_number(text_, at_).value_or(0); }

  Result<ExprId> single() {
    const char c = peek();
    if (c == '"' || c == '\'') return literal(c);
    if (c == '[') return char_class();
    if (c == '/') return regex();
    if (take(".")) return rules_.set(complement({{'\n', '\n'}, {'\r', '\r'}}));
    if (is_name(c)) {
      const RuleId id = rule_of(name());
      if (peek() == '{' && !(peek(1) >= '0' && peek(1) <= '9')) return refuse("a template");
      return rules_.rule(id);
    }
    if (c != '(') return bad("unexpected '{}'", c);
    ++at_;
    if (peek() == '=' || peek() == '!') return refuse("look-ahead");
    if (++nesting_ > Limits::kNesting)
      return base::fail(Code::kTooLarge, "the grammar has groups nested deeper than {}",
                        Limits::kNesting);
    const ExprId inner = TRY(alternatives());
    --nesting_;
    if (!take(")")) return bad("a group has no end");
    return inner;
  }

  // To the closing character, which an escape may hide; without either.
  Result<std::string_view> quoted(char close) {
    const size_t begin = ++at_;
    for (; peek() != close; ++at_) {
      if (at_ >= text_.size() || peek() == '\n') return bad("a '{}' is missing", close);
      if (peek() == '\\') ++at_;
    }
    return text_.substr(begin, at_++ - begin);
  }

  Result<ExprId> literal(char quote) {
    std::string_view rest = TRY(quoted(quote));
    if (peek() == 'i' && !is_name(peek(1))) return refuse("a case-blind string");
    std::string out;
    while (!rest.empty()) {
      if (rest[0] != '\\') {
        out += rest[0];
        rest.remove_prefix(1);
      } else {
        model::append_utf8(TRY(escape(rest)), &out);
      }
    }
    return rules_.bytes(std::move(out));
  }
  // Takes an escape off the front.
  Result<uint32_t> escape(std::string_view& rest) {
    if (rest.size() < 2) return bad("a backslash at the end");
    const char c = rest[1];
    rest.remove_prefix(2);
    const size_t digits = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
    if (digits == 0) {
      constexpr std::string_view kNames = "ntrfvb0", kMeans("\n\t\r\f\v\b\0", 7);
      const size_t known = kNames.find(c);
      return static_cast<uint32_t>(
          static_cast<uint8_t>(known == std::string_view::npos ? c : kMeans[known]));
    }
    uint32_t value = 0;
    for (size_t i = 0; i < digits; ++i) {
      const char h = i < rest.size() ? rest[i] : '\0';
      const char lower = static_cast<char>(h | 0x20);
      const bool decimal = h >= '0' && h <= '9';
      if (!decimal && !(lower >= 'a' && lower <= 'f')) return bad("an escape lacks hex digits");
      value = value * 16 + static_cast<uint32_t>(decimal ? h - '0' : lower - 'a' + 10);
    }
    rest.remove_prefix(digits);
    if (value > kLastCode || (value >= 0xD800 && value <= 0xDFFF)) return bad("no such character");
    return value;
  }

  Result<ExprId> char_class() {
    std::string_view rest = TRY(quoted(']'));
    const bool negated = rest.starts_with('^');
    if (negated) rest.remove_prefix(1);
    CodeSet set;
    const auto next = [&]() -> Result<uint32_t> {
      if (rest[0] == '\\') return escape(rest);
      const model::Utf8Step step = model::utf8_step(rest);
      const uint32_t code = step.valid ? model::decode_utf8(rest) : 0;
      rest.remove_prefix(step.length);
      return code;
    };
    while (!rest.empty()) {
      const uint32_t low = TRY(next());
      uint32_t high = low;
      if (rest.size() >= 2 && rest[0] == '-') {
        rest.remove_prefix(1);
        high = TRY(next());
      }
      if (high < low) return bad("a range in the wrong order");
      set.push_back({low, high});
    }
    set = normal(std::move(set));
    return rules_.set(negated ? complement(set) : set);
  }

  Result<ExprId> regex() {
    const std::string_view pattern = TRY(quoted('/'));
    if (is_name(peek())) return refuse("a flag of a regular expression");
    return parse_regex(rules_, pattern, {});
  }

  Rules& rules_;
  const std::string_view text_;
  size_t at_ = 0;
  uint32_t nesting_ = 0;
  std::map<std::string, Named> named_;
};

}  // namespace

Status add_ebnf(Rules& rules, std::string_view text) {
  for (size_t at = 0; at < text.size();) {
    const model::Utf8Step step = model::utf8_step(text.substr(at));
    if (!step.valid)
      return base::fail(Code::kInvalidArgument, "the grammar is not UTF-8 at byte {}", at);
    at += step.length;
  }
  return Parser(rules, text).run();
}

}  // namespace grammar
