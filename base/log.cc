#include "base/log.h"

#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <cstdio>

namespace base {
namespace {

std::string_view level_name(Level level) {
  switch (level) {
    case Level::kDebug:
      return "debug";
    case Level::kInfo:
      return "info";
    case Level::kWarn:
      return "warn";
    case Level::kError:
      break;
  }
  return "error";
}

// Bytes of the UTF-8 sequence at the start of `text`, 0 when it is not valid UTF-8.
size_t utf8_length(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char lead = byte(0);
  const size_t length = lead < 0x80   ? 1
                        : lead < 0xC2 ? 0
                        : lead < 0xE0 ? 2
                        : lead < 0xF0 ? 3
                        : lead < 0xF5 ? 4
                                      : 0;
  if (length == 0 || length > text.size()) return 0;
  for (size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xC0) != 0x80) return 0;
  }
  // Overlong forms, surrogates and what lies beyond U+10FFFF.
  if ((lead == 0xE0 && byte(1) < 0xA0) || (lead == 0xED && byte(1) > 0x9F)) return 0;
  if ((lead == 0xF0 && byte(1) < 0x90) || (lead == 0xF4 && byte(1) > 0x8F)) return 0;
  return length;
}

// Appends `text` as the inside of a quoted string that is valid JSON: no value can break out of its
// line or steer a terminal (control characters, C1 included, are escaped; bytes that are no UTF-8
// become U+FFFD).
void append_escaped(std::string* out, std::string_view text) {
  while (!text.empty()) {
    const auto c = static_cast<unsigned char>(text[0]);
    const size_t length = utf8_length(text);
    if (length == 0) {
      *out += "\\ufffd";
    } else if (c == '"' || c == '\\') {
      *out += '\\';
      *out += text[0];
    } else if (c == '\n') {
      *out += "\\n";
    } else if (c < 0x20 || c == 0x7F) {
      *out += fmt::format("\\u{:04x}", c);
    } else if (c == 0xC2 && static_cast<unsigned char>(text[1]) < 0xA0) {
      *out += fmt::format("\\u{:04x}", static_cast<unsigned char>(text[1]));
    } else {
      *out += text.substr(0, length);
    }
    text.remove_prefix(length == 0 ? 1 : length);
  }
}

bool needs_quotes(std::string_view text) {
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte <= 0x20 || byte >= 0x7F || c == '"' || c == '=' || c == '\\') return true;
  }
  return text.empty();
}

void append_value(std::string* out, std::string_view text) {
  if (!needs_quotes(text)) {
    *out += text;
    return;
  }
  *out += '"';
  append_escaped(out, text);
  *out += '"';
}

void append_json(std::string* out, std::string_view key, std::string_view value) {
  // A field may not take the place of the line's own keys.
  const bool taken = key == "t" || key == "node" || key == "level" || key == "event";
  *out += ",\"";
  append_escaped(out, key);
  *out += taken ? "_\":\"" : "\":\"";
  append_escaped(out, value);
  *out += '"';
}

std::string text_line(double t, std::string_view node, Level level, std::string_view event,
                      Fields fields) {
  std::string line = fmt::format("{:.3f} {} {} {}", t, node, level_name(level), event);
  for (const Field& field : fields) {
    line += ' ';
    line += field.key;
    line += '=';
    append_value(&line, field.value);
  }
  return line;
}

std::string json_line(double t, std::string_view node, Level level, std::string_view event,
                      Fields fields) {
  std::string line = fmt::format("{{\"t\":{:.3f},\"node\":\"", t);
  append_escaped(&line, node);
  line += fmt::format("\",\"level\":\"{}\",\"event\":\"", level_name(level));
  append_escaped(&line, event);
  line += '"';
  for (const Field& field : fields) append_json(&line, field.key, field.value);
  line += '}';
  return line;
}

spdlog::logger& stderr_logger() {
  static const auto logger = [] {
    auto made = spdlog::stderr_logger_mt("serval");
    made->set_pattern("%v");
    made->set_level(spdlog::level::trace);  // Log has filtered already
    return made;
  }();
  return *logger;
}

spdlog::level::level_enum to_spdlog(Level level) {
  switch (level) {
    case Level::kDebug:
      return spdlog::level::debug;
    case Level::kInfo:
      return spdlog::level::info;
    case Level::kWarn:
      return spdlog::level::warn;
    case Level::kError:
      break;
  }
  return spdlog::level::err;
}

}  // namespace

Log::Log(std::string node, LogFormat format, Level least, Sink sink)
    : node_(std::move(node)), format_(format), least_(least), sink_(std::move(sink)) {}

Log Log::to_stderr(std::string node, LogFormat format, Level least) {
  return Log(std::move(node), format, least, [](Level level, std::string_view line) {
    stderr_logger().log(to_spdlog(level), spdlog::string_view_t(line.data(), line.size()));
  });
}

Log Log::discard() { return Log("", LogFormat::kText, Level::kError, {}); }

void Log::write(Time at, Level level, std::string_view event, Fields fields) const {
  if (!sink_ || level < least_) return;
  const double t = seconds(at.time_since_epoch());
  sink_(level, format_ == LogFormat::kJson ? json_line(t, node_, level, event, fields)
                                           : text_line(t, node_, level, event, fields));
}

}  // namespace base
