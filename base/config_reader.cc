#include "base/config_reader.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <limits>
#include <map>
#include <optional>
#include <set>
#include <sstream>
#include <toml.hpp>

#include "base/config_text.h"

namespace base {
namespace {

using Value = toml::basic_value<toml::discard_comments, std::map, std::vector>;
constexpr size_t kSingle = std::numeric_limits<size_t>::max();  // the index of a [section]

struct Place {
  size_t line = 0, column = 0;  // from 1; 0: no place in the file
  auto operator<=>(const Place&) const = default;
};

Place place_of(const Value& value) {
  const toml::source_location at = value.location();
  return {at.line(), at.column()};
}

// The key's own place: the value begins on the key's line, so the key stands before it there.
Place place_of_key(const std::string& key, const Value& value) {
  const toml::source_location at = value.location();
  const size_t found = at.line_str().find(key);
  return {at.line(), found == std::string::npos ? at.column() : found + 1};
}

std::string kind(const Value& value) {
  switch (value.type()) {
    case toml::value_t::boolean:
      return "a boolean";
    case toml::value_t::integer:
      return "an integer";
    case toml::value_t::floating:
      return "a number with a fraction";
    case toml::value_t::string:
      return "a string";
    case toml::value_t::array:
      return "an array";
    case toml::value_t::table:
      return "a table";
    case toml::value_t::empty:
      return "nothing";
    default:
      return "a date or time";
  }
}

std::string label(const std::string& section, size_t index) {
  return index == kSingle ? section : fmt::format("{}[{}]", section, index);
}

}  // namespace

struct Reader::State {
  struct Problem {
    Place at;
    std::string what;
  };
  struct Line {  // of print()
    std::string section;
    size_t index;
    std::string key, value, help;
    size_t origin;  // line of the file, 0: default
  };

  std::string path;
  Value root = Value(Value::table_type{});
  std::map<std::string, std::set<std::string>> asked;  // section → keys
  std::vector<Problem> problems;
  std::vector<Line> lines;

  void problem(Place at, std::string what) { problems.push_back({at, std::move(what)}); }

  const Value* table(const std::string& section, size_t index) const {
    if (section.empty()) return &root;
    const auto& top = root.as_table();
    const auto found = top.find(section);
    if (found == top.end()) return nullptr;
    if (index == kSingle) return found->second.is_table() ? &found->second : nullptr;
    if (!found->second.is_array() || index >= found->second.as_array().size()) return nullptr;
    const Value& element = found->second.as_array()[index];
    return element.is_table() ? &element : nullptr;
  }

  const Value* look(const std::string& section, size_t index, const std::string& key) const {
    const Value* in = table(section, index);
    if (in == nullptr) return nullptr;
    const auto found = in->as_table().find(key);
    return found == in->as_table().end() ? nullptr : &found->second;
  }

  // The value of a described key, or nullptr when the default stands.
  const Value* find(const std::string& section, size_t index, const std::string& key) {
    asked[section].insert(key);
    return look(section, index, key);
  }

  void wrong(const std::string& section, size_t index, const char* key, const Value& value,
             const std::string& what) {
    const std::string in = section.empty() ? "" : label(section, index) + ".";
    problem(place_of(value), fmt::format("{}{}: {}", in, key, what));
  }

  void note(const std::string& section, size_t index, const char* key, const Value* value,
            std::string rendered, std::string help) {
    lines.push_back({section, index, key, std::move(rendered), std::move(help),
                     value == nullptr ? 0 : place_of(*value).line});
  }

