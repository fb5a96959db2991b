#include "actor/message.h"

#include "base/check.h"

namespace actor {
namespace {

template <class Int>
std::byte* put(std::byte* out, Int value) {
  for (size_t i = 0; i < sizeof(Int); ++i) {
    *out++ = static_cast<std::byte>(static_cast<uint64_t>(value) >> (8 * i));
  }
  return out;
}

template <class Int>
const std::byte* get(const std::byte* in, Int* value) {
  uint64_t wide = 0;
  for (size_t i = 0; i < sizeof(Int); ++i) wide |= std::to_integer<uint64_t>(*in++) << (8 * i);
  *value = static_cast<Int>(wide);
  return in;
}

}  // namespace

// In order: magic u32; protocol, type, from_actor, to_actor u16; flags u32; from_node, to_node,
// call u64.
void Header::write(std::byte* out) const {
  std::byte* at = put(out, kMagic);
  at = put(at, protocol);
  at = put(at, type);
  at = put(at, from_actor);
  at = put(at, to_actor);
  at = put(at, flags);
  at = put(at, from_node);
  at = put(at, to_node);
  at = put(at, call);
  CHECK(at == out + kBytes, "a header is {} bytes", kBytes);
}

base::Result<Header> Header::read(base::ByteView in) {
  if (in.size() != kBytes) {
    return base::fail(base::Code::kCorrupt, "the header has {} bytes, not {}", in.size(), kBytes);
  }
  Header header;
  uint32_t magic = 0;
  const std::byte* at = get(in.data(), &magic);
  if (magic != kMagic) {
    return base::fail(base::Code::kCorrupt, "the header begins with {:#010x}, not with SRVL",
                      magic);
  }
  at = get(at, &header.protocol);
  at = get(at, &header.type);
  at = get(at, &header.from_actor);
  at = get(at, &header.to_actor);
  at = get(at, &header.flags);
  at = get(at, &header.from_node);
  at = get(at, &header.to_node);
  get(at, &header.call);
  return header;
}

}  // namespace actor
