#include "grammar/number_range.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>

namespace grammar {

using base::Code;

namespace {

// Decimals of 15 digits are told apart by doubles, so that a number above a bound is not rounded
// onto it.
constexpr size_t kWholeMost = 18, kDigitsMost = 15, kOpenWhole = 9;
constexpr int64_t kIntegerMost = 999'999'999'999'999'999;

int64_t value_of(const std::string& digits) {
  int64_t value = 0;
  std::from_chars(digits.data(), digits.data() + digits.size(), value);
  return value;
}

char digit_at(const std::string& digits, size_t i) { return i < digits.size() ? digits[i] : '0'; }

// What is known of the digits to come: they must not make the number fall below `low`, or rise
// above `high`, digit strings that the number has followed so far (null: it has left them).
struct Bounds {
  const std::string* low = nullptr;
  const std::string* high = nullptr;
  bool above_low = false, below_high = false;  // the bound itself is out
};

class Digits {
 public:
  explicit Digits(Rules& rules, size_t fraction_most = 0)
      : rules_(rules), fraction_most_(fraction_most) {}

  // Digit strings of the bounds' length between them, from position i on.
  ExprId same_length(const Bounds& bounds, size_t length, size_t i) {
    if (i == length) return ends(bounds, i) ? rules_.empty() : rules_.any({});
    if (!bounds.low && !bounds.high) return some(length - i, length - i);
    return each_digit(bounds, i,
                      [&](const Bounds& next) { return same_length(next, length, i + 1); });
  }
  // Whole numbers between them, both inclusive.
  ExprId whole(int64_t low, int64_t high) {
    std::vector<ExprId> ways;
    int64_t first = 0, last = 9;  // of this length
    for (size_t length = 1; length <= kWholeMost; ++length) {
      const int64_t from = std::max(low, first), to = std::min(high, last);
      if (from <= to) {
        const std::string a = fmt::format("{}", from), b = fmt::format("{}", to);
        ways.push_back(same_length({&a, &b}, length, 0));
      }
      if (length == kWholeMost) break;  // one more nine would not fit
      first = last + 1;
      last = last * 10 + 9;
    }
    return rules_.any(std::move(ways));
  }
  // A point and digits, or nothing, between the bounds' fractions.
  ExprId fraction(const Bounds& bounds) {
    if (fraction_most_ == 0) return ends(bounds, 0) ? rules_.empty() : rules_.any({});
    const ExprId digits = rules_.sequence({rules_.bytes("."), more(bounds, 0)});
    return ends(bounds, 0) ? rules_.optional(digits) : digits;
  }

 private:
  // The number may end here: only zeros are left to come.
  static bool ends(const Bounds& bounds, size_t i) {
    const auto zeros = [i](const std::string& digits) {
      return i >= digits.size() || digits.find_first_not_of('0', i) == std::string::npos;
    };
    if (bounds.low && (!zeros(*bounds.low) || bounds.above_low)) return false;
    return !(bounds.high && bounds.below_high && zeros(*bounds.high));
  }
  ExprId some(size_t least, size_t most) {
    return rules_.repeat(rules_.set({{'0', '9'}}), static_cast<uint32_t>(least),
                         static_cast<uint32_t>(most));
  }
  template <class After>
  ExprId each_digit(const Bounds& bounds, size_t i, After after) {
    const char from = bounds.low ? digit_at(*bounds.low, i) : '0';
    const char to = bounds.high ? digit_at(*bounds.high, i) : '9';
    std::vector<ExprId> ways;
    const auto way = [&](char a, char b, const Bounds& next) {
      const CodeSet set = {{static_cast<uint32_t>(a), static_cast<uint32_t>(b)}};
      ways.push_back(rules_.sequence({rules_.set(set), after(next)}));
    };
    char free_from = from, free_to = to;
    if (bounds.low && bounds.high && from == to) {
      way(from, to, bounds);
      return rules_.any(std::move(ways));
    }
    if (bounds.low && from <= to) {
      Bounds next = bounds;
      next.high = nullptr;
      way(from, from, next);
      ++free_from;
    }
    if (bounds.high && from <= to) {
      Bounds next = bounds;
      next.low = nullptr;
      way(to, to, next);
      --free_to;
    }
    if (free_from <= free_to) way(free_from, free_to, Bounds{});
    return rules_.any(std::move(ways));
  }
  // At least one more digit of a fraction.
  ExprId more(const Bounds& bounds, size_t i) {
    if (i >= fraction_most_) return rules_.any({});
    if (!bounds.low && !bounds.high) return some(1, fraction_most_ - i);
    return each_digit(bounds, i, [&](const Bounds& next) -> ExprId {
      if (!next.low && !next.high) return some(0, fraction_most_ - i - 1);
      const size_t known = next.high ? next.high->size() : 0;
      const bool stop = ends(next, i + 1);
      // Behind the last digit of the upper bound only zeros could follow; they are left out.
      if (next.high && i > known) return stop ? rules_.empty() : rules_.any({});
      const ExprId rest = more(next, i + 1);
      return stop ? rules_.optional(rest) : rest;
    });
  }

