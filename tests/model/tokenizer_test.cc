#include "model/tokenizer.h"

#include <gtest/gtest.h>

#include <ctime>

#include "base/rng.h"
#include "model/json.h"
#include "model/pretokenizer.h"
#include "model/utf8.h"
#include "tests/model/safetensors_writer.h"

namespace model {
namespace {

using base::Code;

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr double kSecondsMost = 20;  // sanitizers cost about tenfold
#else
constexpr double kSecondsMost = 2;
#endif

const std::string kBuiltIn = SERVAL_SOURCE_DIR "/models/serval-tiny";

Tokenizer built_in() {
  auto tokenizer = Tokenizer::load(kBuiltIn);
  EXPECT_TRUE(tokenizer) << (tokenizer ? "" : tokenizer.error().what);
  return std::move(*tokenizer);
}

std::vector<TokenId> ids_of(const Json& list) {
  std::vector<TokenId> ids;
  for (const Json& id : list.list) ids.push_back(static_cast<TokenId>(id.integer));
  return ids;
}

Json json_of(const std::string& file) {
  auto json = parse_json(test::read_text(file), file);
  EXPECT_TRUE(json);
  return json ? *json : Json{};
}

TEST(Tokenizer, GivesTheIdsOfEveryRecordedCase) {
  const Tokenizer tokenizer = built_in();
  const Json cases = json_of(kBuiltIn + "/tokenizer_cases.json");
  ASSERT_EQ(cases.list.size(), 17u);
  for (const Json& item : cases.list) {
    const std::string& text = item.find("text")->text;
    const auto ids = ids_of(*item.find("ids"));
    EXPECT_EQ(tokenizer.encode_with_specials(text), ids) << text;
    EXPECT_EQ(tokenizer.decode(ids, /*specials=*/true), text);
  }
}

TEST(Tokenizer, GivesTheIdsOfEveryReferencePrompt) {
  const Tokenizer tokenizer = built_in();
  const Json reference = json_of(kBuiltIn + "/reference.json");
  const auto& prompts = reference.find("prompts")->list;
  ASSERT_EQ(prompts.size(), 6u);
  for (const Json& item : prompts) {
    EXPECT_EQ(tokenizer.encode_with_specials(item.find("prompt")->text),
              ids_of(*item.find("input_ids")));
    EXPECT_EQ(tokenizer.decode(ids_of(*item.find("greedy_32")), true), item.find("text")->text);
  }
}

TEST(Tokenizer, KnowsItsSpecialTokens) {
  const Tokenizer tokenizer = built_in();
  EXPECT_EQ(tokenizer.size(), 3072u);
  EXPECT_EQ(*tokenizer.special("</longcat_s>"), 2u);
  EXPECT_EQ(*tokenizer.special("<longcat_user>"), 5u);
  EXPECT_EQ(tokenizer.special("def").error().code, Code::kNotFound);
  EXPECT_TRUE(tokenizer.is_special(16));
  EXPECT_FALSE(tokenizer.is_special(17));
  EXPECT_FALSE(tokenizer.is_special(99999));
  EXPECT_EQ(tokenizer.bytes(5), "");
  EXPECT_EQ(tokenizer.bytes(5, true), "<longcat_user>");
  EXPECT_EQ(tokenizer.bytes(99999, true), "");
}

TEST(Tokenizer, TextOfAUserNeverBecomesASpecialToken) {
  const Tokenizer tokenizer = built_in();
  for (TokenId id = 0; id < 17; ++id) {
    const std::string tag(tokenizer.bytes(id, true));
    ASSERT_FALSE(tag.empty());
    EXPECT_EQ(tokenizer.encode_with_specials(tag), std::vector<TokenId>{id});
    for (const std::string& text : {tag, "a" + tag + "b", tag + tag, " " + tag + "\n"}) {
      const auto ids = tokenizer.encode(text);
      for (const TokenId got : ids) EXPECT_FALSE(tokenizer.is_special(got)) << text;
      EXPECT_EQ(tokenizer.decode(ids), text);
    }
  }
}

// A text of random parts: words, spaces of many kinds, other scripts, tags, stray bytes.
std::string random_text(base::Rng& random, bool valid) {
  static const std::vector<std::string> kParts = {"a",
                                                  "Hello",
                                                  " ",
                                                  "  ",
                                                  "\t",
                                                  "\n",
                                                  "\r\n",
                                                  "'ll",
                                                  "'S",
                                                  "123",
                                                  "\xC2\xA0",
                                                  "\xE2\x80\x83",
                                                  "é",
                                                  "日本",
                                                  "\xF0\x9F\x98\x80",
                                                  "\xE1\xA0\x8E",
                                                  "def ",
                                                  "_",
                                                  "...",
                                                  "<longcat_user>",
                                                  "\xCC\x81",
                                                  std::string("\0", 1),
                                                  "\x7F",
                                                  "ſ",
                                                  "\xC2\x85"};
  std::string text;
  for (size_t parts = random.below(40); parts > 0; --parts) {
    if (!valid && random.below(3) == 0)
      text.push_back(static_cast<char>(random.next()));
    else
      text += kParts[random.below(kParts.size())];
  }
  return text;
}

TEST(Tokenizer, DecodingGivesBackAnyBytes) {
  const Tokenizer tokenizer = built_in();
  base::Rng random(7);
  for (int i = 0; i < 3000; ++i) {
    const std::string text = random_text(random, i % 2 == 0);
    EXPECT_EQ(tokenizer.decode(tokenizer.encode(text)), text);
    EXPECT_EQ(tokenizer.decode(tokenizer.encode_with_specials(text), true), text);
  }
}

// Byte-pair merging as its definition reads: again and again the first pair of the lowest rank.
TEST(Tokenizer, LongPiecesMergeAsTheDefinitionSays) {
  const Tokenizer tokenizer = built_in();
  const Json file = json_of(kBuiltIn + "/tokenizer.json");
  std::map<std::pair<std::string, std::string>, size_t> ranks;
  for (const Json& merge : file.find("model")->find("merges")->list) {
    const size_t space = merge.text.find(' ');
    const size_t rank = ranks.size();
    ranks[{merge.text.substr(0, space), merge.text.substr(space + 1)}] = rank;
  }
  base::Rng random(3);
  for (const size_t length : {2u, 5u, 31u, 32u, 33u, 34u, 70u, 300u}) {
    for (int repeat = 0; repeat < 20; ++repeat) {
      std::vector<std::string> symbols;
      std::string text;
      for (size_t i = 0; i < length; ++i) {
        text.push_back("etaoinsrself"[random.below(12)]);
        symbols.push_back(text.substr(i));
      }
      for (;;) {
        size_t best = SIZE_MAX, at = 0;
        for (size_t i = 0; i + 1 < symbols.size(); ++i) {
          const auto found = ranks.find({symbols[i], symbols[i + 1]});
          if (found != ranks.end() && found->second < best) best = found->second, at = i;
        }
        if (best == SIZE_MAX) break;
        symbols[at] += symbols[at + 1];
        symbols.erase(symbols.begin() + static_cast<ptrdiff_t>(at) + 1);
      }
      std::vector<std::string> got;
      for (const TokenId id : tokenizer.encode(text)) got.emplace_back(tokenizer.bytes(id));
      EXPECT_EQ(got, symbols);
    }
  }
}

TEST(Tokenizer, AMegabyteWithoutABreakIsNoAttack) {
  const Tokenizer tokenizer = built_in();
  const size_t size = 1 << 20;
  std::string mixed;
  base::Rng random(1);
  while (mixed.size() < size) mixed.push_back(static_cast<char>('a' + random.below(26)));
  std::string wide;
  while (wide.size() < size) wide += "日本";
  for (const std::string& text :
       {std::string(size, 'a'), std::string(size, ' '), std::string(size, '\n'),
        std::string(size, '\t') + "x", std::string(size, '<'), std::string(size, '\xFF'), mixed,
        wide, std::string(size, '1'), std::string(size, '\'')}) {
    const std::clock_t begin = std::clock();
    const auto ids = tokenizer.encode_with_specials(text);
    const double seconds = static_cast<double>(std::clock() - begin) / CLOCKS_PER_SEC;
    EXPECT_LT(seconds, kSecondsMost) << "for a run of " << text.substr(0, 3);
    EXPECT_EQ(tokenizer.decode(ids), text);
  }
}

// A tokenizer.json of the 256 bytes and a few merges, with parts replaced by the test.
std::string small_file(const std::string& pre_tokenizer, const std::string& more_model = "",
                       const std::string& added = "[]", const std::string& more = "") {
  std::string vocab;
  unsigned free = 0x100;
  for (unsigned byte = 0; byte < 256; ++byte) {
    const bool own =
        (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
    std::string character;
    append_utf8(own ? byte : free++, &character);
    const bool escape = character == "\"" || character == "\\";
    vocab += fmt::format("\"{}{}\": {}, ", escape ? "\\" : "", character, byte);
  }
  return fmt::format(R"({{"added_tokens": {}, "pre_tokenizer": {}, {} "model": {{"type": "BPE",
    "vocab": {{{} "ab": 256, "abc": 257, "Ġa": 258, "12": 259}},
    "merges": ["a b", ["Ġ", "a"], "1 2"] {}}}}})",
                     added, pre_tokenizer, more, vocab, more_model);
}
const char* const kPlain =
    R"({"type": "ByteLevel", "add_prefix_space": false, "use_regex": false})";

