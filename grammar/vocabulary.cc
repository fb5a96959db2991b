#include "grammar/vocabulary.h"

#include <algorithm>

#include "model/tokenizer.h"

namespace grammar {

namespace {

// Longer tokens are never part of constrained text.
constexpr size_t kTokenBytes = 1024;

}  // namespace

Vocabulary::Vocabulary(std::vector<std::string> bytes, std::vector<TokenId> eos)
    : bytes_(std::move(bytes)), eos_(std::move(eos)) {
  for (TokenId id = 0; id < bytes_.size(); ++id) {
    if (bytes_[id].empty() || bytes_[id].size() > kTokenBytes || is_eos(id)) continue;
    tokens_.push_back(id);
    longest_ = std::max(longest_, bytes_[id].size());
  }
  std::sort(tokens_.begin(), tokens_.end(), [this](TokenId a, TokenId b) {
    return bytes_[a] != bytes_[b] ? bytes_[a] < bytes_[b] : a < b;
  });
  std::vector<uint32_t> path;  // nodes of the token before, one a byte
  std::string_view before;
  const auto leave = [&](size_t depth) {
    for (; path.size() > depth; path.pop_back())
      nodes_[path.back()].end = static_cast<uint32_t>(nodes_.size());
  };
  for (uint32_t i = 0; i < tokens_.size(); ++i) {
    const std::string_view text = bytes_[tokens_[i]];
    const size_t same = static_cast<size_t>(
        std::mismatch(text.begin(), text.end(), before.begin(), before.end()).first - text.begin());
    if (i > 0 && same == text.size() && same == before.size()) continue;  // equal bytes
    leave(same);
    for (size_t depth = same; depth < text.size(); ++depth) {
      path.push_back(static_cast<uint32_t>(nodes_.size()));
      nodes_.push_back({static_cast<uint8_t>(text[depth]), static_cast<uint16_t>(depth), 0, i});
    }
    before = text;
  }
  leave(0);
  const auto end = static_cast<uint32_t>(nodes_.size());
  nodes_.push_back({0, 0, end, static_cast<uint32_t>(tokens_.size())});
}

bool Vocabulary::is_eos(TokenId id) const {
  return std::find(eos_.begin(), eos_.end(), id) != eos_.end();
}

Vocabulary Vocabulary::of(const model::Tokenizer& tokenizer, uint32_t vocab,
                          std::vector<TokenId> eos) {
  std::vector<std::string> bytes(vocab);
  for (TokenId id = 0; id < std::min<size_t>(vocab, tokenizer.size()); ++id)
    if (!tokenizer.is_special(id)) bytes[id] = std::string(tokenizer.bytes(id));
  return Vocabulary(std::move(bytes), std::move(eos));
}

base::Result<Vocabulary> Vocabulary::load(const std::string& folder, uint32_t vocab,
                                          std::vector<TokenId> eos) {
  const model::Tokenizer tokenizer = TRY(model::Tokenizer::load(folder));
  return of(tokenizer, vocab, std::move(eos));
}

}  // namespace grammar
