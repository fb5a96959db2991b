#include "base/hash.h"

#include <gtest/gtest.h>

#include <string>

namespace base {
namespace {

TEST(Hash, IsXxh3As128BitsInCanonicalHex) {
  // xxhsum -H2 of nothing and of the file holding "abc".
  EXPECT_EQ(hash128(std::string_view()).hex(), "99aa06d3014798d86001c324468d497f");
  EXPECT_EQ(hash128("abc").hex(), "06b05ab6733a618578af5f94892f3950");
}

TEST(Hash, AChainNamesItsSequence) {
  const Hash128 a = hash128("a");
  const Hash128 ax = hash_chain(a, as_bytes("x"));
  EXPECT_NE(hash_chain(ax, as_bytes("y")), hash_chain(hash_chain(a, as_bytes("y")), as_bytes("x")));
  EXPECT_NE(ax, hash_chain(hash128("b"), as_bytes("x")));
  EXPECT_EQ(ax, hash_chain(hash128("a"), as_bytes("x")));
}

TEST(Hash, AChainIsTheHashOfTheParentsBytesAndThenTheBytes) {
  const Hash128 parent{0x0807060504030201u, 0x100f0e0d0c0b0a09u};
  std::string joined;
  for (char c = 1; c <= 16; ++c) joined += c;
  joined += std::string(1000, 'z');
  EXPECT_EQ(hash_chain(parent, as_bytes(std::string(1000, 'z'))), hash128(joined));
}

TEST(Hash, TheSeedOfHash64Matters) {
  EXPECT_NE(hash64(as_bytes("abc"), 1), hash64(as_bytes("abc"), 2));
  EXPECT_EQ(hash64(as_bytes("abc")), 0x78af5f94892f3950u);  // xxhsum -H3
}

}  // namespace
}  // namespace base
