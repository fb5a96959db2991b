// Messages to bytes and back. decode() treats its input as hostile: limits on every length, depth
// and count before anything is allocated, no trailing bytes, wrong types refused; the error says
// which message and why. The templates are instantiated for every entry of AllMessages in codec.cc,
// where msgpack stays.
#pragma once
#include <string>

#include "base/bytes.h"
#include "base/result.h"

namespace proto {

// The range of protocol versions this build speaks. Appending a field or a message does not raise
// it; removing one or changing a meaning does.
inline constexpr uint16_t kProtocolMin = 1;
inline constexpr uint16_t kProtocolMax = 1;

struct Limits {
  static constexpr size_t kBody = 16u << 20;      // bytes of a message body
  static constexpr uint32_t kArray = 1u << 21;    // elements (token ids of a 1M prompt fit)
  static constexpr uint32_t kString = 64u << 10;  // bytes
  static constexpr uint32_t kDepth = 8;
  static constexpr size_t kMemory = 64u << 20;  // bytes of strings and elements of one message
};

template <class M>
std::string encode(const M& message);
template <class M>
base::Status decode(base::ByteView bytes, M& message);

}  // namespace proto
