// Vocabulary: the bytes of every token as a trie in preorder, so that a machine over bytes reads
// all tokens in one walk and shares what they begin with. Constant; any number of threads.
#pragma once
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/ids.h"
#include "base/result.h"

namespace model {
class Tokenizer;
}

namespace grammar {

using base::TokenId;

class Vocabulary {
 public:
  // bytes[id]: what the token adds to the text; empty: it is never part of constrained text.
  Vocabulary(std::vector<std::string> bytes, std::vector<TokenId> eos);
  // Special tokens and ids from the tokenizer's size up to `vocab` have no bytes.
  static Vocabulary of(const model::Tokenizer& tokenizer, uint32_t vocab, std::vector<TokenId> eos);
  // Of a model's folder: its tokenizer.
  static base::Result<Vocabulary> load(const std::string& folder, uint32_t vocab,
                                       std::vector<TokenId> eos);

  size_t size() const { return bytes_.size(); }
  size_t words() const { return (bytes_.size() + 63) / 64; }  // of a mask
  std::string_view bytes(TokenId id) const {
    return id < bytes_.size() ? std::string_view(bytes_[id]) : std::string_view();
  }
  std::span<const TokenId> eos() const { return eos_; }
  bool is_eos(TokenId id) const;

  struct Node {
    uint8_t byte = 0;
    uint16_t depth = 0;   // of the byte in its token
    uint32_t end = 0;     // one past the last node below
    uint32_t tokens = 0;  // first in token_list(); they end where the next node's begin
  };
  std::span<const Node> nodes() const { return {nodes_.data(), nodes_.size() - 1}; }
  // Tokens that end at the node.
  std::span<const TokenId> tokens_at(size_t node) const {
    return std::span(tokens_).subspan(nodes_[node].tokens,
                                      nodes_[node + 1].tokens - nodes_[node].tokens);
  }
  // Tokens that end below the node, and at it.
  std::span<const TokenId> tokens_within(size_t node) const {
    return std::span(tokens_).subspan(nodes_[node].tokens,
                                      nodes_[nodes_[node].end].tokens - nodes_[node].tokens);
  }
  size_t longest() const { return longest_; }  // bytes

 private:
  std::vector<std::string> bytes_;
  std::vector<TokenId> eos_;
  std::vector<Node> nodes_;      // and one behind the last
  std::vector<TokenId> tokens_;  // with bytes, in the order of the nodes
  size_t longest_ = 0;
};

}  // namespace grammar
