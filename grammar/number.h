// Whole numbers in the texts of front ends: the counts of repetitions.
#pragma once
#include <cstdint>
#include <optional>
#include <string_view>

namespace grammar {

// The number whose digits begin at text[at]; `at` moves behind them. Larger ones than 2^30, which
// no limit allows, read as that. Nothing where no digit stands.
std::optional<uint32_t> read_number(std::string_view text, size_t& at);

}  // namespace grammar
