// The largest allocation of this program since the last reset.
#pragma once
#include <cstddef>

namespace proto_test {
void reset_largest_allocation();
size_t largest_allocation();
}  // namespace proto_test
