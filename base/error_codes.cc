#include "base/error_codes.h"

namespace base {

std::string_view name(Code code) {
  switch (code) {
    case Code::kInternal:
      return "internal";
    case Code::kInvalidArgument:
      return "invalid_argument";
    case Code::kNotFound:
      return "not_found";
    case Code::kUnavailable:
      return "unavailable";
    case Code::kDeadline:
      return "deadline";
    case Code::kPeerGone:
      return "peer_gone";
    case Code::kCancelled:
      return "cancelled";
    case Code::kExhausted:
      return "exhausted";
    case Code::kCorrupt:
      return "corrupt";
    case Code::kMismatch:
      return "mismatch";
    case Code::kStale:
      return "stale";
    case Code::kConfig:
      return "config";
    case Code::kIo:
      return "io";
    case Code::kUnsupported:
      return "unsupported";
    case Code::kTooLarge:
      return "too_large";
    case Code::kContextLength:
      return "context_length";
  }
  return "unknown";  // a number from a newer peer
}

}  // namespace base
