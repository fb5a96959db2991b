#include "model/pretokenizer.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "base/check.h"
#include "model/utf8.h"

namespace model {
namespace {

using base::Code;
using base::fail;
using base::Result;
using base::Status;

// ByteLevel's own pattern when use_regex is set.
constexpr const char* kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

// Unicode White_Space. PCRE2's \s has U+180E too.
constexpr const char* kSpace = R"(\t-\r\x{85}\p{Z})";
// The other engine's \w; PCRE2's has other numbers and lacks marks and connectors.
constexpr const char* kWord = R"(\p{L}\p{M}\p{Nd}\p{Pc})";

// Bounds of one match, far above what real patterns need, so that a hostile text costs time but no
// stack and not for ever.
constexpr size_t kJitStackBytes = 16 << 20;
constexpr uint32_t kMatchStepsMost = 200'000'000;

struct CodeFree {
  void operator()(pcre2_code* p) const { pcre2_code_free(p); }
};
struct MatchDataFree {
  void operator()(pcre2_match_data* p) const { pcre2_match_data_free(p); }
};
struct MatchContextFree {
  void operator()(pcre2_match_context* p) const { pcre2_match_context_free(p); }
};
struct JitStackFree {
  void operator()(pcre2_jit_stack* p) const { pcre2_jit_stack_free(p); }
};

}  // namespace

struct Pretokenizer::Pattern {
  std::unique_ptr<pcre2_code, CodeFree> code;
};

namespace {

// One thread's scratch memory for matching.
struct Matcher {
  std::unique_ptr<pcre2_match_data, MatchDataFree> data{pcre2_match_data_create(1, nullptr)};
  std::unique_ptr<pcre2_jit_stack, JitStackFree> stack{
      pcre2_jit_stack_create(32 << 10, kJitStackBytes, nullptr)};
  std::unique_ptr<pcre2_match_context, MatchContextFree> context{
      pcre2_match_context_create(nullptr)};

  Matcher() {
    CHECK(data && stack && context, "out of memory");
    pcre2_jit_stack_assign(context.get(), nullptr, stack.get());
    pcre2_set_match_limit(context.get(), kMatchStepsMost);
  }

  // The next match in `text` at or after `from`, never empty. false: there is none, or the engine
  // gave up, and the rest of the text is one piece.
  bool next(const pcre2_code* code, std::string_view text, size_t from, size_t* begin,
            size_t* end) const {
    const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.data());
    const int found = pcre2_match(code, subject, text.size(), from,
                                  PCRE2_NO_UTF_CHECK | PCRE2_NOTEMPTY, data.get(), context.get());
    if (found < 0) return false;
    const PCRE2_SIZE* range = pcre2_get_ovector_pointer(data.get());
    *begin = range[0];
    *end = range[1];
    return *begin < *end;
  }
};

void split_once(const Matcher& matcher, const pcre2_code* code, std::string_view text,
                std::vector<std::string_view>* pieces) {
  size_t at = 0, begin = 0, end = 0;
  while (at < text.size() && matcher.next(code, text, at, &begin, &end)) {
    if (begin > at) pieces->push_back(text.substr(at, begin - at));
    pieces->push_back(text.substr(begin, end - begin));
    at = end;
  }
  if (at < text.size()) pieces->push_back(text.substr(at));
}

}  // namespace

Result<std::string> to_pcre(std::string_view regex) {
  std::string out;
  bool in_class = false;
  for (size_t i = 0; i < regex.size(); ++i) {
    const char c = regex[i];
    const char next = i + 1 < regex.size() ? regex[i + 1] : '\0';
    if (c == '\\') {
      ++i;
      const char* set = next == 's' || next == 'S' ? kSpace : kWord;
      if (next == 's' || next == 'w') {
        out += in_class ? std::string(set) : fmt::format("[{}]", set);
      } else if (next == 'S' || next == 'W') {
        if (in_class)
          return fail(Code::kUnsupported, "\\{} inside a character class is not offered", next);
        out += fmt::format("[^{}]", set);
      } else {
        out += {c, next};
      }
      continue;
    }
    if (in_class && (c == '[' || (c == '&' && next == '&')))
      return fail(Code::kUnsupported, "a character class inside another is not offered");
    if (c == '[') {
      // A closing bracket right after the opening one stands for itself.
      in_class = true;
      out += c;
      if (next == '^') out += regex[++i];
      if (i + 1 < regex.size() && regex[i + 1] == ']') out += {'\\', regex[++i]};
      continue;
    }
    if (in_class && c == ']') in_class = false;
    out += c;
  }
  return out;
}

Pretokenizer::Pretokenizer() = default;
Pretokenizer::Pretokenizer(Pretokenizer&&) noexcept = default;
Pretokenizer& Pretokenizer::operator=(Pretokenizer&&) noexcept = default;
Pretokenizer::~Pretokenizer() = default;

