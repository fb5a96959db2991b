#include "proto/codec.h"

#include <array>
#include <bit>
#include <msgpack/pack.hpp>
#include <tuple>

#include "proto/all.h"
#include "proto/reader.h"

namespace proto {
namespace {

template <class T>
concept HasFields = requires(T& t) {
  t.visit([](auto&...) {});
};

template <class T>
struct IsId : std::false_type {};
template <class Tag, class Int>
struct IsId<base::Id<Tag, Int>> : std::true_type {};
template <class T>
struct IsVector : std::false_type {};
template <class T>
struct IsVector<std::vector<T>> : std::true_type {};
template <class T>
struct IsPair : std::false_type {};
template <class A, class B>
struct IsPair<std::pair<A, B>> : std::true_type {};

struct Out {
  std::string bytes;
  void write(const char* data, size_t size) { bytes.append(data, size); }
};
struct Packer : msgpack::packer<Out> {
  explicit Packer(Out& to) : msgpack::packer<Out>(to), out(to) {}
  // The library writes a whole number as an integer, whatever its type; a field keeps its type
  // here.
  template <class Bits>
  void pack_bits(char tag, Bits bits) {
    std::array<char, 1 + sizeof(Bits)> bytes{tag};
    for (unsigned i = 0; i < sizeof(Bits); ++i)
      bytes[1 + i] = static_cast<char>(bits >> (8 * (sizeof(Bits) - 1 - i)));
    out.write(bytes.data(), bytes.size());
  }
  Out& out;
};

// 16 bytes, as hex() prints them.
std::array<char, 16> hash_bytes(const base::Hash128& hash) {
  std::array<char, 16> out;
  for (unsigned i = 0; i < 8; ++i) {
    out[i] = static_cast<char>(hash.high >> (56 - 8 * i));
    out[8 + i] = static_cast<char>(hash.low >> (56 - 8 * i));
  }
  return out;
}

template <class T>
void write(Packer& to, const T& value) {
  if constexpr (std::is_enum_v<T>) {
    write(to, static_cast<std::underlying_type_t<T>>(value));
  } else if constexpr (std::is_same_v<T, bool>) {
    value ? to.pack_true() : to.pack_false();
  } else if constexpr (std::is_same_v<T, float>) {
    to.pack_bits('\xca', std::bit_cast<uint32_t>(value));
  } else if constexpr (std::is_same_v<T, double>) {
    to.pack_bits('\xcb', std::bit_cast<uint64_t>(value));
  } else if constexpr (std::is_unsigned_v<T>) {
    to.pack_uint64(value);
  } else if constexpr (std::is_signed_v<T>) {
    to.pack_int64(value);
  } else if constexpr (std::is_same_v<T, std::string>) {
    to.pack_str(static_cast<uint32_t>(value.size()));
    to.pack_str_body(value.data(), static_cast<uint32_t>(value.size()));
  } else if constexpr (std::is_same_v<T, base::Hash128>) {
    const std::array<char, 16> bytes = hash_bytes(value);
    to.pack_bin(16);
    to.pack_bin_body(bytes.data(), 16);
  } else if constexpr (IsId<T>::value) {
    write(to, value.value);
  } else if constexpr (IsPair<T>::value) {
    to.pack_array(2);
    write(to, value.first);
    write(to, value.second);
  } else if constexpr (IsVector<T>::value) {
    to.pack_array(static_cast<uint32_t>(value.size()));
    for (const auto& element : value) write(to, element);
  } else {
    static_assert(HasFields<T>, "not an allowed field type: proto/fields.h");
    value.visit([&to](const auto&... fields) {
      to.pack_array(static_cast<uint32_t>(sizeof...(fields)));
      (write(to, fields), ...);
    });
  }
}

template <class T>
bool read(Reader& from, T& value) {
  if constexpr (std::is_enum_v<T>) {
    std::underlying_type_t<T> number;
    if (!read(from, number)) return false;
    value = static_cast<T>(number);
    return true;
  } else if constexpr (std::is_same_v<T, bool>) {
    return from.boolean(value);
  } else if constexpr (std::is_same_v<T, float>) {
    return from.real32(value);
  } else if constexpr (std::is_same_v<T, double>) {
    return from.real64(value);
  } else if constexpr (std::is_unsigned_v<T>) {
    uint64_t number;
    if (!from.unsigned_integer(number, std::numeric_limits<T>::max())) return false;
    value = static_cast<T>(number);
    return true;
  } else if constexpr (std::is_signed_v<T>) {
    int64_t number;
    if (!from.signed_integer(number, std::numeric_limits<T>::min(), std::numeric_limits<T>::max()))
      return false;
    value = static_cast<T>(number);
    return true;
  } else if constexpr (std::is_same_v<T, std::string>) {
    return from.text(value);
  } else if constexpr (std::is_same_v<T, base::Hash128>) {
    return from.hash(value);
  } else if constexpr (IsId<T>::value) {
    return read(from, value.value);
  } else if constexpr (IsPair<T>::value) {
    uint32_t count;
    if (!from.open_array(count)) return false;
    if (count != 2) return from.refuse("a pair has two elements");
    const bool ok = read(from, value.first) && read(from, value.second);
    from.close_array();
    return ok;
  } else if constexpr (IsVector<T>::value) {
    uint32_t count;
    if (!from.open_array(count) || !from.charge(size_t{count} * sizeof(typename T::value_type)))
      return false;
    value.resize(count);
    for (auto& element : value) {
      if (!read(from, element)) return false;
    }
    from.close_array();
    return true;
  } else {
    static_assert(HasFields<T>, "not an allowed field type: proto/fields.h");
    uint32_t count;
    if (!from.open_array(count)) return false;
    bool ok = true;
    value.visit([&](auto&... fields) {
      uint32_t left = count;  // missing trailing fields keep their defaults
      ok = ((left == 0 || (--left, read(from, fields))) && ...);
      for (; ok && left > 0; --left) ok = from.skip();  // elements of a newer version
    });
    if (ok) from.close_array();
    return ok;
  }
}

// Makes the compiler emit both templates for every message.
template <class... Ms>
constexpr auto instances(std::type_identity<std::tuple<Ms...>>) {
  return std::make_tuple(std::make_pair(&encode<Ms>, &decode<Ms>)...);
}
[[gnu::used]] const auto kInstances = instances(std::type_identity<AllMessages>{});

}  // namespace

template <class M>
std::string encode(const M& message) {
  Out out;
  Packer packer(out);
  write(packer, message);
  return std::move(out.bytes);
}

template <class M>
base::Status decode(base::ByteView bytes, M& message) {
  Reader reader(bytes);
  M read_message;
  const bool ok = reader.fits() && read(reader, read_message) && reader.at_end();
  if (!ok) {
    return base::fail(base::Code::kCorrupt, "{} of {} bytes: {} at byte {}", M::kName, bytes.size(),
                      reader.why(), reader.position());
  }
  message = std::move(read_message);
  return {};
}

}  // namespace proto
