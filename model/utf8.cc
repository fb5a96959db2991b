#include "model/utf8.h"

#include "model/tokenizer.h"

namespace model {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD

struct Lead {
  size_t length = 1;                   // of the code point; 1 for what cannot lead
  unsigned char low = 0, high = 0xFF;  // of the second byte
};

Lead lead_of(unsigned char byte) {
  if (byte >= 0xC2 && byte <= 0xDF) return {2, 0x80, 0xBF};
  if (byte == 0xE0) return {3, 0xA0, 0xBF};
  if (byte == 0xED) return {3, 0x80, 0x9F};
  if (byte >= 0xE1 && byte <= 0xEF) return {3, 0x80, 0xBF};
  if (byte == 0xF0) return {4, 0x90, 0xBF};
  if (byte >= 0xF1 && byte <= 0xF3) return {4, 0x80, 0xBF};
  if (byte == 0xF4) return {4, 0x80, 0x8F};
  return {};
}

}  // namespace

Utf8Step utf8_step(std::string_view text) {
  const auto at = [text](size_t i) { return static_cast<unsigned char>(text[i]); };
  if (at(0) < 0x80) return {1, true, false};
  const Lead lead = lead_of(at(0));
  if (lead.length == 1) return {1, false, false};
  for (size_t i = 1; i < lead.length; ++i) {
    if (i == text.size()) return {i, false, true};
    const unsigned char low = i == 1 ? lead.low : 0x80;
    const unsigned char high = i == 1 ? lead.high : 0xBF;
    if (at(i) < low || at(i) > high) return {i, false, false};
  }
  return {lead.length, true, false};
}

void append_utf8(char32_t code_point, std::string* out) {
  const auto put = [out](char32_t byte) { out->push_back(static_cast<char>(byte)); };
  const auto tail = [&](int shift) { put(0x80 | ((code_point >> shift) & 0x3F)); };
  if (code_point < 0x80) return put(code_point);
  if (code_point < 0x800) {
    put(0xC0 | (code_point >> 6));
    return tail(0);
  }
  if (code_point < 0x10000) {
    put(0xE0 | (code_point >> 12));
    tail(6);
    return tail(0);
  }
  put(0xF0 | (code_point >> 18));
  tail(12);
  tail(6);
  tail(0);
}

char32_t decode_utf8(std::string_view text) {
  const auto at = [text](size_t i) { return static_cast<unsigned char>(text[i]); };
  const size_t length = utf8_step(text).length;
  if (length == 1) return at(0);
  char32_t code_point = at(0) & (0xFFu >> (length + 1));
  for (size_t i = 1; i < length; ++i) code_point = (code_point << 6) | (at(i) & 0x3F);
  return code_point;
}

std::string Utf8Stream::push(std::string_view bytes) {
  held_ += bytes;
  std::string out;
  std::string_view rest = held_;
  while (!rest.empty()) {
    const Utf8Step step = utf8_step(rest);
    if (step.unfinished) break;
    out += step.valid ? rest.substr(0, step.length) : kReplacement;
    rest.remove_prefix(step.length);
  }
  held_ = std::string(rest);
  return out;
}

std::string Utf8Stream::flush() {
  const bool held = !held_.empty();
  held_.clear();
  return held ? std::string(kReplacement) : std::string();
}

}  // namespace model