Status Pretokenizer::add_pattern(const std::string& regex, bool literal, const std::string& file) {
  auto rewritten = literal ? Result<std::string>(regex) : to_pcre(regex);
  if (!rewritten)
    return fail(rewritten.error().code, "{}: pre_tokenizer pattern {}: {}", file, regex,
                rewritten.error().what);
  const uint32_t options = literal ? PCRE2_UTF | PCRE2_LITERAL : PCRE2_UTF | PCRE2_UCP;
  int error = 0;
  PCRE2_SIZE offset = 0;
  auto pattern = std::make_unique<Pattern>();
  pattern->code.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(rewritten->data()),
                                    rewritten->size(), options, &error, &offset, nullptr));
  if (!pattern->code) {
    PCRE2_UCHAR text[256];
    pcre2_get_error_message(error, text, sizeof text);
    return fail(Code::kUnsupported, "{}: pre_tokenizer pattern {}: {}", file, regex,
                reinterpret_cast<const char*>(text));
  }
  // Without a JIT (an odd processor) matching is slower and the same.
  pcre2_jit_compile(pattern->code.get(), PCRE2_JIT_COMPLETE);
  patterns_.push_back(std::move(pattern));
  return {};
}

Status Pretokenizer::add(const Json& node, const std::string& file) {
  const auto text = [&node](const char* key) {
    const Json* value = node.find(key);
    return value ? value->text : std::string();
  };
  const auto flag = [&node](const char* key, bool otherwise) {
    const Json* value = node.find(key);
    return value ? value->boolean : otherwise;
  };
  const std::string type = text("type");
  if (type == "Sequence") {
    const Json* list = node.find("pretokenizers");
    if (!list) return fail(Code::kCorrupt, "{}: pre_tokenizer Sequence without a list", file);
    for (const Json& item : list->list) {
      if (item.find("type") && item.find("type")->text == "Sequence")
        return fail(Code::kUnsupported, "{}: pre_tokenizer Sequence inside a Sequence", file);
      TRY(add(item, file));
    }
    return {};
  }
  if (type == "Split") {
    if (text("behavior") != "Isolated")
      return fail(Code::kUnsupported,
                  "{}: pre_tokenizer Split with behavior \"{}\"; known is Isolated", file,
                  text("behavior"));
    const Json* pattern = node.find("pattern");
    const Json* regex = pattern ? pattern->find("Regex") : nullptr;
    const Json* literal = pattern ? pattern->find("String") : nullptr;
    if (!regex && !literal)
      return fail(Code::kCorrupt, "{}: pre_tokenizer Split without a pattern", file);
    return add_pattern((regex ? regex : literal)->text, /*literal=*/!regex, file);
  }
  if (type == "Digits")
    return add_pattern(flag("individual_digits", false) ? R"(\p{N})" : R"(\p{N}+)", false, file);
  if (type == "ByteLevel") {
    byte_level_ = true;
    if (flag("add_prefix_space", true)) {
      if (!patterns_.empty())
        return fail(Code::kUnsupported,
                    "{}: ByteLevel add_prefix_space after another pre-tokenizer", file);
      prefix_space_ = true;
    }
    return flag("use_regex", true) ? add_pattern(kGpt2Pattern, false, file) : Status();
  }
  return fail(Code::kUnsupported, "{}: pre_tokenizer \"{}\" is not offered", file, type);
}

Result<Pretokenizer> Pretokenizer::load(const Json* node, const std::string& file) {
  Pretokenizer pretokenizer;
  if (node) TRY(pretokenizer.add(*node, file));
  if (!pretokenizer.byte_level_)
    return fail(Code::kUnsupported, "{}: only byte-level tokenizers are offered", file);
  return pretokenizer;
}

void Pretokenizer::split(std::string_view text, std::vector<std::string_view>* pieces) const {
  const Matcher matcher;
  std::vector<std::string_view> now, cut;
  while (!text.empty()) {
    // The longest run of valid code points, then the longest run that is none.
    size_t valid = 0, bad = 0;
    for (Utf8Step step; valid < text.size(); valid += step.length)
      if (step = utf8_step(text.substr(valid)); !step.valid) break;
    if (valid > 0) {
      now.assign(1, text.substr(0, valid));
      for (const auto& pattern : patterns_) {
        cut.clear();
        for (const std::string_view piece : now)
          split_once(matcher, pattern->code.get(), piece, &cut);
        now.swap(cut);
      }
      pieces->insert(pieces->end(), now.begin(), now.end());
      text.remove_prefix(valid);
      continue;
    }
    for (Utf8Step step; bad < text.size(); bad += step.length)
      if (step = utf8_step(text.substr(bad)); step.valid) break;
    pieces->push_back(text.substr(0, bad));
    text.remove_prefix(bad);
  }
}

}  // namespace model
