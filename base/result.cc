#include "base/result.h"

namespace base {

std::string to_string(const Error& error) {
  return fmt::format("{}: {}", name(error.code), error.what);
}

}  // namespace base
