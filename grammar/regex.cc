#include "grammar/regex.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>

#include "grammar/automaton.h"
#include "grammar/number.h"
#include "model/utf8.h"

namespace grammar {

using base::Code;
using base::Result;

namespace {

const CodeSet kDigits = {{'0', '9'}};
const CodeSet kWord = {{'0', '9'}, {'A', 'Z'}, {'_', '_'}, {'a', 'z'}};
const CodeSet kSpace = {{'\t', '\r'}, {' ', ' '}, {0xA0, 0xA0}, {0x2028, 0x2029}, {0xFEFF, 0xFEFF}};
const CodeSet kLineEnds = {{'\n', '\n'}, {'\r', '\r'}, {0x2028, 0x2029}};
const CodeSet kEverything = {{0, 0xD7FF}, {0xE000, kLastCode}};

constexpr uint32_t kRepeatMost = 100'000;

// How a control character, a quote or a backslash is written in a JSON string.
std::string json_escape(uint32_t code) {
  switch (code) {
    case '"':
      return "\\\"";
    case '\\':
      return "\\\\";
    case '\b':
      return "\\b";
    case '\f':
      return "\\f";
    case '\n':
      return "\\n";
    case '\r':
      return "\\r";
    case '\t':
      return "\\t";
    default:
      return fmt::format("\\u{:04x}", code);
  }
}

const CodeSet kJsonEscaped = {{0, 0x1F}, {'"', '"'}, {'\\', '\\'}};

class Parser {
 public:
  Parser(Rules& rules, std::string_view text, const RegexOptions& options)
      : rules_(rules), text_(text), options_(options) {}

  Result<ExprId> whole() {
    std::vector<ExprId> ways;
    do {
      const bool from_start = take('^');
      const ExprId body = TRY(sequence(/*outermost=*/true));
      const bool to_end = take('$');
      std::vector<ExprId> parts;
      if (options_.search && !from_start) parts.push_back(anything());
      parts.push_back(body);
      if (options_.search && !to_end) parts.push_back(anything());
      ways.push_back(rules_.sequence(std::move(parts)));
    } while (take('|'));
    if (!done()) return bad("unexpected '{}'", std::string(text_.substr(at_, 1)));
    return rules_.any(std::move(ways));
  }

 private:
  template <class... Args>
  tl::unexpected<base::Error> bad(fmt::format_string<Args...> text, Args&&... args) const {
    return base::fail(Code::kInvalidArgument, "the regular expression is wrong at byte {}: {}", at_,
                      fmt::format(text, std::forward<Args>(args)...));
  }
  tl::unexpected<base::Error> refuse(std::string_view what) const {
    return base::fail(Code::kUnsupported,
                      "the regular expression uses {} at byte {}, which is not "
                      "supported",
                      what, at_);
  }

  bool done() const { return at_ >= text_.size(); }
  char peek(size_t ahead = 0) const {
    return at_ + ahead < text_.size() ? text_[at_ + ahead] : '\0';
  }
  bool sees(std::string_view text) const { return text_.substr(at_).starts_with(text); }
  bool take(char c) {
    if (done() || text_[at_] != c) return false;
    ++at_;
    return true;
  }
  bool take(std::string_view text) {
    if (!sees(text)) return false;
    at_ += text.size();
    return true;
  }

  ExprId character(const CodeSet& set) {
    return options_.json_string ? json_characters(rules_, set) : rules_.set(set);
  }
  ExprId anything() { return rules_.repeat(character(kEverything), 0, kUnlimited); }

  Result<ExprId> alternatives() {
    if (++nesting_ > Limits::kNesting) {
      return base::fail(Code::kTooLarge, "the regular expression has groups nested deeper than {}",
                        Limits::kNesting);
    }
    std::vector<ExprId> ways;
    do ways.push_back(TRY(sequence(/*outermost=*/false)));
    while (take('|'));
    --nesting_;
    return rules_.any(std::move(ways));
  }

  Result<ExprId> sequence(bool outermost) {
    std::vector<ExprId> parts;
    while (!done() && peek() != '|' && peek() != ')') {
      if (peek() == '$' && outermost && (at_ + 1 == text_.size() || peek(1) == '|')) break;
      parts.push_back(TRY(repeated()));
      if (rules_.size() > Limits::kExpressions) {
        return base::fail(Code::kTooLarge, "the regular expression is too long");
      }
    }
    return rules_.sequence(std::move(parts));
  }

