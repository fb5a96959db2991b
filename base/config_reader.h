// Reads a TOML file into fields of structs, strictly: an unknown key, a wrong type, a value out of
// range are errors with file:line:column and, for a mistyped key, the nearest known one. All errors
// of a file are reported at once.
//
//   Reader reader = TRY(Reader::open("cluster/local.toml"));
//   Section prefill = reader.section("prefill");
//   prefill.integer("stages", &config.stages, {.least = 1, .most = 64, .help = "pipeline stages
//   (CPP depth)"}); … TRY(reader.finish());            // every key of the file must have been
//   asked for reader.print(out)                // the effective configuration, each value with its
//   origin: default or file:line
//
// One call describes a field: parse, range, help and print follow from it. toml11 stays behind this
// header.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/result.h"

namespace base {

template <class T>
struct Range {
  T least;
  T most;
  const char* help;
};
struct Choice {
  std::vector<std::string> of;
  const char* help;
};

class Reader;

class Section {
 public:
  // Each leaves *field as it is (the default) when the key is absent.
  void integer(const char* key, uint32_t* field, Range<uint32_t> range);
  void integer(const char* key, uint64_t* field, Range<uint64_t> range);
  void real(const char* key, double* field, Range<double> range);
  void boolean(const char* key, bool* field, const char* help);
  void text(const char* key, std::string* field, const char* help);
  void choice(const char* key, std::string* field, Choice choice);
  // "256MiB", "4GiB", "512KiB" or a plain number of bytes.
  void bytes(const char* key, uint64_t* field, Range<uint64_t> range);
  // "250ms", "2s", "10m".
  void duration_ms(const char* key, uint32_t* field, Range<uint32_t> range);

 private:
  friend class Reader;
  Section(Reader* reader, std::string name, size_t index)
      : reader_(reader), name_(std::move(name)), index_(index) {}
  Reader* reader_;
  std::string name_;
  size_t index_;
};

class Reader {
 public:
  static Result<Reader> open(const std::string& path);
  static Result<Reader> parse(const std::string& text,
                              const std::string& path);  // path only names it in errors
  Reader(Reader&&) noexcept;
  Reader& operator=(Reader&&) noexcept;
  ~Reader();

  Section section(const std::string& name);                // [name]; may be absent
  std::vector<Section> sections(const std::string& name);  // [[name]], in order
  // An error at a key of the file (or at the section when the key is absent), found by the caller's
  // own checks.
  void complain(const std::string& section, const char* key, const std::string& what);
  // The errors so far as one text of several lines, or success.
  Status finish();
  std::string print()
      const;  // effective TOML, each line with "# default" or "# file:line", help above it

 private:
  friend class Section;
  struct State;
  Reader();
  std::unique_ptr<State> state_;
};

}  // namespace base
