#include "proto/all.h"

#include <array>

namespace proto {
namespace {

struct Named {
  uint16_t type;
  const char* name;
};
template <class... Ms>
constexpr auto names_of(std::type_identity<std::tuple<Ms...>>) {
  return std::array<Named, sizeof...(Ms)>{Named{Ms::kType, Ms::kName}...};
}
constexpr auto kNames = names_of(std::type_identity<AllMessages>{});

constexpr bool types_are_unique() {
  for (size_t i = 0; i < kNames.size(); ++i) {
    for (size_t j = 0; j < i; ++j) {
      if (kNames[i].type == kNames[j].type) return false;
    }
  }
  return true;
}
static_assert(types_are_unique(), "two messages share a kType");

}  // namespace

const char* message_name(uint16_t type) {
  for (const Named& named : kNames) {
    if (named.type == type) return named.name;
  }
  return "?";
}

}  // namespace proto
