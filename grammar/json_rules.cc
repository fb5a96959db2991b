#include "grammar/json_rules.h"

#include <algorithm>
#include <span>

#include "grammar/regex.h"
#include "model/utf8.h"

namespace grammar {

namespace {

constexpr uint32_t kBlanksMost = 20, kDigitsMost = 17;

const CodeSet kDigit = {{'0', '9'}};
const CodeSet kHex = {{'0', '9'}, {'A', 'F'}, {'a', 'f'}};
// What stands for itself in a JSON string.
const CodeSet kPlain = {{0x20, 0x21}, {0x23, 0x5B}, {0x5D, 0xD7FF}, {0xE000, kLastCode}};

std::u32string codes_of(std::string_view text) {
  std::u32string out;
  while (!text.empty()) {
    out.push_back(model::decode_utf8(text));
    text.remove_prefix(model::utf8_step(text).length);
  }
  return out;
}

// texts[..] ascending, distinct, equal in their first `depth` bytes.
ExprId branches(Rules& rules, std::span<const std::string> texts, size_t depth) {
  const std::string &first = texts.front(), &last = texts.back();
  const auto differ = std::mismatch(first.begin() + static_cast<ptrdiff_t>(depth), first.end(),
                                    last.begin() + static_cast<ptrdiff_t>(depth), last.end());
  const auto common = static_cast<size_t>(differ.first - first.begin());
  std::vector<ExprId> ways;
  for (size_t begin = 0; begin < texts.size();) {
    size_t end = begin + 1;
    if (texts[begin].size() == common) {
      ways.push_back(rules.empty());
    } else {
      while (end < texts.size() && texts[end][common] == texts[begin][common]) ++end;
      ways.push_back(end == begin + 1 ? rules.bytes(texts[begin].substr(common))
                                      : branches(rules, texts.subspan(begin, end - begin), common));
    }
    begin = end;
  }
  const ExprId rest = rules.any(std::move(ways));
  if (common == depth) return rest;
  return rules.sequence({rules.bytes(first.substr(depth, common - depth)), rest});
}

}  // namespace

ExprId one_of(Rules& rules, std::vector<std::string> texts) {
  std::sort(texts.begin(), texts.end());
  texts.erase(std::unique(texts.begin(), texts.end()), texts.end());
  return texts.empty() ? rules.any({}) : branches(rules, texts, 0);
}

template <class Make>
ExprId JsonRules::named(const char* name, Make make) {
  const auto found = known_.find(name);
  if (found != known_.end()) return rules_.rule(found->second);
  const RuleId rule = rules_.declare(name);
  known_.emplace(name, rule);
  rules_.define(rule, make());
  return rules_.rule(rule);
}

ExprId JsonRules::blank() {
  return named("blank", [this] {
    const ExprId blanks = rules_.repeat(rules_.set({{'\t', '\t'}, {' ', ' '}}), 0, kBlanksMost);
    return rules_.any(
        {rules_.empty(), rules_.bytes(" "), rules_.sequence({rules_.bytes("\n"), blanks})});
  });
}

ExprId JsonRules::value() {
  return named("value", [this] {
    return rules_.any({object(), array(), string(), number(), boolean(), null()});
  });
}

ExprId JsonRules::object() {
  return named("object", [this] {
    const ExprId colon = rules_.sequence({rules_.bytes(":"), blank()});
    const ExprId member = rules_.sequence({string(), colon, value()});
    return enclosed("{", list(member, 0, kUnlimited), "}");
  });
}

ExprId JsonRules::array() {
  return named("array", [this] { return enclosed("[", list(value(), 0, kUnlimited), "]"); });
}

ExprId JsonRules::enclosed(const char* open, ExprId content, const char* close) {
  return rules_.sequence({rules_.bytes(open), blank(), content, blank(), rules_.bytes(close)});
}

ExprId JsonRules::list(ExprId part, uint32_t least, uint32_t most) {
  if (most == 0) return rules_.empty();
  const ExprId more = rules_.sequence({comma(), part});
  const ExprId rest =
      rules_.repeat(more, std::max(least, 1u) - 1, most == kUnlimited ? kUnlimited : most - 1);
  const ExprId all = rules_.sequence({part, rest});
  return least == 0 ? rules_.optional(all) : all;
}

ExprId JsonRules::character() {
  return named("character", [this] {
    const ExprId hex = rules_.set(kHex);
    const ExprId two = rules_.repeat(hex, 2, 2), three = rules_.repeat(hex, 3, 3);
    // No surrogates: D800 to DFFF.
    const ExprId unit = rules_.any(
        {rules_.sequence(
             {rules_.set({{'0', '9'}, {'A', 'C'}, {'E', 'F'}, {'a', 'c'}, {'e', 'f'}}), three}),
         rules_.sequence({rules_.set({{'D', 'D'}, {'d', 'd'}}), rules_.set({{'0', '7'}}), two})});
    const CodeSet letters = {{'"', '"'}, {'/', '/'}, {'\\', '\\'}, {'b', 'b'},
                             {'f', 'f'}, {'n', 'n'}, {'r', 'r'},   {'t', 't'}};
    const ExprId escape =
        rules_.any({rules_.set(letters), rules_.sequence({rules_.bytes("u"), unit})});
    return rules_.any({rules_.set(kPlain), rules_.sequence({rules_.bytes("\\"), escape})});
  });
}

ExprId JsonRules::string() {
  return named("string", [this] { return string_of(0, kUnlimited); });
}

ExprId JsonRules::string_of(uint32_t least, uint32_t most) {
  // The body of the character's rule: a call a character would hide from the masks that one
  // character follows another.
  character();
  const ExprId one =
      most == kUnlimited && least == 0 ? rules_.body(known_.at("character")) : character();
  const ExprId quote = rules_.bytes("\"");
  return rules_.sequence({quote, rules_.repeat(one, least, most), quote});
}

ExprId JsonRules::integer() {
  return named("integer", [this] {
    const ExprId digits = rules_.repeat(rules_.set(kDigit), 0, kDigitsMost);
    const ExprId whole =
        rules_.any({rules_.bytes("0"), rules_.sequence({rules_.set({{'1', '9'}}), digits})});
    return rules_.sequence({rules_.optional(rules_.bytes("-")), whole});
  });
}

ExprId JsonRules::number() {
  return named("number", [this] {
    const ExprId digit = rules_.set(kDigit);
    const ExprId fraction =
        rules_.sequence({rules_.bytes("."), rules_.repeat(digit, 1, kDigitsMost)});
    const ExprId sign = rules_.optional(rules_.set({{'+', '+'}, {'-', '-'}}));
    const ExprId exponent =
        rules_.sequence({rules_.set({{'E', 'E'}, {'e', 'e'}}), sign, rules_.repeat(digit, 1, 2)});
    return rules_.sequence({integer(), rules_.optional(fraction), rules_.optional(exponent)});
  });
}

ExprId JsonRules::boolean() { return rules_.any({rules_.bytes("true"), rules_.bytes("false")}); }

ExprId JsonRules::key(std::string_view name) {
  return rules_.sequence({rules_.bytes("\"" + json_escaped(name) + "\":"), blank()});
}

// Without escapes, so that a name cannot be written in another way.
ExprId JsonRules::key_tail(const std::vector<std::u32string>& names, size_t depth) {
  std::map<char32_t, std::vector<std::u32string>> nexts;
  bool is_name = false;
  for (const std::u32string& name : names) {
    is_name |= name.size() == depth;
    if (name.size() > depth) nexts[name[depth]].push_back(name);
  }
  std::vector<ExprId> ways;
  if (!is_name) ways.push_back(rules_.bytes("\""));
  CodeSet taken;
  for (const auto& [code, rest] : nexts) {
    taken.push_back({code, code});
    const std::string written = json_escaped([&, c = code] {
      std::string text;
      model::append_utf8(c, &text);
      return text;
    }());
    ways.push_back(rules_.sequence({rules_.bytes(written), key_tail(rest, depth + 1)}));
  }
  const ExprId free = named("rest of a key", [this] {
    return rules_.sequence({rules_.repeat(rules_.set(kPlain), 0, kUnlimited), rules_.bytes("\"")});
  });
  const CodeSet others = intersection(kPlain, complement(normal(taken)));
  ways.push_back(rules_.sequence({rules_.set(others), free}));
  return rules_.any(std::move(ways));
}

ExprId JsonRules::key_except(const std::vector<std::string>& names) {
  std::vector<std::u32string> codes;
  for (const std::string& name : names) codes.push_back(codes_of(name));
  const ExprId quote = rules_.bytes("\"");
  return rules_.sequence({quote, key_tail(codes, 0), rules_.bytes(":"), blank()});
}

}  // namespace grammar
