// Reader: the msgpack format read with suspicion. Every length is compared with the bytes that are
// there, with Limits and with a budget of memory before anything is allocated; an integer or length
// that is not in its shortest form, maps, extensions and nil are refused, so a message has one
// encoding only. Private to codec.cc and its tests.
//
// Each function reads one value and returns false when it is refused; the first refusal is kept.
#pragma once
#include <cstdint>
#include <string>

#include "base/bytes.h"
#include "base/hash.h"
#include "proto/codec.h"

namespace proto {

class Reader {
 public:
  explicit Reader(base::ByteView bytes) : bytes_(bytes) {}

  bool fits();  // the whole body is within Limits::kBody
  bool boolean(bool& value);
  bool real32(float& value);
  bool real64(double& value);
  bool unsigned_integer(uint64_t& value, uint64_t most);
  bool signed_integer(int64_t& value, int64_t least, int64_t most);
  bool text(std::string& value);
  bool hash(base::Hash128& value);
  // `count` elements follow; they are closed with close_array().
  bool open_array(uint32_t& count);
  void close_array() { --depth_; }
  // One value of any allowed type, unread.
  bool skip();
  // Takes `size` bytes of the message's memory budget.
  bool charge(size_t size);
  bool at_end();

  bool refuse(const char* why);  // false
  const char* why() const { return why_; }
  size_t position() const { return at_; }

 private:
  size_t left() const { return bytes_.size() - at_; }
  bool take(uint8_t& byte);
  bool take_number(uint32_t size, uint64_t& value);  // big endian
  bool text_length(uint8_t tag, uint32_t& length);
  bool skip_scalar(uint8_t tag);

  const base::ByteView bytes_;
  size_t at_ = 0;
  size_t memory_ = 0;
  uint32_t depth_ = 0;
  const char* why_ = "";
};

}  // namespace proto