  Result<ExprId> repeated() {
    ExprId part = TRY(single());
    for (;;) {
      uint32_t least = 0, most = kUnlimited;
      if (take('+')) {
        least = 1;
      } else if (take('?')) {
        most = 1;
      } else if (peek() == '{') {
        const size_t begin = at_;
        if (!TRY(counts(least, most))) {
          at_ = begin;
          return part;
        }
      } else if (!take('*')) {
        return part;
      }
      if (peek() == '+') return refuse("a possessive quantifier");
      take('?');  // lazy: the same texts
      part = rules_.repeat(part, least, most);
    }
  }

  // {m}, {m,}, {m,n}; false: the brace is a literal.
  Result<bool> counts(uint32_t& least, uint32_t& most) {
    ++at_;
    const std::optional<uint32_t> low = number();
    if (!low) return false;
    least = most = *low;
    if (take(',')) most = number().value_or(kUnlimited);
    if (!take('}')) return false;
    if (least > kRepeatMost || (most != kUnlimited && most > kRepeatMost)) {
      return base::fail(Code::kTooLarge, "the regular expression repeats a part more than {} times",
                        kRepeatMost);
    }
    if (most < least) return bad("a repetition from {} to {}", least, most);
    return true;
  }
  std::optional<uint32_t> number() { return read_number(text_, at_); }

  Result<ExprId> single() {
    const char c = peek();
    if (c == '(') return group();
    if (c == '[') return character(TRY(char_class()));
    if (c == '\\') return character(TRY(escape(/*in_class=*/false)));
    if (c == '^' || c == '$') return refuse("an anchor inside the pattern");
    if (c == '*' || c == '+' || c == '?') return bad("'{}' has nothing to repeat", c);
    if (take('.')) return character(complement(kLineEnds));
    const uint32_t literal = code();
    return character({{literal, literal}});
  }

  Result<ExprId> group() {
    ++at_;
    if (take("?")) {
      if (sees("=") || sees("!") || sees("<=") || sees("<!")) return refuse("look-around");
      if (take("P<") || take("<")) {
        while (!done() && peek() != '>') ++at_;
        if (!take('>')) return bad("a group's name has no end");
      } else if (!take(':')) {
        return refuse("a flag or an unknown kind of group");
      }
    }
    const ExprId inner = TRY(alternatives());
    if (!take(')')) return bad("a group has no end");
    return inner;
  }

  // The next character of the pattern, whose UTF-8 whole() has checked.
  uint32_t code() {
    const std::string_view rest = text_.substr(at_);
    at_ += model::utf8_step(rest).length;
    return model::decode_utf8(rest);
  }

  Result<uint32_t> hex(size_t digits) {
    uint32_t value = 0;
    for (size_t i = 0; i < digits; ++i, ++at_) {
      const char c = peek();
      const bool digit = c >= '0' && c <= '9';
      const char lower = static_cast<char>(c | 0x20);
      if (!digit && !(lower >= 'a' && lower <= 'f')) return bad("an escape lacks hex digits");
      value = value * 16 + static_cast<uint32_t>(digit ? c - '0' : lower - 'a' + 10);
    }
    return value;
  }

