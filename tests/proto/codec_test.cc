#include <gtest/gtest.h>

#include "proto/reader.h"
#include "tests/proto/samples.h"

namespace {

using proto_test::equal;
using proto_test::for_each_message;
using proto_test::sample;

TEST(ProtoCodec, EveryMessageComesBackAsItLeft) {
  for_each_message([]<class M>() {
    for (uint64_t seed = 0; seed < 20; ++seed) {
      const M sent = sample<M>(seed);
      M received;
      const base::Status status = decode(base::as_bytes(encode(sent)), received);
      ASSERT_TRUE(status) << M::kName << ": " << status.error().what;
      EXPECT_TRUE(equal(sent, received)) << M::kName << " seed " << seed;
    }
  });
}

TEST(ProtoCodec, DefaultsComeBackAsDefaults) {
  for_each_message([]<class M>() {
    M received = sample<M>();
    ASSERT_TRUE(decode(base::as_bytes(encode(M{})), received)) << M::kName;
    EXPECT_TRUE(equal(received, M{})) << M::kName;
  });
}

// The bytes of each field of an encoded message.
std::vector<std::string> fields_of(const std::string& bytes) {
  proto::Reader reader(base::as_bytes(bytes));
  uint32_t count = 0;
  EXPECT_TRUE(reader.open_array(count));
  std::vector<std::string> out;
  for (uint32_t i = 0; i < count; ++i) {
    const size_t begin = reader.position();
    EXPECT_TRUE(reader.skip());
    out.push_back(bytes.substr(begin, reader.position() - begin));
  }
  EXPECT_TRUE(reader.at_end());
  return out;
}

std::string array_of(const std::vector<std::string>& fields) {
  std::string out;
  const size_t count = fields.size();
  if (count < 16) {
    out += static_cast<char>(0x90 | count);
  } else {
    out += '\xdc';
    out += static_cast<char>(count >> 8);
    out += static_cast<char>(count);
  }
  for (const std::string& field : fields) out += field;
  return out;
}

TEST(ProtoCodec, OldCodeNewData) {
  // A newer version appended fields of every kind; this version reads what it knows.
  const std::vector<std::string> more = {
      "\x07",
      std::string("\xcf\xff\xff\xff\xff\xff\xff\xff\xff", 9),
      "\xff",                                                  // -1
      std::string("\xd1\xff\x00", 3),                          // -256
      "\xc3",                                                  // true
      std::string("\xca\x3f\x80\x00\x00", 5),                  // 1.0f
      std::string("\xcb\x3f\xf0\x00\x00\x00\x00\x00\x00", 9),  // 1.0
      "\xa3gnu",
      "\xc4\x10" + std::string(16, 'x'),
      "\x92\x91\x01\x90",  // [[1], []]
  };
  for_each_message([&]<class M>() {
    const M sent = sample<M>();
    std::vector<std::string> fields = fields_of(encode(sent));
    EXPECT_EQ(fields.size(), proto_test::field_count<M>());
    for (const std::string& field : more) {
      fields.push_back(field);
      M received;
      const base::Status status = decode(base::as_bytes(array_of(fields)), received);
      ASSERT_TRUE(status) << M::kName << ": " << status.error().what;
      EXPECT_TRUE(equal(sent, received)) << M::kName;
    }
  });
}

TEST(ProtoCodec, NewCodeOldData) {
  // Every older version had a prefix of today's fields; the others keep their defaults.
  for_each_message([]<class M>() {
    const std::vector<std::string> sent = fields_of(encode(sample<M>()));
    const std::vector<std::string> defaults = fields_of(encode(M{}));
    for (size_t kept = 0; kept <= sent.size(); ++kept) {
      const std::vector<std::string> older(sent.begin(), sent.begin() + static_cast<long>(kept));
      M received = sample<M>(/*seed=*/7);
      const base::Status status = decode(base::as_bytes(array_of(older)), received);
      ASSERT_TRUE(status) << M::kName << " of " << kept << ": " << status.error().what;
      const std::vector<std::string> got = fields_of(encode(received));
      for (size_t i = 0; i < sent.size(); ++i) {
        EXPECT_EQ(got[i], i < kept ? sent[i] : defaults[i]) << M::kName << " field " << i;
      }
    }
  });
}

TEST(ProtoCodec, IntegersKeepEveryBoundaryValue) {
  for (const uint64_t value :
       {uint64_t{0}, uint64_t{127}, uint64_t{128}, uint64_t{255}, uint64_t{256}, uint64_t{65535},
        uint64_t{65536}, uint64_t{0xffffffff}, uint64_t{0x100000000}, UINT64_MAX}) {
    proto::Cancel sent, received;
    sent.request = {value};
    ASSERT_TRUE(decode(base::as_bytes(encode(sent)), received)) << value;
    EXPECT_EQ(received.request.value, value);
  }
  for (const int32_t value :
       {0, 127, 128, 65536, INT32_MAX, -1, -32, -33, -128, -129, -32768, -32769, INT32_MIN}) {
    proto::ReserveKv sent, received;
    sent.sampling.top_logprobs = value;
    const base::Status status = decode(base::as_bytes(encode(sent)), received);
    ASSERT_TRUE(status) << value << status.error().what;
    EXPECT_EQ(received.sampling.top_logprobs, value);
  }
}

TEST(ProtoCodec, AMillionTokensFitInOneMessage) {
  proto::StartPrefill sent, received;
  sent.tokens.assign(1u << 20, 131071);
  ASSERT_TRUE(decode(base::as_bytes(encode(sent)), received));
  EXPECT_EQ(received.tokens, sent.tokens);
}

TEST(ProtoCodec, SamplingComesBackFromTheWire) {
  base::Sampling sampling;
  sampling.temperature = 0.5f;
  sampling.top_p = 0.9f;
  sampling.top_k = 5;
  sampling.min_p = 0.1f;
  sampling.frequency_penalty = -1;
  sampling.presence_penalty = 1.5f;
  sampling.repetition_penalty = 1.1f;
  sampling.seed = 1ull << 63;
  sampling.choice = 3;
  sampling.max_tokens = 17;
  sampling.min_tokens = 2;
  sampling.ignore_eos = true;
  sampling.top_logprobs = 4;
  sampling.stop_tokens = {1, 2};
  sampling.logit_bias = {{7, -100.0f}};
  sampling.grammar = {base::GrammarKind::kRegex, "a+"};
  const base::Sampling back = proto::from_wire(proto::to_wire(sampling));
  EXPECT_TRUE(equal(proto::to_wire(back), proto::to_wire(sampling)));
  EXPECT_EQ(back.logit_bias, sampling.logit_bias);
  EXPECT_EQ(back.grammar, sampling.grammar);
  EXPECT_EQ(back.seed, sampling.seed);
  EXPECT_EQ(back.top_logprobs, 4);
  EXPECT_EQ(back.presence_penalty, 1.5f);
  // What neither side sets is the same on both.
  EXPECT_TRUE(equal(proto::to_wire(base::Sampling{}), proto::SamplingFields{}));
}

TEST(ProtoCodec, NamesBelongToNumbers) {
  for_each_message([]<class M>() { EXPECT_STREQ(proto::message_name(M::kType), M::kName); });
  EXPECT_STREQ(proto::message_name(9999), "?");
}

TEST(ProtoCodec, TheDigestOfKvRowsDependsOnTheirPlace) {
  const base::Blob rows = base::Blob::copy_of(base::as_bytes("some rows"));
  const base::Hash128 digest = proto::kv_digest(1, 2, rows.view());
  EXPECT_EQ(digest, proto::kv_digest(1, 2, rows.view()));
  EXPECT_NE(digest, proto::kv_digest(2, 1, rows.view()));
  EXPECT_NE(digest, proto::kv_digest(1, 3, rows.view()));
  EXPECT_NE(digest, proto::kv_digest(1, 2, base::as_bytes("same rows")));
}

TEST(SequenceDigest, BindsTheBytesToTheirChunkLayerAndAttention) {
  proto::SequenceKv message;
  message.token_begin = 5;
  message.token_count = 6;
  message.layer = 7;
  message.part = 1;
  std::string rows = "some rows of KV";
  const auto digest = [&] { return proto::sequence_digest(message, base::as_bytes(rows)); };
  const base::Hash128 good = digest();
  for (uint32_t* field :
       {&message.token_begin, &message.token_count, &message.layer, &message.part}) {
    ++*field;
    EXPECT_NE(digest(), good);
    --*field;
  }
  for (char& byte : rows) {
    for (int bit = 0; bit < 8; ++bit) {
      byte = static_cast<char>(byte ^ (1 << bit));
      EXPECT_NE(digest(), good);
      byte = static_cast<char>(byte ^ (1 << bit));
    }
  }
  EXPECT_EQ(digest(), good);
}

}  // namespace
