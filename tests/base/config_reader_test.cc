#include "base/config_reader.h"

#include <gtest/gtest.h>

#include "base/config_text.h"

namespace base {
namespace {

struct Settings {
  uint32_t stages = 2;
  uint64_t big = 5, ram = 1 << 20;
  double rate = 0.5;
  bool fast = false;
  std::string name = "n", mode = "slow";
  uint32_t wait_ms = 250;
};

// Reads `text` as file "c.toml" and returns the errors, or "" and the settings.
std::string read(const std::string& text, Settings* s, std::string* printed = nullptr) {
  Result<Reader> reader = Reader::parse(text, "c.toml");
  if (!reader) return reader.error().what;
  Section node = reader->section("node");
  node.integer("stages", &s->stages, {1, 64, "pipeline stages"});
  node.integer("big", &s->big, {0, ~0ull, "a big number"});
  node.real("rate", &s->rate, {0.0, 1.0, "a share"});
  node.boolean("fast", &s->fast, "quick or not");
  Section store = reader->section("store");
  store.text("name", &s->name, "a name");
  store.choice("mode", &s->mode, {{"slow", "quick"}, "how"});
  store.bytes("ram", &s->ram, {1024, 1ull << 40, "memory"});
  store.duration_ms("wait", &s->wait_ms, {1, 600'000, "a wait"});
  const Status status = reader->finish();
  if (printed != nullptr) *printed = reader->print();
  return status ? "" : status.error().what;
}

TEST(ConfigReader, ReadsEveryKindOfField) {
  Settings s;
  EXPECT_EQ(read(R"([node]
stages = 64
big = 9000000000000000000
rate = 1
fast = true
[store]
name = "a \"b\" é"
mode = "quick"
ram = "3GiB"
wait = "10m"
)",
                 &s),
            "");
  EXPECT_EQ(s.stages, 64u);
  EXPECT_EQ(s.big, 9'000'000'000'000'000'000u);
  EXPECT_EQ(s.rate, 1.0);
  EXPECT_TRUE(s.fast);
  EXPECT_EQ(s.name, "a \"b\" é");
  EXPECT_EQ(s.mode, "quick");
  EXPECT_EQ(s.ram, 3ull << 30);
  EXPECT_EQ(s.wait_ms, 600'000u);
}

TEST(ConfigReader, AnAbsentKeyOrSectionLeavesTheDefault) {
  Settings s;
  EXPECT_EQ(read("", &s), "");
  EXPECT_EQ(read("[node]\n", &s), "");
  EXPECT_EQ(s.stages, 2u);
  EXPECT_EQ(s.wait_ms, 250u);
}

TEST(ConfigReader, NamesThePlaceAndTheMistake) {
  const struct {
    const char* text;
    const char* error;
  } cases[] = {
      {"[node]\nstagse = 3\n",
       "c.toml:2:1: unknown key 'stagse' in [node]; did you mean 'stages'?"},
      {"[node]\n  zzzzzzzz = 3\n", "c.toml:2:3: unknown key 'zzzzzzzz' in [node]"},
      {"[node]\nmode = \"slow\"\n",
       "c.toml:2:1: unknown key 'mode' in [node]; it belongs to [store]"},
      {"[nodes]\nstages = 3\n", "c.toml:1:2: unknown section 'nodes'; did you mean 'node'?"},
      {"stages = 3\n", "c.toml:1:1: unknown key 'stages'"},
      {"node = 3\n", "c.toml:1:1: node is a section, written [node] and once; found an integer"},
      {"[[node]]\n", "c.toml:1:3: node is a section, written [node] and once; found an array"},
      {"[node]\nstages = \"two\"\n",
       "c.toml:2:10: node.stages: expected an integer, found a string"},
      {"[node]\nstages = 65\n", "c.toml:2:10: node.stages: 65 is not in the range 1 to 64"},
      {"[node]\nstages = -1\n", "c.toml:2:10: node.stages: -1 is not in the range 1 to 64"},
      {"[node]\nbig = -1\n",
       "c.toml:2:7: node.big: -1 is not in the range 0 to 18446744073709551615"},
      {"[node]\nrate = nan\n", "c.toml:2:8: node.rate: nan is not in the range 0 to 1"},
      {"[node]\nrate = true\n", "c.toml:2:8: node.rate: expected a number, found a boolean"},
      {"[node]\nfast = 1\n", "c.toml:2:8: node.fast: expected true or false, found an integer"},
      {"[store]\nname = [1]\n", "c.toml:2:8: store.name: expected a string, found an array"},
      {"[store]\nmode = \"quik\"\n",
       "c.toml:2:8: store.mode: \"quik\" is none of \"slow\", \"quick\"; did you mean \"quick\"?"},
      {"[store]\nram = \"3GB\"\n",
       "c.toml:2:7: store.ram: expected a size such as \"256MiB\", \"4GiB\" or a number of bytes, "
       "found \"3GB\""},
      {"[store]\nram = 10\n",
       "c.toml:2:7: store.ram: 10 is not in the range 1024 to 1099511627776"},
      {"[store]\nram = \"10B\"\n", "c.toml:2:7: store.ram: 10B is not in the range 1KiB to 1TiB"},
      {"[store]\nwait = 5\n",
       "c.toml:2:8: store.wait: expected a duration such as \"250ms\", \"2s\" or \"10m\", found an "
       "integer"},
      {"[store]\nwait = \"11m\"\n", "c.toml:2:8: store.wait: 11m is not in the range 1ms to 10m"},
  };
  for (const auto& c : cases) {
    Settings s;
    EXPECT_EQ(read(c.text, &s), c.error);
    EXPECT_EQ(s.stages, 2u);
  }
}

TEST(ConfigReader, TellsAllMistakesAtOnceInTheOrderOfTheFile) {
  Settings s;
  EXPECT_EQ(read("[store]\nmode = 3\nnmae = \"x\"\n[node]\nstages = 0\nrate = 2.5\n", &s),
            "c.toml:2:8: store.mode: expected one of \"slow\", \"quick\", found an integer\n"
            "c.toml:3:1: unknown key 'nmae' in [store]; did you mean 'name'?\n"
            "c.toml:5:10: node.stages: 0 is not in the range 1 to 64\n"
            "c.toml:6:8: node.rate: 2.5 is not in the range 0 to 1");
}

TEST(ConfigReader, ASyntaxErrorNamesItsPlace) {
  Settings s;
  EXPECT_EQ(read("[node]\nstages = \n", &s).substr(0, 9), "c.toml:2:");
  EXPECT_EQ(read("[node\nstages = 1\n", &s).substr(0, 9), "c.toml:1:");
  EXPECT_NE(read("[node]\nstages = 1\nstages = 2\n", &s).find("c.toml:"), std::string::npos);
  EXPECT_EQ(Reader::open("/nowhere/c.toml").error().what,
            "/nowhere/c.toml: cannot be opened for reading");
  EXPECT_EQ(Reader::open(testing::TempDir()).error().code, Code::kConfig);
}

TEST(ConfigReader, OddFilesAreReadOrRefusedButNeverTrusted) {
  Settings s;
  EXPECT_EQ(read("[node]\nstages = 65", &s),
            "c.toml:2:10: node.stages: 65 is not in the range 1 to 64");
  EXPECT_EQ(read("[node]\r\nstages = 4\r\n", &s), "");
  EXPECT_EQ(s.stages, 4u);
  EXPECT_EQ(read("# nothing but a comment", &s), "");
  EXPECT_NE(read("[node]\nbig = 99999999999999999999\n", &s), "");
  EXPECT_NE(read("[node]\nstages = 99999999999999999999\n", &s), "");
  EXPECT_NE(read("[store]\nname = \"\xff\"\n", &s), "");
  EXPECT_NE(read(std::string("\0\0", 2), &s), "");
  EXPECT_EQ(s.stages, 4u);
}

TEST(ConfigReader, ThePrintIsTomlThatReadsBackTheSame) {
  const std::string text = "[node]\nstages = 7\n\n[store]\nram = 4096\nname = \"a\\nb\"\n";
  Settings first, second;
  std::string printed, again;
  EXPECT_EQ(read(text, &first, &printed), "");
  EXPECT_NE(printed.find("# pipeline stages (1 to 64)\nstages = 7  # c.toml:2\n"),
            std::string::npos);
  EXPECT_NE(printed.find("ram = \"4KiB\"  # c.toml:5\n"), std::string::npos);
  EXPECT_NE(printed.find("wait = \"250ms\"  # default\n"), std::string::npos);
  EXPECT_EQ(read(printed, &second, &again), "");
  EXPECT_EQ(second.stages, 7u);
  EXPECT_EQ(second.ram, 4096u);
  EXPECT_EQ(second.name, "a\nb");
}

TEST(ConfigReader, ReadsAListOfSections) {
  Result<Reader> reader =
      Reader::parse("[[listen]]\nport = 1\n[[listen]]\nport = 99\nprot = 2\n", "c.toml");
  ASSERT_TRUE(reader);
  std::vector<Section> listens = reader->sections("listen");
  ASSERT_EQ(listens.size(), 2u);
  uint32_t ports[2] = {0, 0};
  for (size_t i = 0; i < 2; ++i) listens[i].integer("port", &ports[i], {1, 50, "port"});
  reader->complain("listen[0]", "port", "1 is taken");
  EXPECT_EQ(ports[0], 1u);
  EXPECT_EQ(reader->finish().error().what,
            "c.toml:2:8: listen[0].port: 1 is taken\n"
            "c.toml:4:8: listen[1].port: 99 is not in the range 1 to 50\n"
            "c.toml:5:1: unknown key 'prot' in [listen]; did you mean 'port'?");
}

TEST(ConfigText, SizesAndDurationsRefuseWhatTheyDoNotKnow) {
  EXPECT_EQ(parse_bytes("0"), 0u);
  EXPECT_EQ(parse_bytes("12B"), 12u);
  EXPECT_EQ(parse_bytes("512KiB"), 512u << 10);
  EXPECT_EQ(parse_bytes("16777215TiB"), 16777215ull << 40);
  for (const char* bad : {"", "MiB", "1.5GiB", "-1MiB", "1 MiB", "1MB", "1mib", "16777216TiB",
                          "99999999999999999999", "1MiBx"}) {
    EXPECT_FALSE(parse_bytes(bad)) << bad;
  }
  EXPECT_EQ(parse_duration_ms("2s"), 2000u);
  for (const char* bad : {"", "5", "5h", "s", "1.5s", "-1s"}) {
    EXPECT_FALSE(parse_duration_ms(bad)) << bad;
  }
}

TEST(ConfigText, TheNearestNameIsASlipAwayOrNone) {
  const std::vector<std::string> names = {"chunk_tokens", "stages", "kv"};
  EXPECT_EQ(nearest_name("chunk_token", names), "chunk_tokens");
  EXPECT_EQ(nearest_name("satges", names), "stages");
  EXPECT_EQ(nearest_name("colour", names), "");
  EXPECT_EQ(nearest_name("x", names), "");
}

}  // namespace
}  // namespace base
