// UTF-8 as Unicode defines it: no overlong forms, no surrogates, nothing above U+10FFFF.
#pragma once
#include <cstddef>
#include <string>
#include <string_view>

namespace model {

struct Utf8Step {
  size_t length = 0;        // of the code point, or of the maximal ill-formed part; ≥ 1
  bool valid = false;       // a whole code point
  bool unfinished = false;  // ill-formed only because the text ends here
};
// The first step of a text that is not empty.
Utf8Step utf8_step(std::string_view text);

// Appends the code point.
void append_utf8(char32_t code_point, std::string* out);
// The code point at the start of a text that is valid there.
char32_t decode_utf8(std::string_view text);

}  // namespace model