  Result<CodeSet> escape(bool in_class) {
    ++at_;
    if (done()) return bad("a backslash at the end");
    const char c = text_[at_];
    if (c >= '1' && c <= '9') return refuse("a back reference");
    if ((c == 'b' && !in_class) || c == 'B') return refuse("a word boundary");
    if (c == 'p' || c == 'P') return refuse("a Unicode property");
    if (c == 'A' || c == 'Z' || c == 'z' || c == 'k' || c == 'G' || c == 'K' || c == 'R' ||
        c == 'X' || c == 'Q' || c == 'E' || c == 'c') {
      return refuse(std::string("\\") + c);
    }
    const uint32_t plain = code();
    switch (plain) {
      case 'd':
        return kDigits;
      case 'D':
        return complement(kDigits);
      case 'w':
        return kWord;
      case 'W':
        return complement(kWord);
      case 's':
        return normal(kSpace);
      case 'S':
        return complement(normal(kSpace));
      case 'n':
        return CodeSet{{'\n', '\n'}};
      case 't':
        return CodeSet{{'\t', '\t'}};
      case 'r':
        return CodeSet{{'\r', '\r'}};
      case 'f':
        return CodeSet{{'\f', '\f'}};
      case 'v':
        return CodeSet{{'\v', '\v'}};
      case 'b':
        return CodeSet{{'\b', '\b'}};
      case '0':
        return CodeSet{{0, 0}};
      case 'x':
        return one(TRY(hex(2)));
      case 'u':
        return unicode();
      default:
        return one(plain);
    }
  }
  Result<CodeSet> unicode() {
    if (!take('{')) {
      const uint32_t high = TRY(hex(4));
      if (high < 0xD800 || high > 0xDBFF || !take("\\u")) return one(high);
      const uint32_t low = TRY(hex(4));
      return one(0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00));
    }
    const size_t end = text_.find('}', at_);
    if (end == std::string_view::npos || end - at_ > 6) return bad("\\u{{…}} has no end");
    const uint32_t value = TRY(hex(end - at_));
    ++at_;
    return one(value);
  }
  Result<CodeSet> one(uint32_t code) const {
    if (code > kLastCode || (code >= 0xD800 && code <= 0xDFFF)) return bad("no such character");
    return CodeSet{{code, code}};
  }

  Result<CodeSet> char_class() {
    ++at_;
    const bool negated = take('^');
    CodeSet set;
    for (bool first = true; first || peek() != ']'; first = false) {
      if (done()) return bad("a character class has no end");
      if (first && peek() == ']') break;  // as ECMAScript: the empty class
      if (sees("[:")) return refuse("a named class");
      const CodeSet low = TRY(class_item());
      const bool range = peek() == '-' && at_ + 1 < text_.size() && peek(1) != ']';
      if (!range) {
        set.insert(set.end(), low.begin(), low.end());
        continue;
      }
      ++at_;
      const CodeSet high = TRY(class_item());
      const bool single = low.size() == 1 && high.size() == 1 && low[0].first == low[0].last &&
                          high[0].first == high[0].last;
      if (!single || low[0].first > high[0].first) return bad("a range in the wrong order");
      set.push_back({low[0].first, high[0].first});
    }
    if (!take(']')) return bad("a character class has no end");
    set = normal(std::move(set));
    return negated ? complement(set) : set;
  }
  Result<CodeSet> class_item() {
    if (done()) return bad("a character class has no end");
    if (peek() == '\\') return escape(/*in_class=*/true);
    const uint32_t value = code();
    return CodeSet{{value, value}};
  }

  Rules& rules_;
  const std::string_view text_;
  const RegexOptions options_;
  size_t at_ = 0;
  uint32_t nesting_ = 0;
};

}  // namespace

std::string json_escaped(std::string_view text) {
  std::string out;
  for (const char c : text) {
    const auto byte = static_cast<uint8_t>(c);
    if (byte < 0x20 || c == '"' || c == '\\') {
      out += json_escape(byte);
    } else {
      out += c;
    }
  }
  return out;
}

ExprId json_characters(Rules& rules, const CodeSet& set) {
  std::vector<ExprId> ways;
  const CodeSet plain = intersection(set, complement(kJsonEscaped));
  if (!plain.empty()) ways.push_back(rules.set(plain));
  for (const CodeRange& range : intersection(set, kJsonEscaped))
    for (uint32_t code = range.first; code <= range.last; ++code)
      ways.push_back(rules.bytes(json_escape(code)));
  return rules.any(std::move(ways));
}

Result<ExprId> parse_regex(Rules& rules, std::string_view pattern, const RegexOptions& options) {
  for (size_t at = 0; at < pattern.size();) {
    const model::Utf8Step step = model::utf8_step(pattern.substr(at));
    if (!step.valid) {
      return base::fail(Code::kInvalidArgument, "the regular expression is not UTF-8 at byte {}",
                        at);
    }
    at += step.length;
  }
  return Parser(rules, pattern, options).whole();
}

}  // namespace grammar