base::Result<Tokenizer> load_text(const std::string& text) {
  const test::TempFolder folder;
  test::write_text(folder / "tokenizer.json", text);
  return Tokenizer::load(folder.path());
}

std::vector<TokenId> encode_with(const std::string& file, const std::string& text) {
  auto tokenizer = load_text(file);
  EXPECT_TRUE(tokenizer) << (tokenizer ? "" : tokenizer.error().what);
  return tokenizer ? tokenizer->encode_with_specials(text) : std::vector<TokenId>();
}

using Ids = std::vector<TokenId>;

TEST(Tokenizer, MergesMayBeStringsOrPairsAndTheVocabularyAloneDoesNotMerge) {
  EXPECT_EQ(encode_with(small_file(kPlain), "abc a"), (Ids{256, 'c', 258}));
  EXPECT_EQ(encode_with(small_file(kPlain, R"(, "ignore_merges": true)"), "abc"), (Ids{257}));
}

TEST(Tokenizer, ByteLevelAloneCutsWithItsOwnPatternAndMayPrefixASpace) {
  const std::string regex =
      R"({"type": "ByteLevel", "add_prefix_space": false, "use_regex": true})";
  EXPECT_EQ(encode_with(small_file(regex), "b a12"), (Ids{'b', 258, 259}));
  const std::string prefix =
      R"({"type": "ByteLevel", "add_prefix_space": true, "use_regex": true})";
  EXPECT_EQ(encode_with(small_file(prefix), "a"), (Ids{258}));
  EXPECT_EQ(encode_with(small_file(prefix), " a"), (Ids{258}));
}

