// Result<T>: a value or an Error. For failures that are expected; a broken promise of our own is
// CHECK's.
//
//   Result<int> half(int x) { if (x % 2) return fail(Code::kInvalidArgument, "{} is odd", x);
//   return x / 2; } Result<int> quarter(int x) { int h = TRY(half(x)); return half(h); }
//
// Exceptions never cross a room: they are caught at the third-party call that throws.
#pragma once
#include <fmt/core.h>

#include <string>
#include <tl/expected.hpp>
#include <utility>

#include "base/error_codes.h"

namespace base {

struct Error {
  Code code = Code::kInternal;
  std::string what;  // one sentence for a person, no trailing full stop, no newline
};

template <class T>
using Result = tl::expected<T, Error>;
using Status = Result<void>;

template <class... Args>
tl::unexpected<Error> fail(Code code, fmt::format_string<Args...> text, Args&&... args) {
  return tl::unexpected<Error>(Error{code, fmt::format(text, std::forward<Args>(args)...)});
}
inline tl::unexpected<Error> fail(Error error) { return tl::unexpected<Error>(std::move(error)); }

// "corrupt: model.safetensors: header is 12 bytes too long"
std::string to_string(const Error& error);

}  // namespace base

// The value of a Result, or return its error from the enclosing function (CO_TRY: from a coroutine;
// g++ 12 cannot compile a co_await inside it, so the awaited Result stands in a local first).
#define TRY(expression)                                                                     \
  __extension__({                                                                           \
    auto try_result = (expression);                                                         \
    if (!try_result) return ::tl::unexpected<::base::Error>(std::move(try_result).error()); \
    ::base::detail::take(std::move(try_result));                                            \
  })
#define CO_TRY(expression)                                                                     \
  __extension__({                                                                              \
    auto try_result = (expression);                                                            \
    if (!try_result) co_return ::tl::unexpected<::base::Error>(std::move(try_result).error()); \
    ::base::detail::take(std::move(try_result));                                               \
  })

namespace base::detail {
template <class T>
T take(tl::expected<T, Error>&& result) {
  if constexpr (!std::is_void_v<T>) return std::move(*result);
}
}  // namespace base::detail
