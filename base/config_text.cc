#include "base/config_text.h"

#include <fmt/core.h>

#include <algorithm>
#include <charconv>
#include <limits>

namespace base {
namespace {

struct Unit {
  std::string_view name;
  uint64_t size;
};
// Largest first.
constexpr Unit kBytes[] = {
    {"TiB", 1ull << 40}, {"GiB", 1ull << 30}, {"MiB", 1ull << 20}, {"KiB", 1ull << 10}, {"B", 1}};
constexpr Unit kDurations[] = {{"m", 60'000}, {"s", 1000}, {"ms", 1}};

template <size_t N>
std::optional<uint64_t> parse_units(std::string_view text, const Unit (&units)[N]) {
  uint64_t number = 0;
  const auto [rest, problem] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (problem != std::errc()) return std::nullopt;
  const std::string_view name(rest, static_cast<size_t>(text.data() + text.size() - rest));
  for (const Unit& unit : units) {
    if (name != unit.name) continue;
    if (number > std::numeric_limits<uint64_t>::max() / unit.size) return std::nullopt;
    return number * unit.size;
  }
  return std::nullopt;
}

template <size_t N>
std::string format_units(uint64_t value, const Unit (&units)[N]) {
  for (const Unit& unit : units) {
    if (value != 0 && value % unit.size == 0) {
      return fmt::format("{}{}", value / unit.size, unit.name);
    }
  }
  return fmt::format("0{}", units[N - 1].name);
}

// Optimal string alignment distance.
size_t edits(std::string_view a, std::string_view b) {
  std::vector<size_t> before(b.size() + 1), last(b.size() + 1), row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) last[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t replace = last[j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1);
      row[j] = std::min({last[j] + 1, row[j - 1] + 1, replace});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) {
        row[j] = std::min(row[j], before[j - 2] + 1);
      }
    }
    std::swap(before, last);
    std::swap(last, row);
  }
  return last[b.size()];
}

}  // namespace

std::optional<uint64_t> parse_bytes(std::string_view text) {
  const bool digits = !text.empty() && text.find_first_not_of("0123456789") == text.npos;
  return digits ? parse_units(fmt::format("{}B", text), kBytes) : parse_units(text, kBytes);
}

std::string format_bytes(uint64_t bytes) { return format_units(bytes, kBytes); }

std::optional<uint64_t> parse_duration_ms(std::string_view text) {
  return parse_units(text, kDurations);
}

std::string format_duration_ms(uint64_t ms) { return format_units(ms, kDurations); }

std::string quote_toml(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (byte < 0x20 || byte == 0x7F) {
      out += fmt::format("\\u{:04X}", byte);
    } else {
      out += c;
    }
  }
  return out + '"';
}

std::string nearest_name(std::string_view text, const std::vector<std::string>& names) {
  std::string best;
  size_t least = std::max<size_t>(2, text.size() / 3) + 1;
  for (const std::string& name : names) {
    const size_t distance = edits(text, name);
    if (distance < least && distance < name.size()) {
      least = distance;
      best = name;
    }
  }
  return best;
}

}  // namespace base
