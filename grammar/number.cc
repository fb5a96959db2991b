#include "grammar/number.h"

#include <algorithm>

namespace grammar {

std::optional<uint32_t> read_number(std::string_view text, size_t& at) {
  const size_t begin = at;
  uint64_t value = 0;
  for (; at < text.size() && text[at] >= '0' && text[at] <= '9'; ++at)
    value = std::min<uint64_t>(value * 10 + static_cast<uint64_t>(text[at] - '0'), 1u << 30);
  if (at == begin) return std::nullopt;
  return static_cast<uint32_t>(value);
}

}  // namespace grammar
