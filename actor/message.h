// What the hosts know of a message: a number, a name, and how it becomes bytes. Any struct with
//   static constexpr uint16_t kType;  static constexpr const char* kName;
// and, found by argument-dependent lookup,
//   std::string encode(const M&);   base::Status decode(base::ByteView, M&);
// is a message. Rooms that define messages (proto/) do not know this header and this header does
// not know them.
#pragma once
#include <concepts>
#include <cstdint>
#include <string>

#include "base/bytes.h"
#include "base/ids.h"
#include "base/result.h"

namespace actor {

using base::NodeId;

// Hide namespaces of these names from the calls below, which find the real ones by their argument.
void encode();
void decode();

template <class M>
concept Message = requires(const M& in, M& out, base::ByteView bytes) {
  { M::kType } -> std::convertible_to<uint16_t>;
  { M::kName } -> std::convertible_to<const char*>;
  { encode(in) } -> std::same_as<std::string>;
  { decode(bytes, out) } -> std::same_as<base::Status>;
};

// Which actor of which process.
struct Address {
  NodeId node;
  uint16_t actor = 0;
  auto operator<=>(const Address&) const = default;
};

// The first frame of every message on the wire: fixed 40 bytes, little endian.
struct Header {
  static constexpr uint32_t kMagic = 0x4C565253;  // "SRVL"
  static constexpr size_t kBytes = 40;
  uint16_t protocol = 0;  // of the sender
  uint16_t type = 0;      // message number
  uint16_t from_actor = 0;
  uint16_t to_actor = 0;
  uint64_t from_node = 0;
  uint64_t to_node = 0;
  uint64_t call = 0;   // 0: not part of a call; a reply repeats the caller's number
  uint32_t flags = 0;  // kReply
  static constexpr uint32_t kReply = 1;

  void write(std::byte* out) const;                     // kBytes bytes
  static base::Result<Header> read(base::ByteView in);  // checks size and magic
};

// A message as it crosses a host: header, body, bulk frames.
struct Envelope {
  Header header;
  std::string body;
  base::Blobs blobs;
  Address from() const { return {NodeId{header.from_node}, header.from_actor}; }
};

// A decoded message with what is needed to answer it.
template <class M>
struct Incoming {
  Address from;
  uint64_t call = 0;  // 0: no answer is awaited
  M msg;
  base::Blobs blobs;
  const M* operator->() const { return &msg; }
};

}  // namespace actor
