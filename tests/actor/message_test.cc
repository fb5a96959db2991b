#include "actor/message.h"

#include <gtest/gtest.h>

#include <array>

namespace actor {
namespace {

Header sample() {
  Header h;
  h.protocol = 0x0102;
  h.type = 0x0304;
  h.from_actor = 0x0506;
  h.to_actor = 0x0708;
  h.from_node = 0x1112131415161718;
  h.to_node = 0x2122232425262728;
  h.call = 0x3132333435363738;
  h.flags = 0x41424344;
  return h;
}

TEST(Header, CrossesAsFortyBytesInFixedOrder) {
  std::array<std::byte, Header::kBytes> bytes{};
  sample().write(bytes.data());
  std::string hex;
  for (const std::byte b : bytes) hex += fmt::format("{:02x}", std::to_integer<int>(b));
  EXPECT_EQ(hex,
            "5352564c"
            "0201"
            "0403"
            "0605"
            "0807"
            "44434241"
            "1817161514131211"
            "2827262524232221"
            "3837363534333231");
}

TEST(Header, ReadsWhatItWrote) {
  std::array<std::byte, Header::kBytes> bytes{};
  sample().write(bytes.data());
  const base::Result<Header> read = Header::read(bytes);
  ASSERT_TRUE(read);
  std::array<std::byte, Header::kBytes> again{};
  read->write(again.data());
  EXPECT_EQ(bytes, again);
  EXPECT_EQ(read->call, sample().call);
  EXPECT_EQ(read->flags, sample().flags);
}

TEST(Header, RefusesAnotherSizeOrBeginning) {
  std::array<std::byte, Header::kBytes + 1> bytes{};
  sample().write(bytes.data());
  EXPECT_EQ(Header::read(bytes).error().what, "the header has 41 bytes, not 40");
  EXPECT_EQ(Header::read(base::ByteView(bytes).first(39)).error().code, base::Code::kCorrupt);
  EXPECT_FALSE(Header::read({}));
  bytes[0] = std::byte{0};
  EXPECT_EQ(Header::read(base::ByteView(bytes).first(40)).error().what,
            "the header begins with 0x4c565200, not with SRVL");
}

}  // namespace
}  // namespace actor
