// Hugging Face tokenizer.json, byte-level BPE: exact ids. The pre-tokenizer pattern runs on PCRE2
// as written in the file. Special tokens are ids that only the chat format places; text of users
// never becomes one.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/ids.h"
#include "base/result.h"

namespace model {

using base::TokenId;

class Tokenizer {
 public:
  static base::Result<Tokenizer> load(const std::string& folder);
  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;
  ~Tokenizer();

  // Plain text; the text of a special token is ordinary text here. Any bytes; invalid UTF-8 is
  // encoded bytewise.
  std::vector<TokenId> encode(std::string_view text) const;
  // As Hugging Face's tokenizer does: special tokens in the text become their ids. For files and
  // tests, not for users' text.
  std::vector<TokenId> encode_with_specials(std::string_view text) const;
  // Id of an added token by its exact text; kNotFound.
  base::Result<TokenId> special(std::string_view text) const;
  bool is_special(TokenId id) const;
  // The bytes a token stands for (a piece of UTF-8, perhaps not whole); special tokens give their
  // text when `specials`, else nothing. Unknown ids give nothing.
  std::string_view bytes(TokenId id, bool specials = false) const;
  std::string decode(const std::vector<TokenId>& ids, bool specials = false) const;
  size_t size() const;  // ids are below this

 private:
  Tokenizer();
  struct State;
  std::unique_ptr<State> state_;
};

// Turns a stream of tokens into whole UTF-8 text: bytes of an unfinished code point are held back,
// invalid ones become U+FFFD at the end of their run.
class Utf8Stream {
 public:
  std::string push(std::string_view bytes);  // the text that is now whole
  std::string flush();                       // what was held back, at the end of the stream
 private:
  std::string held_;
};

}  // namespace model
