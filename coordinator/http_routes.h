// Which route a request line names. One table; everything else is 404 or 405.
#pragma once
#include <string>
#include <string_view>

#include "coordinator/api_types.h"

namespace coordinator {

enum class Route : uint8_t {
  kNone,
  kPreflight,  // OPTIONS of anything
  kChat,
  kCompletions,
  kModels,
  kModel,
  kHealth,
  kLive,
  kReady,
  kVersion,
  kMetrics,
  kCluster,
  kTokenize,
  kDetokenize,
};

struct Routed {
  Route route = Route::kNone;
  std::string_view label;  // of a fixed set, for metrics and logs
  std::string argument;    // kModel: the decoded id
  ApiError error;          // kNone: 404 or 405
  std::string allow;       // 405: the Allow header
};

// `target` is a request target: a path with optional query, or an absolute URI. A trailing slash is
// ignored; other spellings of a path (doubled slashes, dot segments) are other paths. HEAD is GET.
Routed find_route(std::string_view method, std::string_view target);

// Names who asks by the API key in the request's headers, of which it keeps only a hash; empty
// without a key.
std::string tenant_of(std::string_view authorization, std::string_view api_key);

// A client's x-request-id if it can be repeated in a header and a log line, else empty.
std::string usable_request_id(std::string_view text);

}  // namespace coordinator