  void find_unknown_keys(const std::string& section, const Value& in);
  void find_unknown();
};

void Reader::State::find_unknown_keys(const std::string& section, const Value& in) {
  const std::set<std::string>& known = asked[section];
  for (const auto& [key, value] : in.as_table()) {
    if (known.contains(key)) continue;
    std::string hint;
    const std::string near = nearest_name(key, {known.begin(), known.end()});
    if (!near.empty()) hint = fmt::format("; did you mean '{}'?", near);
    for (const auto& [other, keys] : asked) {
      if (near.empty() && keys.contains(key)) hint = fmt::format("; it belongs to [{}]", other);
    }
    problem(place_of_key(key, value),
            fmt::format("unknown key '{}' in [{}]{}", key, section, hint));
  }
}

void Reader::State::find_unknown() {
  std::vector<std::string> sections;
  for (const auto& [section, keys] : asked) {
    if (!section.empty()) sections.push_back(section);
  }
  const std::set<std::string> top_keys = asked.contains("") ? asked[""] : std::set<std::string>{};
  for (const auto& [key, value] : root.as_table()) {
    if (top_keys.contains(key)) continue;
    if (!asked.contains(key)) {
      const std::string near = nearest_name(key, sections);
      problem(place_of_key(key, value),
              fmt::format("unknown {} '{}'{}", value.is_table() ? "section" : "key", key,
                          near.empty() ? "" : fmt::format("; did you mean '{}'?", near)));
    } else if (value.is_table()) {
      find_unknown_keys(key, value);
    } else if (value.is_array()) {
      for (const Value& element : value.as_array()) {
        if (element.is_table()) find_unknown_keys(key, element);
      }
    }
  }
}

Reader::Reader() : state_(std::make_unique<State>()) {}
Reader::Reader(Reader&&) noexcept = default;
Reader& Reader::operator=(Reader&&) noexcept = default;
Reader::~Reader() = default;

Result<Reader> Reader::open(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) return fail(Code::kConfig, "{}: cannot be opened for reading", path);
  std::ostringstream text;
  text << in.rdbuf();
  if (in.bad() || text.fail()) return fail(Code::kConfig, "{}: cannot be read", path);
  return parse(text.str(), path);
}

Result<Reader> Reader::parse(const std::string& text, const std::string& path) {
  Reader reader;
  reader.state_->path = path;
  try {
    std::istringstream in(text);
    reader.state_->root = toml::parse<toml::discard_comments, std::map, std::vector>(in, path);
  } catch (const toml::exception& e) {
    // "[error] toml::parse_table: invalid line format\n --> …": the first line says it all.
    std::string what(e.what());
    what = what.substr(0, what.find('\n'));
    if (const size_t colon = what.find(": "); what.starts_with("[error]") && colon != what.npos) {
      what = what.substr(colon + 2);
    }
    return fail(Code::kConfig, "{}:{}:{}: {}", path, e.location().line(), e.location().column(),
                what);
  } catch (const std::exception& e) {
    return fail(Code::kConfig, "{}: {}", path, e.what());
  }
  return reader;
}

Section Reader::section(const std::string& name) {
  state_->asked[name];
  const auto& top = state_->root.as_table();
  const auto found = top.find(name);
  if (!name.empty() && found != top.end() && !found->second.is_table()) {
    state_->problem(place_of_key(name, found->second),
                    fmt::format("{} is a section, written [{}] and once; found {}", name, name,
                                kind(found->second)));
  }
  return Section(this, name, kSingle);
}

std::vector<Section> Reader::sections(const std::string& name) {
  state_->asked[name];
  const auto& top = state_->root.as_table();
  const auto found = top.find(name);
  std::vector<Section> out;
  if (found == top.end()) return out;
  const Value& value = found->second;
  const bool tables =
      value.is_array() && std::all_of(value.as_array().begin(), value.as_array().end(),
                                      [](const Value& element) { return element.is_table(); });
  if (!tables) {
    state_->problem(place_of_key(name, value),
                    fmt::format("{} is a list of sections, each written [[{}]]", name, name));
    return out;
  }
  for (size_t i = 0; i < value.as_array().size(); ++i) out.push_back(Section(this, name, i));
  return out;
}

void Reader::complain(const std::string& section, const char* key, const std::string& what) {
  std::string name = section;
  size_t index = kSingle;
  if (const size_t bracket = section.find('['); bracket != std::string::npos) {  // "listen[2]"
    name = section.substr(0, bracket);
    index = std::stoul(section.substr(bracket + 1));
  }
  Place at;
  if (const Value* in = state_->table(name, index); in != nullptr && !name.empty()) {
    at = place_of(*in);
  }
  if (const Value* value = state_->look(name, index, key); value != nullptr) at = place_of(*value);
  const std::string full = section.empty() ? key : fmt::format("{}.{}", section, key);
  state_->problem(at, fmt::format("{}: {}", full, what));
}

