#include "model/tokenizer.h"

#include <unicode/bytestream.h>
#include <unicode/normalizer2.h>

#include <algorithm>
#include <array>
#include <map>

#include "base/check.h"
#include "model/bpe.h"
#include "model/json.h"
#include "model/pretokenizer.h"
#include "model/utf8.h"

namespace model {
namespace {

using base::Code;
using base::fail;
using base::Result;
using base::Status;

constexpr uint64_t kFileBytesMost = 256 << 20;
constexpr int64_t kIdsMost = 1 << 24;

// GPT-2's alphabet: a byte is written as the character of its own number where that is printable
// (! to ~, ¡ to ¬, ® to ÿ), else as the next free character from U+0100 on.
bool is_own_character(unsigned byte) {
  return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
}
constexpr size_t kAlphabetEnd = 0x144;
std::array<int, kAlphabetEnd> byte_of_character() {
  std::array<int, kAlphabetEnd> table{};
  table.fill(-1);
  size_t free = 0x100;
  for (unsigned byte = 0; byte < 256; ++byte)
    table[is_own_character(byte) ? byte : free++] = static_cast<int>(byte);
  return table;
}

// The bytes a token of the vocabulary stands for. One with a character outside the alphabet stands
// for its own text.
std::string bytes_of_token(std::string_view text) {
  static const std::array<int, kAlphabetEnd> kTable = byte_of_character();
  std::string out;
  for (std::string_view rest = text; !rest.empty(); rest.remove_prefix(utf8_step(rest).length)) {
    const char32_t c = decode_utf8(rest);
    const int byte = c < kAlphabetEnd ? kTable[c] : -1;
    if (byte < 0) return std::string(text);
    out.push_back(static_cast<char>(byte));
  }
  return out;
}

}  // namespace

struct Tokenizer::State {
  struct Token {
    std::string bytes;
    bool special = false;
  };
  struct Added {
    std::string text;
    TokenId id = 0;
    bool special = false;
  };

  explicit State(Pretokenizer p) : pretokenizer(std::move(p)) {}

  Pretokenizer pretokenizer;
  Bpe bpe;
  bool nfc = false;
  std::vector<Token> tokens;           // by id
  std::map<std::string, TokenId> ids;  // of added tokens, by text
  std::vector<Added> added;            // longest first
  std::array<bool, 256> starts{};      // first bytes of added tokens

  Status read_vocabulary(const Json& model, const std::string& file, const Json* added_tokens);
  Status read_merges(const Json& model, const std::string& file,
                     const std::map<std::string_view, TokenId>& vocab);
  Status read_added(const Json* list, const std::string& file);
  Status read_normalizer(const Json* node, const std::string& file);

