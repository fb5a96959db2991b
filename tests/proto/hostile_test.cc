// decode() against bytes that no peer of ours would send: nothing crashes, nothing large is
// allocated, what is refused changes nothing.
#include <gtest/gtest.h>

#include "tests/proto/allocations.h"
#include "tests/proto/samples.h"

namespace {

using proto_test::equal;
using proto_test::for_each_message;
using proto_test::sample;

template <class M>
base::Status try_decode(const std::string& bytes) {
  M message = sample<M>(/*seed=*/3);
  base::Status status = decode(base::as_bytes(bytes), message);
  if (!status) {
    EXPECT_TRUE(equal(message, sample<M>(3))) << "a refused message was changed";
  }
  return status;
}

TEST(ProtoHostile, EveryTruncationIsRefused) {
  for_each_message([]<class M>() {
    const std::string bytes = encode(sample<M>());
    for (size_t cut = 0; cut < bytes.size(); ++cut) {
      const base::Status status = try_decode<M>(bytes.substr(0, cut));
      ASSERT_FALSE(status) << M::kName << " cut to " << cut << " of " << bytes.size();
      EXPECT_EQ(status.error().code, base::Code::kCorrupt);
      EXPECT_NE(status.error().what.find(M::kName), std::string::npos);
    }
  });
}

TEST(ProtoHostile, BytesAfterTheMessageAreRefused) {
  for_each_message(
      []<class M>() { EXPECT_FALSE(try_decode<M>(encode(sample<M>()) + '\0')) << M::kName; });
}

TEST(ProtoHostile, MutationsAreRefusedOrReadAsSomeMessage) {
  base::Rng rng(4711);
  for_each_message([&]<class M>() {
    const std::string good = encode(sample<M>());
    for (int round = 0; round < 3000; ++round) {
      std::string bytes = good;
      const uint64_t changes = 1 + rng.below(4);
      for (uint64_t i = 0; i < changes; ++i) {
        const size_t at = rng.below(bytes.size());
        switch (rng.below(4)) {
          case 0:
            bytes[at] = static_cast<char>(rng.next());
            break;
          case 1:
            bytes[at] = static_cast<char>(bytes[at] ^ (1 << rng.below(8)));
            break;
          case 2:
            bytes.insert(at, 1, static_cast<char>(rng.next()));
            break;
          default:
            if (bytes.size() > 1) bytes.erase(at, 1);
        }
      }
      M message;
      if (!decode(base::as_bytes(bytes), message)) continue;
      // Accepted: a message like any other.
      M again;
      ASSERT_TRUE(decode(base::as_bytes(encode(message)), again)) << M::kName;
    }
  });
}

TEST(ProtoHostile, RandomBytesNeverCrash) {
  base::Rng rng(815);
  for_each_message([&]<class M>() {
    for (int round = 0; round < 2000; ++round) {
      std::string bytes(rng.below(64), '\0');
      for (char& c : bytes) c = static_cast<char>(rng.next());
      if (!bytes.empty()) bytes[0] = static_cast<char>(0x90 | rng.below(16));
      M message;
      (void)decode(base::as_bytes(bytes), message);
    }
  });
}

// Every msgpack type that has a length, declaring 2^32 - 1.
TEST(ProtoHostile, DeclaredLengthsAllocateNothing) {
  for_each_message([]<class M>() {
    for (const int tag : {0xc6, 0xc9, 0xdb, 0xdd, 0xdf, 0xdc, 0xc5, 0xda}) {
      const std::string bomb = static_cast<char>(tag) + std::string(4, '\xff');
      for (size_t field = 0; field <= proto_test::field_count<M>(); ++field) {
        // The message itself, or a field after `field` - 1 zeros.
        std::string bytes = bomb;
        if (field > 0)
          bytes = static_cast<char>(0x90 | std::min<size_t>(field, 15)) +
                  std::string(std::min<size_t>(field, 15) - 1, '\0') + bomb;
        proto_test::reset_largest_allocation();
        M message;
        EXPECT_FALSE(decode(base::as_bytes(bytes), message)) << M::kName << tag;
        EXPECT_LT(proto_test::largest_allocation(), 4096u) << M::kName << tag;
      }
    }
  });
}

TEST(ProtoHostile, ManySmallElementsDoNotBecomeMuchMemory) {
  // A megabyte of empty arrays would be a hundred megabytes of TokenEntry.
  std::string bytes = "\x91\xdd";
  const uint32_t count = 1u << 20;
  for (int shift = 24; shift >= 0; shift -= 8) bytes += static_cast<char>(count >> shift);
  bytes.append(count, '\x90');
  proto_test::reset_largest_allocation();
  EXPECT_FALSE(try_decode<proto::TokenOut>(bytes));
  EXPECT_LT(proto_test::largest_allocation(), 4096u);
}

TEST(ProtoHostile, DepthIsBounded) {
  for_each_message([]<class M>() {
    // As an element of a newer version, where any value may stand.
    const std::string deep = std::string(100'000, '\x91') + '\0';
    EXPECT_FALSE(try_decode<M>(deep)) << M::kName;
  });
  EXPECT_TRUE(try_decode<proto::Done>(std::string("\x92\0", 2) +
                                      std::string(proto::Limits::kDepth - 1, '\x91') + '\x01'));
  EXPECT_FALSE(try_decode<proto::Done>(std::string("\x92\0", 2) +
                                       std::string(proto::Limits::kDepth, '\x91') + '\x01'));
}

TEST(ProtoHostile, ABodyOverTheLimitIsRefusedUnread) {
  EXPECT_FALSE(try_decode<proto::Done>(std::string(proto::Limits::kBody + 1, '\x90')));
}

TEST(ProtoHostile, OtherTypesAndLongFormsAreRefused) {
  const auto refused = [](const std::string& field) {
    return !try_decode<proto::Done>("\x91" + field);
  };
  EXPECT_FALSE(refused("\x05"));
  EXPECT_TRUE(refused("\xc0"));                                  // nil
  EXPECT_TRUE(refused("\xc3"));                                  // true
  EXPECT_TRUE(refused("\xff"));                                  // -1
  EXPECT_TRUE(refused(std::string("\xca\x00\x00\x00\x00", 5)));  // 0.0f
  EXPECT_TRUE(refused("\xa1x"));
  EXPECT_TRUE(refused("\x90"));
  EXPECT_TRUE(refused("\x80"));                          // map
  EXPECT_TRUE(refused(std::string("\xcc\x05", 2)));      // 5 in two bytes
  EXPECT_TRUE(refused(std::string("\xcd\x00\x80", 3)));  // 128 in three
  EXPECT_TRUE(refused(std::string("\xcd\x01\x00", 3)));  // 256: no uint8_t
  EXPECT_TRUE(refused(std::string("\xd0\x05", 2)));      // 5 as a signed number
  EXPECT_FALSE(try_decode<proto::Done>("\x80"));         // a map for a message
  EXPECT_FALSE(try_decode<proto::Done>(std::string("\xdc\x00\x01\x00", 4)));  // a long array header
  EXPECT_FALSE(try_decode<proto::Done>(std::string("\x92\x00\x80", 3)));  // a map in a new field
  EXPECT_FALSE(try_decode<proto::Done>(std::string("\x92\x00\xc0", 3)));  // nil in a new field
}

}  // namespace
