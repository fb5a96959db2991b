#include "base/log.h"

#include <gtest/gtest.h>

#include <vector>

namespace base {
namespace {

struct Lines {
  std::vector<std::string> text;
  Log log(LogFormat format, Level least = Level::kDebug) {
    return Log("decode/1", format, least,
               [this](Level, std::string_view line) { text.emplace_back(line); });
  }
};
const Time kAt{12'034'000'000ns};

TEST(Log, ATextLineIsTimeNodeLevelEventAndFields) {
  Lines lines;
  lines.log(LogFormat::kText)
      .write(kAt, Level::kInfo, "kv.layer.received", {{"request", 17}, {"layer", 3u}});
  EXPECT_EQ(lines.text.at(0), "12.034 decode/1 info kv.layer.received request=17 layer=3");
}

TEST(Log, AJsonLineHasTheSameParts) {
  Lines lines;
  lines.log(LogFormat::kJson).write(kAt, Level::kWarn, "peer.lost", {{"peer", "decode 2"}});
  EXPECT_EQ(
      lines.text.at(0),
      R"({"t":12.034,"node":"decode/1","level":"warn","event":"peer.lost","peer":"decode 2"})");
}

TEST(Log, NoValueBreaksOutOfItsLine) {
  const std::string evil = "a\nb \"c\" \\ \x1b[2J \xc2\x9b \xff d=é";
  Lines text, json;
  text.log(LogFormat::kText).write(kAt, Level::kInfo, "e", {{"v", evil}, {"empty", ""}});
  json.log(LogFormat::kJson).write(kAt, Level::kInfo, "e", {{"v", evil}});
  const std::string escaped = R"(a\nb \"c\" \\ \u001b[2J \u009b \ufffd d=é)";
  EXPECT_EQ(text.text.at(0), "12.034 decode/1 info e v=\"" + escaped + "\" empty=\"\"");
  EXPECT_EQ(json.text.at(0),
            R"({"t":12.034,"node":"decode/1","level":"info","event":"e","v":")" + escaped + "\"}");
}

TEST(Log, InvalidUtf8IsReplacedByteByByte) {
  for (const char* bad : {"\xC0\x80", "\xED\xA0\x80", "\xF4\x90\x80\x80", "\xE2\x82"}) {
    Lines json;
    json.log(LogFormat::kJson).write(kAt, Level::kInfo, "e", {{"v", bad}});
    EXPECT_NE(json.text.at(0).find("\\ufffd"), std::string::npos);
    for (const char c : json.text.at(0)) EXPECT_GT(c, 0) << "a raw byte was let through";
  }
}

TEST(Log, AFieldCannotTakeTheNameOfTheLinesOwnKeys) {
  Lines json;
  json.log(LogFormat::kJson).write(kAt, Level::kInfo, "e", {{"node", 7}});
  EXPECT_EQ(json.text.at(0),
            R"({"t":12.034,"node":"decode/1","level":"info","event":"e","node_":"7"})");
}

TEST(Log, LinesBelowTheLeastLevelAreNotMade) {
  Lines lines;
  Log log = lines.log(LogFormat::kText, Level::kWarn);
  log.write(kAt, Level::kInfo, "quiet", {});
  log.set_node("coordinator");
  log.write(kAt, Level::kError, "loud", {});
  ASSERT_EQ(lines.text.size(), 1u);
  EXPECT_EQ(lines.text[0], "12.034 coordinator error loud");
  Log::discard().write(kAt, Level::kError, "nowhere", {});
}

TEST(Log, StderrGetsWholeLines) {
  testing::internal::CaptureStderr();
  Log::to_stderr("kvstore", LogFormat::kText, Level::kInfo).write(kAt, Level::kInfo, "hi", {});
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "12.034 kvstore info hi\n");
}

}  // namespace
}  // namespace base