  const Added* added_at(std::string_view text, bool specials) const;
  void encode(std::string_view text, bool specials, std::vector<TokenId>* out) const;
  void encode_plain(std::string_view text, std::vector<TokenId>* out) const;
};

Status Tokenizer::State::read_normalizer(const Json* node, const std::string& file) {
  if (!node) return {};
  const Json* type = node->find("type");
  const std::string name = type ? type->text : "";
  if (name == "Sequence") {
    const Json* list = node->find("normalizers");
    if (!list) return {};
    for (const Json& item : list->list) {
      if (!item.find("type") || item.find("type")->text != "NFC")
        return fail(Code::kUnsupported, "{}: known normalizers are none and NFC", file);
      nfc = true;
    }
    return {};
  }
  if (name != "NFC")
    return fail(Code::kUnsupported, "{}: normalizer \"{}\"; known are none and NFC", file, name);
  nfc = true;
  return {};
}

// A special token is one that the file calls special or that looks like a tag: its text in a user's
// message is ordinary text. Other added tokens are text that is matched before everything else.
Status Tokenizer::State::read_added(const Json* list, const std::string& file) {
  if (!list) return {};
  for (const Json& item : list->list) {
    const Json* id = item.find("id");
    const Json* content = item.find("content");
    if (!id || !content || !id->is(Json::Kind::kInteger) || id->integer < 0 ||
        id->integer >= kIdsMost || content->text.empty())
      return fail(Code::kCorrupt, "{}: an added token lacks its id or content", file);
    for (const char* flag : {"single_word", "lstrip", "rstrip"})
      if (const Json* value = item.find(flag); value && value->boolean)
        return fail(Code::kUnsupported, "{}: added token {} with {}", file, content->text, flag);
    const std::string& text = content->text;
    const Json* marked = item.find("special");
    const bool tag = text.size() > 2 && text.front() == '<' && text.back() == '>';
    const Added token{text, static_cast<TokenId>(id->integer), tag || (marked && marked->boolean)};
    if (tokens.size() <= token.id) tokens.resize(token.id + size_t{1});
    Token& place = tokens[token.id];
    if (!place.bytes.empty() && place.bytes != bytes_of_token(text))
      return fail(Code::kCorrupt, "{}: id {} is both {} and another token", file, token.id, text);
    place = {text, token.special};
    if (!ids.emplace(text, token.id).second)
      return fail(Code::kCorrupt, "{}: added token {} stands twice", file, text);
    starts[static_cast<uint8_t>(text[0])] = true;
    added.push_back(token);
  }
  std::stable_sort(added.begin(), added.end(),
                   [](const Added& a, const Added& b) { return a.text.size() > b.text.size(); });
  return {};
}

Status Tokenizer::State::read_vocabulary(const Json& model, const std::string& file,
                                         const Json* added_tokens) {
  const Json* entries = model.find("vocab");
  if (!entries || !entries->is(Json::Kind::kMap))
    return fail(Code::kCorrupt, "{}: model has no vocab", file);
  std::map<std::string_view, TokenId> vocab;
  for (const auto& [text, id] : entries->map) {
    if (!id.is(Json::Kind::kInteger) || id.integer < 0 || id.integer >= kIdsMost || text.empty())
      return fail(Code::kCorrupt, "{}: token {} has no possible id", file, text);
    const auto index = static_cast<size_t>(id.integer);
    if (tokens.size() <= index) tokens.resize(index + 1);
    if (!tokens[index].bytes.empty())
      return fail(Code::kCorrupt, "{}: two tokens have the id {}", file, index);
    tokens[index].bytes = bytes_of_token(text);
    vocab.emplace(text, static_cast<TokenId>(index));
  }
  TRY(read_added(added_tokens, file));
  for (unsigned byte = 0, free = 0x100; byte < 256; ++byte) {
    std::string character;
    append_utf8(is_own_character(byte) ? byte : free++, &character);
    const auto found = vocab.find(character);
    if (found == vocab.end())
      return fail(Code::kUnsupported, "{}: there is no token for the byte 0x{:02x}", file, byte);
    bpe.set_byte(static_cast<uint8_t>(byte), found->second);
  }
  if (const Json* whole = model.find("ignore_merges"); whole && whole->boolean)
    for (const auto& [text, id] : vocab)
      if (!tokens[id].special) bpe.add_whole(tokens[id].bytes, id);
  return read_merges(model, file, vocab);
}

Status Tokenizer::State::read_merges(const Json& model, const std::string& file,
                                     const std::map<std::string_view, TokenId>& vocab) {
  const Json* merges = model.find("merges");
  if (!merges || !merges->is(Json::Kind::kList))
    return fail(Code::kCorrupt, "{}: model has no merges", file);
  for (const Json& item : merges->list) {
    std::string left, right;
    if (item.is(Json::Kind::kList) && item.list.size() == 2) {
      left = item.list[0].text;
      right = item.list[1].text;
    } else {
      const size_t space = item.text.find(' ');
      left = item.text.substr(0, space);
      right = space == item.text.npos ? "" : item.text.substr(space + 1);
    }
    const auto a = vocab.find(left), b = vocab.find(right), merged = vocab.find(left + right);
    if (a == vocab.end() || b == vocab.end() || merged == vocab.end())
      return fail(Code::kCorrupt, "{}: merge \"{} {}\" is not of tokens of the vocab", file, left,
                  right);
    // No text may merge into a special token.
    if (!tokens[merged->second].special) bpe.add_merge(a->second, b->second, merged->second);
  }
  return {};
}

const Tokenizer::State::Added* Tokenizer::State::added_at(std::string_view text,
                                                          bool specials) const {
  if (!starts[static_cast<uint8_t>(text[0])]) return nullptr;
  for (const Added& token : added)
    if ((specials || !token.special) && text.starts_with(token.text)) return &token;
  return nullptr;
}

void Tokenizer::State::encode(std::string_view text, bool specials,
                              std::vector<TokenId>* out) const {
  size_t begin = 0, at = 0;
  while (at < text.size()) {
    const Added* token = added_at(text.substr(at), specials);
    if (!token) {
      ++at;
      continue;
    }
    encode_plain(text.substr(begin, at - begin), out);
    out->push_back(token->id);
    begin = at += token->text.size();
  }
  encode_plain(text.substr(begin), out);
}

namespace {

// The canonical composition of the valid runs; other bytes stay.
std::string compose(std::string_view text) {
  UErrorCode error = U_ZERO_ERROR;
  const icu::Normalizer2* nfc = icu::Normalizer2::getNFCInstance(error);
  CHECK(U_SUCCESS(error) && nfc, "{}", u_errorName(error));
  std::string out;
  icu::StringByteSink<std::string> sink(&out);
  while (!text.empty()) {
    size_t run = 0;
    Utf8Step step;
    for (; run < text.size(); run += step.length)
      if (step = utf8_step(text.substr(run)); !step.valid) break;
    nfc->normalizeUTF8(0, icu::StringPiece(text.data(), static_cast<int32_t>(run)), sink, nullptr,
                       error);
    CHECK(U_SUCCESS(error), "{}", u_errorName(error));
    text.remove_prefix(run);
    if (text.empty()) break;
    out += text.substr(0, step.length);
    text.remove_prefix(step.length);
  }
  return out;
}

}  // namespace

void Tokenizer::State::encode_plain(std::string_view text, std::vector<TokenId>* out) const {
  if (text.empty()) return;
  std::string changed;
  if (nfc) text = changed = compose(text);
  if (pretokenizer.adds_prefix_space() && text[0] != ' ') text = changed = fmt::format(" {}", text);
  std::vector<std::string_view> pieces;
  pretokenizer.split(text, &pieces);
  for (const std::string_view piece : pieces) bpe.encode(piece, out);
}

Tokenizer::Tokenizer() = default;
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;
Tokenizer::~Tokenizer() = default;

Result<Tokenizer> Tokenizer::load(const std::string& folder) {
  const std::string file = folder + "/tokenizer.json";
  const std::string text = TRY(read_file(file, kFileBytesMost));
  const Json root = TRY(parse_json(text, file));
  const Json* model = root.find("model");
  const Json* type = model ? model->find("type") : nullptr;
  if (!model || !model->is(Json::Kind::kMap))
    return fail(Code::kCorrupt, "{}: field \"model\" is missing", file);
  if (type && type->text != "BPE")
    return fail(Code::kUnsupported, "{}: model type \"{}\"; known is BPE", file, type->text);
  for (const char* field : {"continuing_subword_prefix", "end_of_word_suffix"})
    if (const Json* value = model->find(field); value && !value->text.empty())
      return fail(Code::kUnsupported, "{}: model field \"{}\" is not offered", file, field);
  if (const Json* dropout = model->find("dropout"); dropout && dropout->real != 0)
    return fail(Code::kUnsupported, "{}: model field \"dropout\" is not offered", file);
  Tokenizer tokenizer;
  tokenizer.state_ =
      std::make_unique<State>(TRY(Pretokenizer::load(root.find("pre_tokenizer"), file)));
  TRY(tokenizer.state_->read_normalizer(root.find("normalizer"), file));
  TRY(tokenizer.state_->read_vocabulary(*model, file, root.find("added_tokens")));
  return tokenizer;
}

std::vector<TokenId> Tokenizer::encode(std::string_view text) const {
  std::vector<TokenId> out;
  state_->encode(text, /*specials=*/false, &out);
  return out;
}

std::vector<TokenId> Tokenizer::encode_with_specials(std::string_view text) const {
  std::vector<TokenId> out;
  state_->encode(text, /*specials=*/true, &out);
  return out;
}

Result<TokenId> Tokenizer::special(std::string_view text) const {
  const auto found = state_->ids.find(std::string(text));
  if (found == state_->ids.end())
    return fail(Code::kNotFound, "the tokenizer has no special token {}", text);
  return found->second;
}

bool Tokenizer::is_special(TokenId id) const {
  return id < state_->tokens.size() && state_->tokens[id].special;
}

std::string_view Tokenizer::bytes(TokenId id, bool specials) const {
  if (id >= state_->tokens.size()) return {};
  const State::Token& token = state_->tokens[id];
  return token.special && !specials ? std::string_view() : std::string_view(token.bytes);
}

std::string Tokenizer::decode(const std::vector<TokenId>& ids, bool specials) const {
  std::string out;
  for (const TokenId id : ids) out += bytes(id, specials);
  return out;
}

size_t Tokenizer::size() const { return state_->tokens.size(); }

}  // namespace model
