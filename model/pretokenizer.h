// Cuts text into the pieces inside which byte pairs merge, by the pre_tokenizer of a
// tokenizer.json: Split with isolated matches, Digits, ByteLevel, and sequences of them.
//
// The patterns are written for the regex engine of Hugging Face's library; they run on PCRE2 after
// a rewrite of the classes that differ between the two. What cannot be carried over exactly is
// refused when the file is loaded.
//
// Thread safety: constant after load.
#pragma once
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "model/json.h"

namespace model {

class Pretokenizer {
 public:
  // node: the pre_tokenizer; kUnsupported names what is not offered.
  static base::Result<Pretokenizer> load(const Json* node, const std::string& file);
  Pretokenizer(Pretokenizer&&) noexcept;
  Pretokenizer& operator=(Pretokenizer&&) noexcept;
  ~Pretokenizer();

  // Appends the pieces of `text`, in order; together they are `text`. Bytes that are no UTF-8 stand
  // in pieces of their own.
  void split(std::string_view text, std::vector<std::string_view>* pieces) const;
  // ByteLevel's add_prefix_space: a text that does not begin with a space gets one.
  bool adds_prefix_space() const { return prefix_space_; }

 private:
  struct Pattern;
  Pretokenizer();
  base::Status add(const Json& node, const std::string& file);
  base::Status add_pattern(const std::string& regex, bool literal, const std::string& file);
  std::vector<std::unique_ptr<Pattern>> patterns_;
  bool prefix_space_ = false;
  bool byte_level_ = false;
};

// The pattern for PCRE2 (UTF, UCP) that means what `regex` means to Hugging Face's engine.
// kUnsupported for nested or intersected classes and for \S, \W inside a class.
base::Result<std::string> to_pcre(std::string_view regex);

}  // namespace model
