// Formats: https://github.com/msgpack/msgpack/blob/master/spec.md
#include "proto/reader.h"

#include <bit>
#include <cstring>

namespace proto {
namespace {

constexpr uint8_t kFalse = 0xc2, kTrue = 0xc3, kBin8 = 0xc4, kFloat32 = 0xca, kFloat64 = 0xcb,
                  kUint8 = 0xcc, kUint64 = 0xcf, kInt8 = 0xd0, kInt64 = 0xd3, kStr8 = 0xd9,
                  kStr32 = 0xdb, kArray16 = 0xdc, kArray32 = 0xdd;
constexpr const char* kWrongType = "a value of another type";
constexpr const char* kNotShortest = "a number that is not in its shortest form";
constexpr const char* kCut = "the end of the bytes inside a value";

// The least value that needs `size` bytes: of 1 it is what the one-byte form has no room for.
uint64_t least_of(uint32_t size, uint64_t least_of_one) {
  return size == 1 ? least_of_one : uint64_t{1} << (4 * size);
}

}  // namespace

bool Reader::refuse(const char* why) {
  if (*why_ == '\0') why_ = why;
  return false;
}

bool Reader::fits() { return bytes_.size() <= Limits::kBody || refuse("a body over the limit"); }

bool Reader::at_end() { return left() == 0 || refuse("bytes after the message"); }

bool Reader::charge(size_t size) {
  memory_ += size;
  return memory_ <= Limits::kMemory || refuse("more memory than a message may take");
}

bool Reader::take(uint8_t& byte) {
  if (left() == 0) return refuse(kCut);
  byte = static_cast<uint8_t>(bytes_[at_++]);
  return true;
}

bool Reader::take_number(uint32_t size, uint64_t& value) {
  if (left() < size) return refuse(kCut);
  value = 0;
  for (uint32_t i = 0; i < size; ++i) value = value << 8 | static_cast<uint8_t>(bytes_[at_++]);
  return true;
}

bool Reader::boolean(bool& value) {
  uint8_t tag;
  if (!take(tag)) return false;
  if (tag != kTrue && tag != kFalse) return refuse(kWrongType);
  value = tag == kTrue;
  return true;
}

bool Reader::real32(float& value) {
  uint8_t tag;
  uint64_t bits;
  if (!take(tag)) return false;
  if (tag != kFloat32) return refuse(kWrongType);
  if (!take_number(4, bits)) return false;
  value = std::bit_cast<float>(static_cast<uint32_t>(bits));
  return true;
}

bool Reader::real64(double& value) {
  uint8_t tag;
  uint64_t bits;
  if (!take(tag)) return false;
  if (tag != kFloat64) return refuse(kWrongType);
  if (!take_number(8, bits)) return false;
  value = std::bit_cast<double>(bits);
  return true;
}

bool Reader::unsigned_integer(uint64_t& value, uint64_t most) {
  uint8_t tag;
  if (!take(tag)) return false;
  if (tag < 0x80) {
    value = tag;
  } else {
    if (tag < kUint8 || tag > kUint64) return refuse(kWrongType);
    const uint32_t size = 1u << (tag - kUint8);
    if (!take_number(size, value)) return false;
    if (value < least_of(size, 0x80)) return refuse(kNotShortest);
  }
  return value <= most || refuse("a number that is too large");
}

bool Reader::signed_integer(int64_t& value, int64_t least, int64_t most) {
  if (left() == 0) return refuse(kCut);
  const uint8_t tag = static_cast<uint8_t>(bytes_[at_]);
  if (tag >= 0xe0) {
    ++at_;
    value = static_cast<int8_t>(tag);
  } else if (tag >= kInt8 && tag <= kInt64) {
    ++at_;
    const uint32_t size = 1u << (tag - kInt8);
    uint64_t bits;
    if (!take_number(size, bits)) return false;
    const uint32_t unused = 64 - 8 * size;
    value = static_cast<int64_t>(bits << unused) >> unused;
    // Shorter forms: down to -32 in one byte, then down to -2^(bits - 1) of half the size.
    const int64_t shorter = size == 1 ? -32 : -(int64_t{1} << (4 * size - 1));
    if (value >= shorter) return refuse(kNotShortest);
  } else {
    uint64_t positive;
    if (!unsigned_integer(positive, INT64_MAX)) return false;
    value = static_cast<int64_t>(positive);
  }
  return (value >= least && value <= most) || refuse("a number out of its range");
}

bool Reader::text_length(uint8_t tag, uint32_t& length) {
  if (tag >= 0xa0 && tag <= 0xbf) {
    length = tag & 0x1f;
  } else {
    if (tag < kStr8 || tag > kStr32) return refuse(kWrongType);
    const uint32_t size = 1u << (tag - kStr8);
    uint64_t number;
    if (!take_number(size, number)) return false;
    if (number < least_of(size, 32)) return refuse(kNotShortest);
    length = static_cast<uint32_t>(number);
  }
  if (length > Limits::kString) return refuse("a string over the limit");
  return length <= left() || refuse(kCut);
}

bool Reader::text(std::string& value) {
  uint8_t tag;
  uint32_t length;
  if (!take(tag) || !text_length(tag, length) || !charge(length)) return false;
  value.assign(reinterpret_cast<const char*>(bytes_.data() + at_), length);
  at_ += length;
  return true;
}

bool Reader::hash(base::Hash128& value) {
  uint8_t tag, length;
  if (!take(tag)) return false;
  if (tag != kBin8) return refuse(kWrongType);
  if (!take(length)) return false;
  if (length != 16) return refuse("a digest that is not 16 bytes long");
  return take_number(8, value.high) && take_number(8, value.low);
}

bool Reader::open_array(uint32_t& count) {
  uint8_t tag;
  if (!take(tag)) return false;
  if (tag >= 0x90 && tag <= 0x9f) {
    count = tag & 0x0f;
  } else {
    if (tag != kArray16 && tag != kArray32) return refuse(kWrongType);
    const uint32_t size = tag == kArray16 ? 2 : 4;
    uint64_t number;
    if (!take_number(size, number)) return false;
    if (number < (size == 2 ? 16 : 0x10000)) return refuse(kNotShortest);
    count = static_cast<uint32_t>(number);
  }
  if (count > Limits::kArray) return refuse("an array over the limit");
  if (count > left()) return refuse(kCut);  // an element takes a byte at least
  return ++depth_ <= Limits::kDepth || refuse("arrays nested too deep");
}

bool Reader::skip_scalar(uint8_t tag) {
  if (tag < 0x80 || (tag >= kUint8 && tag <= kUint64) || tag >= 0xe0 ||
      (tag >= kInt8 && tag <= kInt64)) {
    int64_t number;
    uint64_t large;
    if (tag == kUint64) return unsigned_integer(large, UINT64_MAX);
    return signed_integer(number, INT64_MIN, INT64_MAX);
  }
  bool flag;
  float single;
  double wide;
  base::Hash128 digest;
  switch (tag) {
    case kTrue:
    case kFalse:
      return boolean(flag);
    case kFloat32:
      return real32(single);
    case kFloat64:
      return real64(wide);
    case kBin8:
      return hash(digest);
    default: {
      uint32_t length;
      ++at_;
      if (!text_length(tag, length)) return false;
      at_ += length;
      return true;
    }
  }
}

bool Reader::skip() {
  if (left() == 0) return refuse(kCut);
  const uint8_t tag = static_cast<uint8_t>(bytes_[at_]);
  const bool array = (tag >= 0x90 && tag <= 0x9f) || tag == kArray16 || tag == kArray32;
  if (!array) return skip_scalar(tag);
  uint32_t count;
  if (!open_array(count)) return false;
  for (uint32_t i = 0; i < count; ++i) {
    if (!skip()) return false;  // as deep as kDepth, checked by open_array
  }
  close_array();
  return true;
}

}  // namespace proto