Status Reader::finish() {
  const std::vector<State::Problem> before = state_->problems;
  state_->find_unknown();
  std::vector<State::Problem> all = std::exchange(state_->problems, before);
  if (all.empty()) return {};
  std::stable_sort(all.begin(), all.end(),
                   [](const auto& a, const auto& b) { return a.at < b.at; });
  std::string text;
  for (const State::Problem& problem : all) {
    if (!text.empty()) text += '\n';
    text += problem.at.line == 0 ? fmt::format("{}: {}", state_->path, problem.what)
                                 : fmt::format("{}:{}:{}: {}", state_->path, problem.at.line,
                                               problem.at.column, problem.what);
  }
  return fail(Error{Code::kConfig, text});
}

std::string Reader::print() const {
  std::string out, open;
  for (const State::Line& line : state_->lines) {
    const std::string now = label(line.section, line.index);
    if (now != open) {
      if (!out.empty()) out += '\n';
      out += line.index == kSingle ? fmt::format("[{}]\n", line.section)
                                   : fmt::format("[[{}]]\n", line.section);
      open = now;
    }
    out += fmt::format("# {}\n{} = {}  # ", line.help, line.key, line.value);
    out += line.origin == 0 ? "default\n" : fmt::format("{}:{}\n", state_->path, line.origin);
  }
  return out;
}

namespace {

template <class Int>
std::string range_help(const Range<Int>& range) {
  return fmt::format("{} ({} to {})", range.help, range.least, range.most);
}

// What is wrong with an integer, or "" and the value is in *field.
template <class Int>
std::string take_integer(const Value& value, Int* field, const Range<Int>& range) {
  if (!value.is_integer()) return fmt::format("expected an integer, found {}", kind(value));
  const int64_t found = value.as_integer();
  // toml11 clips what does not fit.
  if (found == std::numeric_limits<int64_t>::max()) return "the number is too large";
  if (found < 0 || static_cast<uint64_t>(found) < range.least ||
      static_cast<uint64_t>(found) > range.most) {
    return fmt::format("{} is not in the range {} to {}", found, range.least, range.most);
  }
  *field = static_cast<Int>(found);
  return {};
}

// The same for a quantity with units, written as text.
template <class Int>
std::string take_units(std::optional<uint64_t> found, const std::string& shown, Int* field,
                       const Range<Int>& range, std::string (*format)(uint64_t),
                       const char* examples) {
  if (!found) return fmt::format("expected {}, found \"{}\"", examples, shown);
  if (*found < range.least || *found > range.most) {
    return fmt::format("{} is not in the range {} to {}", shown, format(range.least),
                       format(range.most));
  }
  *field = static_cast<Int>(*found);
  return {};
}

constexpr const char* kBytesForm = "a size such as \"256MiB\", \"4GiB\" or a number of bytes";
constexpr const char* kDurationForm = "a duration such as \"250ms\", \"2s\" or \"10m\"";

}  // namespace

void Section::integer(const char* key, uint32_t* field, Range<uint32_t> range) {
  Reader::State& state = *reader_->state_;
  const Value* value = state.find(name_, index_, key);
  const std::string what = value == nullptr ? "" : take_integer(*value, field, range);
  if (!what.empty()) state.wrong(name_, index_, key, *value, what);
  state.note(name_, index_, key, value, fmt::format("{}", *field), range_help(range));
}

void Section::integer(const char* key, uint64_t* field, Range<uint64_t> range) {
  Reader::State& state = *reader_->state_;
  const Value* value = state.find(name_, index_, key);
  const std::string what = value == nullptr ? "" : take_integer(*value, field, range);
  if (!what.empty()) state.wrong(name_, index_, key, *value, what);
  state.note(name_, index_, key, value, fmt::format("{}", *field), range_help(range));
}

