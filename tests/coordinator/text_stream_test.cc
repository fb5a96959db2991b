// Text of a choice: what is shown and what is held back, however the bytes were cut into tokens.
#include "coordinator/text_stream.h"

#include <gtest/gtest.h>

namespace coordinator {
namespace {

struct Case {
  const char* name;
  std::string text;
  std::vector<std::string> stop;
  bool include;
  std::string shown;
  bool stopped;
};

const std::vector<Case>& cases() {
  static const std::vector<Case> kCases = {
      {"no stop", "plain text", {}, false, "plain text", false},
      {"stop in the middle", "one two three", {"two"}, false, "one ", true},
      {"stop included", "one two three", {"two"}, true, "one two", true},
      {"a false start is shown", "aab aac", {"aad"}, false, "aab aac", false},
      {"a repeating stop", "aaaaab", {"aaab"}, false, "aa", true},
      {"the first completed wins", "abcdef", {"bcde", "cd"}, false, "ab", true},
      {"completed together: the longest", "abcdef", {"cd", "bcd"}, false, "a", true},
      {"held at the end", "tail ##", {"###"}, false, "tail ##", false},
      {"several bytes a character", "äöü€😀x", {"€😀"}, false, "äöü", true},
      {"stop of one byte", "a\nb", {"\n"}, false, "a", true},
      {"nothing before the stop", "STOP", {"STOP"}, false, "", true},
  };
  return kCases;
}

std::string run(const Case& c, const std::vector<std::string>& pieces, bool& stopped) {
  TextStream stream(c.stop, c.include);
  std::string shown;
  for (const std::string& piece : pieces) shown += stream.push(piece);
  shown += stream.flush();
  stopped = stream.stopped();
  return shown;
}

TEST(TextStream, ShowsTheSameTextHoweverItsBytesAreCut) {
  for (const Case& c : cases()) {
    const size_t n = c.text.size();
    for (size_t i = 0; i <= n; ++i) {
      for (size_t j = i; j <= n; ++j) {
        bool stopped = false;
        const std::string shown =
            run(c, {c.text.substr(0, i), c.text.substr(i, j - i), c.text.substr(j)}, stopped);
        ASSERT_EQ(shown, c.shown) << c.name << " cut at " << i << " and " << j;
        ASSERT_EQ(stopped, c.stopped) << c.name;
      }
    }
  }
}

TEST(TextStream, ShowsTheSameTextByteByByte) {
  for (const Case& c : cases()) {
    std::vector<std::string> pieces;
    for (const char byte : c.text) pieces.emplace_back(1, byte);
    bool stopped = false;
    EXPECT_EQ(run(c, pieces, stopped), c.shown) << c.name;
    EXPECT_EQ(stopped, c.stopped) << c.name;
  }
}

TEST(TextStream, NeverSplitsACodePoint) {
  TextStream stream({}, false);
  EXPECT_EQ(stream.push("\xE2\x82"), "");
  EXPECT_EQ(stream.push("\xAC!"), "€!");
  EXPECT_EQ(stream.push("\xF0\x9F"), "");
  EXPECT_EQ(stream.flush(), "\xEF\xBF\xBD");
}

TEST(TextStream, HoldsBackWhatMayBecomeAStop) {
  TextStream stream({"<end>"}, false);
  EXPECT_EQ(stream.push("text <e"), "text ");
  EXPECT_EQ(stream.push("n"), "");
  EXPECT_EQ(stream.push("x"), "<enx");
  EXPECT_EQ(stream.push("<end> more"), "");
  EXPECT_TRUE(stream.stopped());
  EXPECT_EQ(stream.push("more"), "");
  EXPECT_EQ(stream.flush(), "");
}

TEST(TextStream, IgnoresStopsInTokensBelowTheMinimum) {
  TextStream stream({"a"}, false);
  EXPECT_EQ(stream.push("banana", /*may_stop=*/false), "banana");
  EXPECT_EQ(stream.push("xay"), "x");
  EXPECT_TRUE(stream.stopped());
}

}  // namespace
}  // namespace coordinator