  Rules& rules_;
  const size_t fraction_most_;  // digits
};

struct Magnitudes {
  Decimal low;
  std::optional<Decimal> high;
  bool above_low = false, below_high = false;
};

ExprId magnitudes(Rules& rules, const Magnitudes& m) {
  const std::string open(std::max(kOpenWhole, m.low.whole.size()), '9');
  const std::string& most = m.high ? m.high->whole : open;
  Digits digits(rules, most.size() < kDigitsMost ? kDigitsMost - most.size() : 0);
  const int64_t low = value_of(m.low.whole), high = value_of(most);
  std::vector<ExprId> ways;
  Bounds at_low{&m.low.fraction, nullptr, m.above_low, false};
  if (m.high && low == high) {
    at_low.high = &m.high->fraction;
    at_low.below_high = m.below_high;
  }
  const auto add = [&](int64_t from, int64_t to, const Bounds& bounds) {
    if (from <= to)
      ways.push_back(rules.sequence({digits.whole(from, to), digits.fraction(bounds)}));
  };
  add(low, low, at_low);
  if (low < high) {
    add(low + 1, m.high ? high - 1 : high, {});
    if (m.high) add(high, high, {nullptr, &m.high->fraction, false, m.below_high});
  }
  return rules.any(std::move(ways));
}

// The integers of the range as two numbers; least > most: none.
std::pair<int64_t, int64_t> integers_of(const NumberRange& range) {
  int64_t least = -kIntegerMost, most = kIntegerMost;
  if (range.least) {
    const int64_t whole = value_of(range.least->whole);
    const bool part = !range.least->fraction.empty();
    least = range.least->negative ? -whole : whole + (part ? 1 : 0);
    if (!part && range.above_least) ++least;
  }
  if (range.most) {
    const int64_t whole = value_of(range.most->whole);
    const bool part = !range.most->fraction.empty();
    most = range.most->negative ? -whole - (part ? 1 : 0) : whole;
    if (!part && range.below_most) --most;
  }
  return {std::max(least, -kIntegerMost), std::min(most, kIntegerMost)};
}

}  // namespace

base::Result<Decimal> parse_decimal(const std::string& text) {
  Decimal out;
  std::string_view rest = text;
  out.negative = rest.starts_with('-');
  if (out.negative) rest.remove_prefix(1);
  int exponent = 0;
  const size_t e = rest.find_first_of("eE");
  if (e != std::string_view::npos) {
    std::string_view digits = rest.substr(e + 1);
    if (digits.starts_with('+')) digits.remove_prefix(1);
    const auto [end, problem] =
        std::from_chars(digits.data(), digits.data() + digits.size(), exponent);
    if (problem != std::errc{} || end != digits.data() + digits.size() || std::abs(exponent) > 400)
      return base::fail(Code::kTooLarge, "the bound {} is out of range", text);
    rest = rest.substr(0, e);
  }
  const size_t point = rest.find('.');
  std::string digits(rest.substr(0, point));
  auto whole = static_cast<int>(digits.size()) + exponent;
  if (point != std::string_view::npos) digits += rest.substr(point + 1);
  while (whole < 0) digits.insert(0, "0"), ++whole;
  if (digits.size() < static_cast<size_t>(whole)) digits.resize(static_cast<size_t>(whole), '0');
  out.whole = digits.substr(0, static_cast<size_t>(whole));
  out.fraction = digits.substr(static_cast<size_t>(whole));
  out.whole.erase(0, std::min(out.whole.find_first_not_of('0'), out.whole.size()));
  if (out.whole.empty()) out.whole = "0";
  while (out.fraction.ends_with('0')) out.fraction.pop_back();
  if (out.zero()) out.negative = false;
  if (out.whole.size() > kWholeMost ||
      (!out.fraction.empty() && out.whole.size() + out.fraction.size() > kDigitsMost)) {
    return base::fail(Code::kTooLarge, "the bound {} has too many digits", text);
  }
  return out;
}

int compare(const Decimal& a, const Decimal& b) {
  if (a.negative != b.negative) return a.negative ? -1 : 1;
  const int sign = a.negative ? -1 : 1;
  if (a.whole.size() != b.whole.size()) return a.whole.size() < b.whole.size() ? -sign : sign;
  const int whole = a.whole.compare(b.whole);
  if (whole != 0) return whole < 0 ? -sign : sign;
  const int fraction = a.fraction.compare(b.fraction);  // trailing zeros are gone: as texts
  return fraction == 0 ? 0 : fraction < 0 ? -sign : sign;
}

ExprId integer_between(Rules& rules, const NumberRange& range) {
  const auto [least, most] = integers_of(range);
  std::vector<ExprId> ways;
  Digits digits(rules);
  if (most >= 0 && least <= most) ways.push_back(digits.whole(std::max<int64_t>(least, 0), most));
  if (least < 0 && least <= most) {
    ways.push_back(
        rules.sequence({rules.bytes("-"), digits.whole(std::max<int64_t>(1, -most), -least)}));
  }
  return rules.any(std::move(ways));
}

ExprId number_between(Rules& rules, const NumberRange& range) {
  if (range.least && range.most) {
    const int order = compare(*range.least, *range.most);
    if (order > 0 || (order == 0 && (range.above_least || range.below_most))) return rules.any({});
  }
  std::vector<ExprId> ways;
  if (!range.most || !range.most->negative) {  // from zero up
    Magnitudes up;
    if (range.least && !range.least->negative) {
      up.low = *range.least;
      up.above_low = range.above_least;
    }
    up.high = range.most;
    up.below_high = range.below_most;
    ways.push_back(magnitudes(rules, up));
  }
  if (!range.least || range.least->negative) {  // below zero, by magnitude
    Magnitudes down;
    if (range.most && (range.most->negative || range.most->zero())) {
      down.low = *range.most;
      down.above_low = range.below_most;
    }
    down.high = range.least;
    down.below_high = range.above_least;
    ways.push_back(rules.sequence({rules.bytes("-"), magnitudes(rules, down)}));
  }
  return rules.any(std::move(ways));
}

}  // namespace grammar
