#pragma once
#include <compare>

#include "base/ids.h"

namespace prefill {

// One try of one request.
struct JobKey {
  base::RequestId request;
  uint32_t attempt = 0;
  auto operator<=>(const JobKey&) const = default;
};

}  // namespace prefill