TEST(Tokenizer, DigitsAndLiteralPatternsCut) {
  const auto sequence = [](const std::string& first) {
    return R"({"type": "Sequence", "pretokenizers": [)" + first + ", " + kPlain + "]}";
  };
  EXPECT_EQ(
      encode_with(small_file(sequence(R"({"type": "Digits", "individual_digits": true})")), "12"),
      (Ids{'1', '2'}));
  EXPECT_EQ(encode_with(small_file(sequence(R"({"type": "Digits"})")), "12"), (Ids{259}));
  EXPECT_EQ(encode_with(small_file(sequence(R"({"type": "Split", "behavior": "Isolated",
                                               "pattern": {"String": "b"}})")),
                        "ab"),
            (Ids{'a', 'b'}));
}

TEST(Tokenizer, NfcComposesTextAndLeavesStrayBytes) {
  const std::string file = small_file(kPlain, "", "[]", R"("normalizer": {"type": "NFC"},)");
  EXPECT_EQ(encode_with(file, "e\xCC\x81\xFF"), (Ids{0xC3, 0xA9, 0xFF}));
}

TEST(Tokenizer, AddedTextMatchesLongestFirstAndOnlyTagsAreSpecial) {
  const std::string added = R"([{"id": 300, "content": "xx", "special": false},
    {"id": 301, "content": "xxx", "special": false}, {"id": 302, "content": "<t>", "special": false},
    {"id": 303, "content": "EOS", "special": true}])";
  const auto tokenizer = load_text(small_file(kPlain, "", added));
  ASSERT_TRUE(tokenizer) << tokenizer.error().what;
  EXPECT_EQ(tokenizer->encode("xxxx<t>EOS"), (Ids{301, 'x', '<', 't', '>', 'E', 'O', 'S'}));
  EXPECT_EQ(tokenizer->encode_with_specials("xxxx<t>EOS"), (Ids{301, 'x', 302, 303}));
  EXPECT_FALSE(tokenizer->is_special(301));
  EXPECT_EQ(tokenizer->decode({301, 302, 303}), "xxx");
  EXPECT_EQ(tokenizer->size(), 304u);
}

