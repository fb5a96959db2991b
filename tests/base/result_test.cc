#include "base/result.h"

#include <gtest/gtest.h>

#include <array>
#include <memory>
#include <set>

#include "base/bytes.h"
#include "base/check.h"

namespace base {
namespace {

Result<int> half(int x) {
  if (x % 2 != 0) return fail(Code::kInvalidArgument, "{} is odd", x);
  return x / 2;
}
Result<int> quarter(int x) {
  const int h = TRY(half(x));
  return half(h);
}
Status check_even(int x) {
  TRY(half(x));
  return {};
}
Status check_both(int x, int y) {
  TRY(check_even(x));
  return check_even(y);
}
Result<std::unique_ptr<int>> boxed(int x) { return std::make_unique<int>(TRY(half(x))); }
Result<int> unboxed(int x) {
  const std::unique_ptr<int> box = TRY(boxed(x));
  return *box;
}

TEST(Result, TryHandsOutTheValueOrReturnsTheError) {
  EXPECT_EQ(quarter(12).value(), 3);
  EXPECT_EQ(quarter(7).error().what, "7 is odd");
  EXPECT_EQ(quarter(6).error().what, "3 is odd");
  EXPECT_TRUE(check_both(2, 4));
  EXPECT_EQ(check_both(2, 5).error().code, Code::kInvalidArgument);
}

TEST(Result, TryMovesWhatCannotBeCopied) {
  EXPECT_EQ(unboxed(8).value(), 4);
  EXPECT_EQ(unboxed(9).error().what, "9 is odd");
}

TEST(Result, AnErrorReadsAsCodeAndSentence) {
  EXPECT_EQ(to_string(Error{Code::kPeerGone, "decode-1 left"}), "peer_gone: decode-1 left");
}

TEST(ErrorCodes, EveryCodeHasItsOwnName) {
  std::set<std::string_view> names;
  for (uint16_t number = 1; number <= 16; ++number) {
    names.insert(name(static_cast<Code>(number)));
  }
  EXPECT_EQ(names.size(), 16u);
  EXPECT_FALSE(names.contains("unknown"));
  EXPECT_EQ(name(static_cast<Code>(999)), "unknown");
  EXPECT_EQ(name(Code::kContextLength), "context_length");
}

TEST(CheckDeathTest, AFalseConditionEndsTheProcessWithItsText) {
  EXPECT_DEATH(CHECK(1 == 2, "numbers are {}", "broken"),
               "result_test.cc:[0-9]+: CHECK.1 == 2. failed: numbers are broken");
  EXPECT_DEATH(CHECK(1 == 2), "failed");
  CHECK(1 == 1, "never formatted");
}

TEST(Blob, CopiesShareTheirBytes) {
  Blob first(Bytes{std::byte{1}, std::byte{2}});
  const Blob second = first;
  EXPECT_EQ(first.view().data(), second.view().data());
  first = Blob();
  EXPECT_TRUE(first.empty());
  ASSERT_EQ(second.size(), 2u);
  EXPECT_EQ(second.view()[1], std::byte{2});
}

TEST(Blob, MovingAVectorInKeepsItsBuffer) {
  Bytes bytes(100);
  const std::byte* data = bytes.data();
  EXPECT_EQ(Blob(std::move(bytes)).view().data(), data);
}

TEST(Blob, ValuesComeBackBitForBit) {
  const std::vector<float> values = {1.5f, -0.0f, 3e38f};
  const Blob blob = Blob::of(std::span<const float>(values));
  EXPECT_EQ(blob.to_vector<float>(), values);
  using Five = std::array<char, 5>;
  EXPECT_DEATH(blob.to_vector<Five>(), "12 bytes are no whole number");
}

}  // namespace
}  // namespace base
