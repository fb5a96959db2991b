// Every error Serval names, with a stable number and a sentence. Numbers are on the wire and in
// logs: never change or reuse one; a removed code stays as a comment.
#pragma once
#include <cstdint>
#include <string_view>

namespace base {

enum class Code : uint16_t {
  kInternal = 1,         // a promise of ours was broken; always a bug
  kInvalidArgument = 2,  // the caller's value is out of its documented range
  kNotFound = 3,         // no such thing, and there may never have been
  kUnavailable = 4,      // not now; the same request may succeed later
  kDeadline = 5,         // the time allowed has passed; the effect is unknown
  kPeerGone = 6,         // the peer left the cluster view; the effect is unknown
  kCancelled = 7,        // asked to stop by the owner
  kExhausted = 8,        // a bound (blocks, queue, table) is reached
  kCorrupt = 9,          // bytes do not match their digest, shape or format
  kMismatch = 10,        // two parties differ in protocol, model, layout or arithmetic
  kStale = 11,           // an old attempt, epoch or life spoke; nothing was changed
  kConfig = 12,          // a configuration file is wrong
  kIo = 13,              // the operating system refused; `what` has errno's sentence
  kUnsupported = 14,     // known, and not offered here
  kTooLarge = 15,        // over a size limit
  kContextLength = 16,   // prompt plus answer does not fit the model's context
};

// The name without the k, snake_case: "peer_gone". Stable; used in logs, metrics and error bodies.
std::string_view name(Code code);

}  // namespace base
