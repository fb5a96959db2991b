// CHECK(condition, "text {}", args...): a promise between parts of Serval. On in every build; a
// false one prints place, condition and text and aborts the process (the cluster survives a
// process; a wrong token it does not).
#pragma once
#include <fmt/core.h>

#include <string>
#include <string_view>

namespace base::detail {
[[noreturn]] void check_failed(const char* file, int line, const char* condition,
                               const std::string& text);
template <class... Args>
std::string check_text(fmt::format_string<Args...> text, Args&&... args) {
  return fmt::format(text, std::forward<Args>(args)...);
}
inline std::string check_text() { return {}; }
}  // namespace base::detail

#define CHECK(condition, ...)                                                \
  do {                                                                       \
    if (!(condition)) [[unlikely]]                                           \
      ::base::detail::check_failed(__FILE__, __LINE__, #condition,           \
                                   ::base::detail::check_text(__VA_ARGS__)); \
  } while (false)
