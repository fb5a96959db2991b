// The small text forms of the configuration file: sizes, durations, quoting, nearest names.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace base {

// "256MiB", "4GiB", "512KiB", "7B" or plain digits. Nothing for another form or beyond 64 bits.
std::optional<uint64_t> parse_bytes(std::string_view text);
std::string format_bytes(uint64_t bytes);  // the largest unit that divides it: "256MiB", "1000B"
// "250ms", "2s", "10m" in milliseconds. Nothing for another form or beyond 64 bits.
std::optional<uint64_t> parse_duration_ms(std::string_view text);
std::string format_duration_ms(uint64_t ms);
// A TOML basic string with its quotes.
std::string quote_toml(std::string_view text);
// The name with the fewest edits (insert, delete, replace, swap neighbours) from `text`, when few
// enough for a slip of the keyboard; else "".
std::string nearest_name(std::string_view text, const std::vector<std::string>& names);

}  // namespace base
