#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "tests/proto/samples.h"

namespace {

const char* const kFolder = SERVAL_SOURCE_DIR "/tests/proto/golden/";

TEST(ProtoGolden, EveryMessageStillHasItsBytes) {
  proto_test::for_each_message([]<class M>() {
    std::ifstream file(std::string(kFolder) + M::kName + ".hex");
    std::string golden;
    ASSERT_TRUE(file >> golden) << M::kName << ": no golden bytes; run proto_golden --rewrite";
    EXPECT_EQ(proto_test::to_hex(encode(proto_test::sample<M>())), golden) << M::kName;
  });
}

TEST(ProtoGolden, EveryGoldenFileBelongsToAMessage) {
  size_t files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(kFolder)) {
    (void)entry;
    ++files;
  }
  EXPECT_EQ(files, std::tuple_size_v<proto::AllMessages>);
}

TEST(ProtoGolden, AShortMessageIsTheseBytes) {
  proto::KvCommit commit;
  commit.request = {300};
  commit.attempt = 2;
  commit.digests = {{0x0807060504030201, 0x100f0e0d0c0b0a09}};
  EXPECT_EQ(proto_test::to_hex(encode(commit)),
            "9b"  // eleven fields
            "cd012c"
            "02"
            "00"
            "00"
            "00"  // request, attempt, layers, tokens
            "91"
            "c410"
            "100f0e0d0c0b0a090807060504030201"  // one digest, high word first
            "c2"
            "00"
            "90"
            "00"  // no token, no logprobs
            "c410"
            "00000000000000000000000000000000");  // no hidden row
}

}  // namespace
