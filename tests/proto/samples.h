// A message of any type with every field set, the same for the same seed on every machine, and
// field by field comparison.
#pragma once
#include <string>
#include <tuple>
#include <type_traits>

#include "base/rng.h"
#include "proto/all.h"

namespace proto_test {

template <class T>
concept HasFields = requires(T& t) {
  t.visit([](auto&...) {});
};
template <class T>
concept IsVector = requires(T& t) {
  t.emplace_back();
};
template <class T>
concept IsPair = requires(T& t) {
  t.first;
};
template <class T>
concept IsId = requires(T& t) {
  t.value;
}
&&!HasFields<T>;

// No value equals a field's default, and no two neighbours are equal.
template <class T>
void fill(T& value, base::Rng& rng) {
  if constexpr (std::is_same_v<T, bool>) {
    value = !value;
  } else if constexpr (std::is_floating_point_v<T>) {
    value = static_cast<T>(rng.uniform() * 100 + 2);
  } else if constexpr (std::is_enum_v<T>) {
    value = static_cast<T>(static_cast<std::underlying_type_t<T>>(value) + 2);
  } else if constexpr (std::is_integral_v<T>) {
    // Small and large numbers, so that every width is written.
    value = static_cast<T>((rng.next() >> rng.below(64)) | 2);
  } else if constexpr (std::is_same_v<T, std::string>) {
    value.resize(1 + rng.below(40));
    for (char& c : value) c = static_cast<char>('a' + rng.below(26));
  } else if constexpr (std::is_same_v<T, base::Hash128>) {
    value = {rng.next(), rng.next()};
  } else if constexpr (IsId<T>) {
    fill(value.value, rng);
  } else if constexpr (IsPair<T>) {
    fill(value.first, rng);
    fill(value.second, rng);
  } else if constexpr (IsVector<T>) {
    value.resize(1 + rng.below(20));
    for (auto& element : value) fill(element, rng);
  } else {
    value.visit([&](auto&... fields) { (fill(fields, rng), ...); });
  }
}

template <class M>
M sample(uint64_t seed = 0) {
  base::Rng rng(seed, M::kType);
  M message;
  fill(message, rng);
  return message;
}

template <class T>
bool equal(const T& a, const T& b) {
  if constexpr (IsPair<T>) {
    return equal(a.first, b.first) && equal(a.second, b.second);
  } else if constexpr (IsVector<T> && !std::is_same_v<T, std::string>) {
    if (a.size() != b.size()) return false;
    for (size_t i = 0; i < a.size(); ++i) {
      if (!equal(a[i], b[i])) return false;
    }
    return true;
  } else if constexpr (HasFields<T>) {
    bool same = true;
    a.visit([&](const auto&... left) {
      b.visit([&](const auto&... right) {
        if constexpr (sizeof...(left) == sizeof...(right)) same = (equal(left, right) && ...);
      });
    });
    return same;
  } else {
    return a == b;
  }
}

template <class M>
size_t field_count() {
  size_t count = 0;
  const M message{};
  message.visit([&](const auto&... fields) { count = sizeof...(fields); });
  return count;
}

// Calls f.template operator()<M>() for every message.
template <class F>
void for_each_message(F f) {
  [&]<class... Ms>(std::type_identity<std::tuple<Ms...>>) {
    (f.template operator()<Ms>(), ...);
  }(std::type_identity<proto::AllMessages>{});
}

inline std::string to_hex(const std::string& bytes) {
  std::string out;
  for (char c : bytes) {
    const char* digits = "0123456789abcdef";
    out += digits[static_cast<uint8_t>(c) >> 4];
    out += digits[static_cast<uint8_t>(c) & 15];
  }
  return out;
}

}  // namespace proto_test
