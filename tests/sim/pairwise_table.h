// A table of configurations in which every two levels of every two factors meet, and as many
// triples of them as fit: the usual way to test what composes with what. Deterministic.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

namespace simulation {

// The level of each factor, by index.
using Levels = std::vector<uint32_t>;

// `levels` of each factor. At least `rows` rows, more when the pairs need them.
std::vector<Levels> pairwise_table(std::span<const uint32_t> levels, size_t rows);

// Pairs of levels of two factors that no row of the table has.
size_t pairs_missing(std::span<const uint32_t> levels, std::span<const Levels> table);

}  // namespace simulation
