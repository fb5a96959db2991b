// A JSON document as a plain tree whose objects keep the order of the text. The model's files and
// the arguments of tool calls are read with it; the parser library stays behind json.cc.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/result.h"

namespace model {

struct Json {
  enum class Kind : uint8_t { kNull, kBool, kInteger, kReal, kText, kList, kMap };
  Kind kind = Kind::kNull;
  bool boolean = false;
  int64_t integer = 0;
  double real = 0;   // also set for kInteger
  std::string text;  // kText; for kReal the number as it was written
  std::vector<Json> list;
  std::vector<std::pair<std::string, Json>> map;

  bool is(Kind k) const { return kind == k; }
  // The member of a map, null when this is no map, has no such key, or the value is JSON null.
  const Json* find(std::string_view key) const;
};

// kCorrupt, naming `file` and the byte. Refuses nesting deeper than 64, duplicate keys, bad UTF-8.
base::Result<Json> parse_json(std::string_view text, const std::string& file);

// As Python's json.dumps(value, ensure_ascii=False) writes it, which is what chat templates were
// trained with: ", " and ": ", numbers by repr, no HTML escapes.
std::string dump_python(const Json& value);

// A whole file of at most `limit` bytes. kNotFound, kIo, kTooLarge.
base::Result<std::string> read_file(const std::string& path, uint64_t limit);

}  // namespace model
