// Structured log, one line an event:   12.034 decode/1 info kv.layer.received request=17 layer=3
// tokens=128 Event names are stable and greppable; fields are key=value (quoted and escaped when
// they need it). As JSON lines:
// {"t":12.034,"node":"decode/1","level":"info","event":"kv.layer.received","request":"17",…}
// Request text and token ids are never logged.
#pragma once
#include <fmt/core.h>

#include <functional>
#include <initializer_list>
#include <memory>
#include <string>
#include <string_view>

#include "base/time.h"

namespace base {

enum class Level : uint8_t { kDebug, kInfo, kWarn, kError };  // kError fails a simulation run

struct Field {
  std::string_view key;
  std::string value;
  template <class T>
  Field(std::string_view k, const T& v) : key(k), value(fmt::format("{}", v)) {}
};
using Fields = std::initializer_list<Field>;

enum class LogFormat : uint8_t { kText, kJson };

class Log {
 public:
  // A line without its newline; called on the thread that logs.
  using Sink = std::function<void(Level, std::string_view line)>;

  Log(std::string node, LogFormat format, Level least, Sink sink);
  // Lines to stderr through spdlog.
  static Log to_stderr(std::string node, LogFormat format, Level least);
  static Log discard();

  void write(Time at, Level level, std::string_view event, Fields fields) const;
  void set_node(std::string node) { node_ = std::move(node); }
  const std::string& node() const { return node_; }

 private:
  std::string node_;
  LogFormat format_;
  Level least_;
  Sink sink_;
};

}  // namespace base