TEST(Tokenizer, NoMergeLeadsToASpecialToken) {
  const std::string added = R"([{"id": 256, "content": "ab", "special": true}])";
  EXPECT_EQ(load_text(small_file(kPlain, "", added))->encode("ab"), (Ids{'a', 'b'}));
  EXPECT_EQ(load_text(small_file(kPlain, R"(, "ignore_merges": true)", added))->encode("ab"),
            (Ids{'a', 'b'}));
}

TEST(Tokenizer, WhatIsNotOfferedIsRefusedByName) {
  const auto split = [](const char* behavior, const char* regex) {
    return fmt::format(R"({{"type": "Sequence", "pretokenizers": [{{"type": "Split",
      "behavior": "{}", "pattern": {{"Regex": "{}"}}}}, {}]}})",
                       behavior, regex, kPlain);
  };
  const struct {
    std::string file, word;
  } cases[] = {
      {small_file(split("Removed", "a")), "Removed"},
      {small_file(split("MergedWithPrevious", "a")), "MergedWithPrevious"},
      {small_file(split("Isolated", "[a[b]]")), "inside another"},
      {small_file(split("Isolated", "[a&&b]")), "inside another"},
      {small_file(split("Isolated", "[^\\\\S\\\\n]")), "inside a character class"},
      {small_file(split("Isolated", "(")), "parenthesis"},
      {small_file(R"({"type": "Metaspace"})"), "Metaspace"},
      {small_file("null"), "byte-level"},
      {small_file(kPlain, R"(, "end_of_word_suffix": "</w>")"), "end_of_word_suffix"},
      {small_file(kPlain, R"(, "dropout": 0.1)"), "dropout"},
      {small_file(kPlain, "", "[]", R"("normalizer": {"type": "Lowercase"},)"), "Lowercase"},
      {small_file(kPlain, "", R"([{"id": 300, "content": "<t>", "lstrip": true}])"), "lstrip"},
  };
  for (const auto& c : cases) {
    const auto tokenizer = load_text(c.file);
    ASSERT_FALSE(tokenizer) << c.word;
    EXPECT_EQ(tokenizer.error().code, Code::kUnsupported);
    EXPECT_NE(tokenizer.error().what.find(c.word), std::string::npos) << tokenizer.error().what;
    EXPECT_NE(tokenizer.error().what.find("tokenizer.json"), std::string::npos);
  }
}

TEST(Tokenizer, ABrokenFileIsCorrupt) {
  for (const char* text :
       {"", "[]", "{}", R"({"model": {"type": "BPE"}})",
        R"({"model": {"vocab": {"a": -1}, "merges": []}, "pre_tokenizer": {"type": "ByteLevel"}})",
        R"({"model": {"vocab": {"a": 4000000000}, "merges": []},
            "pre_tokenizer": {"type": "ByteLevel"}})",
        R"({"model": {"vocab": {"a": 1, "b": 1}, "merges": []},
            "pre_tokenizer": {"type": "ByteLevel"}})"}) {
    const auto tokenizer = load_text(text);
    ASSERT_FALSE(tokenizer) << text;
    EXPECT_TRUE(tokenizer.error().code == Code::kCorrupt ||
                tokenizer.error().code == Code::kUnsupported)
        << tokenizer.error().what;
  }
  EXPECT_EQ(load_text(small_file(kPlain, "", R"([{"id": 97, "content": "<t>"}])")).error().code,
            Code::kCorrupt);
}

