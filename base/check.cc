#include "base/check.h"

#include <cstdio>
#include <cstdlib>

namespace base::detail {

void check_failed(const char* file, int line, const char* condition, const std::string& text) {
  std::fprintf(stderr, "%s:%d: CHECK(%s) failed%s%s\n", file, line, condition,
               text.empty() ? "" : ": ", text.c_str());
  std::fflush(stderr);
  std::abort();
}

}  // namespace base::detail