void Section::real(const char* key, double* field, Range<double> range) {
  Reader::State& state = *reader_->state_;
  const Value* value = state.find(name_, index_, key);
  if (value != nullptr && !value->is_floating() && !value->is_integer()) {
    state.wrong(name_, index_, key, *value,
                fmt::format("expected a number, found {}", kind(*value)));
  } else if (value != nullptr) {
    const double found = value->is_integer() ? static_cast<double>(value->as_integer())
                                             : static_cast<double>(value->as_floating());
    if (found >= range.least && found <= range.most) {
      *field = found;
    } else {  // NaN comes here too
      state.wrong(name_, index_, key, *value,
                  fmt::format("{} is not in the range {} to {}", found, range.least, range.most));
    }
  }
  state.note(name_, index_, key, value, fmt::format("{}", *field), range_help(range));
}

void Section::boolean(const char* key, bool* field, const char* help) {
  Reader::State& state = *reader_->state_;
  const Value* value = state.find(name_, index_, key);
  if (value != nullptr && value->is_boolean()) {
    *field = value->as_boolean();
  } else if (value != nullptr) {
    state.wrong(name_, index_, key, *value,
                fmt::format("expected true or false, found {}", kind(*value)));
  }
  state.note(name_, index_, key, value, *field ? "true" : "false", help);
}

void Section::text(const char* key, std::string* field, const char* help) {
  Reader::State& state = *reader_->state_;
  const Value* value = state.find(name_, index_, key);
  if (value != nullptr && value->is_string()) {
    *field = value->as_string().str;
  } else if (value != nullptr) {
    state.wrong(name_, index_, key, *value,
                fmt::format("expected a string, found {}", kind(*value)));
  }
  state.note(name_, index_, key, value, quote_toml(*field), help);
}

void Section::choice(const char* key, std::string* field, Choice choice) {
  Reader::State& state = *reader_->state_;
  const Value* value = state.find(name_, index_, key);
  const std::string all = fmt::format("\"{}\"", fmt::join(choice.of, "\", \""));
  if (value != nullptr && !value->is_string()) {
    state.wrong(name_, index_, key, *value,
                fmt::format("expected one of {}, found {}", all, kind(*value)));
  } else if (value != nullptr) {
    const std::string& found = value->as_string().str;
    if (std::find(choice.of.begin(), choice.of.end(), found) != choice.of.end()) {
      *field = found;
    } else {
      const std::string near = nearest_name(found, choice.of);
      state.wrong(name_, index_, key, *value,
                  fmt::format("\"{}\" is none of {}{}", found, all,
                              near.empty() ? "" : fmt::format("; did you mean \"{}\"?", near)));
    }
  }
  state.note(name_, index_, key, value, quote_toml(*field),
             fmt::format("{} ({})", choice.help, all));
}

void Section::bytes(const char* key, uint64_t* field, Range<uint64_t> range) {
  Reader::State& state = *reader_->state_;
  const Value* value = state.find(name_, index_, key);
  std::string what;
  if (value != nullptr && value->is_integer()) {
    what = take_integer(*value, field, range);
  } else if (value != nullptr && value->is_string()) {
    const std::string& shown = value->as_string().str;
    what = take_units(parse_bytes(shown), shown, field, range, format_bytes, kBytesForm);
  } else if (value != nullptr) {
    what = fmt::format("expected {}, found {}", kBytesForm, kind(*value));
  }
  if (!what.empty()) state.wrong(name_, index_, key, *value, what);
  state.note(name_, index_, key, value, quote_toml(format_bytes(*field)),
             fmt::format("{} ({} to {})", range.help, format_bytes(range.least),
                         format_bytes(range.most)));
}

void Section::duration_ms(const char* key, uint32_t* field, Range<uint32_t> range) {
  Reader::State& state = *reader_->state_;
  const Value* value = state.find(name_, index_, key);
  std::string what;
  if (value != nullptr && value->is_string()) {
    const std::string& shown = value->as_string().str;
    what = take_units(parse_duration_ms(shown), shown, field, range, format_duration_ms,
                      kDurationForm);
  } else if (value != nullptr) {
    what = fmt::format("expected {}, found {}", kDurationForm, kind(*value));
  }
  if (!what.empty()) state.wrong(name_, index_, key, *value, what);
  state.note(name_, index_, key, value, quote_toml(format_duration_ms(*field)),
             fmt::format("{} ({} to {})", range.help, format_duration_ms(range.least),
                         format_duration_ms(range.most)));
}

}  // namespace base