TEST(Pattern, SpaceAndWordClassesMeanWhatTheFileMeant) {
  EXPECT_EQ(*to_pcre(R"(\s+(?!\S)|[^\s\p{L}]|\\s|[]\]a])"),
            R"([\t-\r\x{85}\p{Z}]+(?![^\t-\r\x{85}\p{Z}])|[^\t-\r\x{85}\p{Z}\p{L}]|\\s|[\]\]a])");
  const std::string node = R"({"type": "Sequence", "pretokenizers": [{"type": "Split",
    "behavior": "Isolated", "pattern": {"Regex": "\\s+"}}, )" +
                           std::string(kPlain) + "]}";
  const Json json = *parse_json(node, "f");
  const auto pretokenizer = Pretokenizer::load(&json, "f");
  ASSERT_TRUE(pretokenizer) << pretokenizer.error().what;
  const std::string text = "a\xC2\xA0\xC2\x85\xE3\x80\x80z\xE1\xA0\x8Ez\xFF \xFE";
  std::vector<std::string_view> pieces;
  pretokenizer->split(text, &pieces);
  EXPECT_EQ(pieces, (std::vector<std::string_view>{"a", "\xC2\xA0\xC2\x85\xE3\x80\x80",
                                                   "z\xE1\xA0\x8Ez", "\xFF", " ", "\xFE"}));
}

TEST(Utf8Stream, HoldsBackAnUnfinishedCodePoint) {
  Utf8Stream stream;
  EXPECT_EQ(stream.push("a\xE6\x97"), "a");
  EXPECT_EQ(stream.push("\xA5"), "日");
  EXPECT_EQ(stream.push("\xF0\x9F"), "");
  EXPECT_EQ(stream.flush(), "\xEF\xBF\xBD");
  EXPECT_EQ(stream.flush(), "");
}

TEST(Utf8Stream, GivesTheSameTextHoweverTheBytesArrive) {
  base::Rng random(11);
  for (int i = 0; i < 500; ++i) {
    const std::string bytes = random_text(random, false);
    Utf8Stream whole, pieces;
    std::string expected = whole.push(bytes);
    expected += whole.flush();
    std::string got;
    for (size_t at = 0; at < bytes.size();) {
      const size_t count = 1 + random.below(3);
      got += pieces.push(std::string_view(bytes).substr(at, count));
      at += count;
    }
    got += pieces.flush();
    EXPECT_EQ(got, expected);
    for (std::string_view rest = got; !rest.empty(); rest.remove_prefix(utf8_step(rest).length))
      ASSERT_TRUE(utf8_step(rest).valid);
  }
}

TEST(Utf8, RefusesOverlongFormsSurrogatesAndWhatIsAboveTheLastCodePoint) {
  const struct {
    std::string text;
    size_t length;
    bool valid;
  } cases[] = {{"a", 1, true},
               {"\xC3\xA9", 2, true},
               {"\xF4\x8F\xBF\xBF", 4, true},
               {"\xC0\x80", 1, false},
               {"\xE0\x80\x80", 1, false},
               {"\xED\xA0\x80", 1, false},
               {"\xF4\x90\x80\x80", 1, false},
               {"\xF5\x80\x80\x80", 1, false},
               {"\xE6\x97z", 2, false},
               {"\x80", 1, false}};
  for (const auto& c : cases) {
    EXPECT_EQ(utf8_step(c.text).length, c.length);
    EXPECT_EQ(utf8_step(c.text).valid, c.valid);
  }
  for (char32_t c : {U'a', U'é', U'日', U'\U0001F600', U'\U0010FFFF'}) {
    std::string text;
    append_utf8(c, &text);
    EXPECT_EQ(decode_utf8(text), c);
  }
}

}  // namespace
}  // namespace model
