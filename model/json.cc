#include "model/json.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>

namespace model {
namespace {

using base::Code;
using base::fail;
constexpr size_t kDepthMost = 64;

// Builds the tree from parser events. `open_` holds the containers around the next value; their
// addresses stay because a container only grows at its end while it is the innermost one.
class Builder final : public nlohmann::json_sax<nlohmann::json> {
 public:
  explicit Builder(Json* root) : root_(root) {}
  const std::string& problem() const { return problem_; }

  bool null() override { return place({}); }
  bool boolean(bool value) override {
    Json node;
    node.kind = Json::Kind::kBool;
    node.boolean = value;
    return place(std::move(node));
  }
  bool number_integer(number_integer_t value) override {
    Json node;
    node.kind = Json::Kind::kInteger;
    node.integer = value;
    node.real = static_cast<double>(value);
    return place(std::move(node));
  }
  bool number_unsigned(number_unsigned_t value) override {
    if (value <= static_cast<number_unsigned_t>(std::numeric_limits<int64_t>::max()))
      return number_integer(static_cast<number_integer_t>(value));
    return number_float(static_cast<double>(value), std::to_string(value));
  }
  bool number_float(number_float_t value, const string_t& written) override {
    Json node;
    node.kind = Json::Kind::kReal;
    node.real = value;
    node.text = written;
    return place(std::move(node));
  }
  bool string(string_t& value) override {
    Json node;
    node.kind = Json::Kind::kText;
    node.text = std::move(value);
    return place(std::move(node));
  }
  bool binary(binary_t&) override { return false; }
  bool start_object(std::size_t) override { return open(Json::Kind::kMap); }
  bool start_array(std::size_t) override { return open(Json::Kind::kList); }
  bool key(string_t& value) override {
    open_.back()->map.emplace_back(std::move(value), Json{});
    return true;
  }
  bool end_array() override {
    open_.pop_back();
    return true;
  }
  bool end_object() override {
    const auto& map = open_.back()->map;
    std::vector<std::string_view> keys;
    keys.reserve(map.size());
    for (const auto& [key, value] : map) keys.push_back(key);
    std::sort(keys.begin(), keys.end());
    const auto twice = std::adjacent_find(keys.begin(), keys.end());
    if (twice != keys.end()) {
      problem_ = fmt::format("the key \"{}\" stands twice in one object", *twice);
      return false;
    }
    open_.pop_back();
    return true;
  }
  bool parse_error(std::size_t position, const std::string&,
                   const nlohmann::detail::exception&) override {
    problem_ = fmt::format("no valid JSON at byte {}", position);
    return false;
  }

 private:
  Json* slot() {
    if (open_.empty()) return root_;
    Json* in = open_.back();
    if (in->is(Json::Kind::kMap)) return &in->map.back().second;
    return &in->list.emplace_back();
  }
  bool place(Json node) {
    *slot() = std::move(node);
    return true;
  }
  bool open(Json::Kind kind) {
    if (open_.size() == kDepthMost) {
      problem_ = fmt::format("nested deeper than {}", kDepthMost);
      return false;
    }
    Json* at = slot();
    at->kind = kind;
    open_.push_back(at);
    return true;
  }

  Json* root_;
  std::vector<Json*> open_;
  std::string problem_;
};

void dump_text(std::string_view text, std::string* out) {
  out->push_back('"');
  for (const char c : text) {
    switch (c) {
      case '"':
        *out += "\\\"";
        break;
      case '\\':
        *out += "\\\\";
        break;
      case '\n':
        *out += "\\n";
        break;
      case '\r':
        *out += "\\r";
        break;
      case '\t':
        *out += "\\t";
        break;
      case '\b':
        *out += "\\b";
        break;
      case '\f':
        *out += "\\f";
        break;
      default:
        if (static_cast<unsigned char>(c) < 0x20)
          *out += fmt::format("\\u{:04x}", static_cast<unsigned char>(c));
        else
          out->push_back(c);
    }
  }
  out->push_back('"');
}

// Python's repr of a float: the shortest digits, an exponent when it is < -4 or >= 16.
std::string python_real(double value) {
  if (value == 0) return std::signbit(value) ? "-0.0" : "0.0";
  if (std::isinf(value)) return value < 0 ? "-Infinity" : "Infinity";
  char buffer[64];
  const auto end =
      std::to_chars(buffer, buffer + sizeof buffer, value, std::chars_format::scientific);
  const std::string_view written(buffer, static_cast<size_t>(end.ptr - buffer));
  const size_t e = written.find('e');
  const int exponent = std::atoi(std::string(written.substr(e + 1)).c_str());
  if (exponent < -4 || exponent >= 16) return std::string(written);
  const auto fixed = std::to_chars(buffer, buffer + sizeof buffer, value, std::chars_format::fixed);
  std::string out(buffer, static_cast<size_t>(fixed.ptr - buffer));
  if (out.find('.') == std::string::npos) out += ".0";
  return out;
}

void dump(const Json& value, std::string* out) {
  const char* between = "";
  switch (value.kind) {
    case Json::Kind::kNull:
      *out += "null";
      return;
    case Json::Kind::kBool:
      *out += value.boolean ? "true" : "false";
      return;
    case Json::Kind::kInteger:
      *out += std::to_string(value.integer);
      return;
    case Json::Kind::kReal:
      // An integer too large for 64 bits keeps its digits, as Python's integers do.
      *out += value.text.find_first_of(".eE") == std::string::npos ? value.text
                                                                   : python_real(value.real);
      return;
    case Json::Kind::kText:
      dump_text(value.text, out);
      return;
    case Json::Kind::kList:
      *out += '[';
      for (const Json& item : value.list) {
        *out += between;
        dump(item, out);
        between = ", ";
      }
      *out += ']';
      return;
    case Json::Kind::kMap:
      *out += '{';
      for (const auto& [key, item] : value.map) {
        *out += between;
        dump_text(key, out);
        *out += ": ";
        dump(item, out);
        between = ", ";
      }
      *out += '}';
      return;
  }
}

}  // namespace

const Json* Json::find(std::string_view key) const {
  for (const auto& [name, value] : map)
    if (name == key) return value.is(Kind::kNull) ? nullptr : &value;
  return nullptr;
}

base::Result<Json> parse_json(std::string_view text, const std::string& file) {
  Json root;
  Builder builder(&root);
  try {
    if (nlohmann::json::sax_parse(text.begin(), text.end(), &builder)) return root;
  } catch (const std::exception& e) {
    return fail(Code::kCorrupt, "{}: {}", file, e.what());
  }
  return fail(Code::kCorrupt, "{}: {}", file, builder.problem());
}

std::string dump_python(const Json& value) {
  std::string out;
  dump(value, &out);
  return out;
}

base::Result<std::string> read_file(const std::string& path, uint64_t limit) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) {
    if (errno == ENOENT || errno == ENOTDIR) return fail(Code::kNotFound, "{}: no such file", path);
    return fail(Code::kIo, "{}: {}", path, std::strerror(errno));
  }
  std::string text;
  char buffer[65536];
  ssize_t got = 0;
  int error = 0;
  while ((got = ::read(fd, buffer, sizeof buffer)) != 0) {
    if (got < 0) {
      if (errno == EINTR) continue;
      error = errno;
      break;
    }
    text.append(buffer, static_cast<size_t>(got));
    if (text.size() > limit) break;
  }
  ::close(fd);
  if (error != 0) return fail(Code::kIo, "{}: {}", path, std::strerror(error));
  if (text.size() > limit) return fail(Code::kTooLarge, "{}: over {} bytes", path, limit);
  return text;
}

}  // namespace model
