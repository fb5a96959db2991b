#include "model/prefill_cost.h"

#include <algorithm>

#include "model/config.h"

namespace model {

namespace {

// 1 + 2 + … + n
uint64_t triangle(uint64_t n) { return n * (n + 1) / 2; }

uint64_t product(uint64_t a, uint64_t b) { return a * b; }

// The two attentions of a layer and its indexer, without what depends on the context.
uint64_t attention_row(const ModelConfig& c) {
  const uint64_t heads = c.heads;
  const uint64_t queries =
      product(c.hidden, c.q_lora) + product(c.q_lora, heads * (c.nope + c.rope));
  const uint64_t absorb = product(heads * c.kv_lora, c.nope + c.v_dim);
  const uint64_t out = product(c.hidden, c.latent()) + product(heads * c.v_dim, c.hidden);
  uint64_t index = 0;
  if (c.indexer) {
    const IndexerConfig& i = *c.indexer;
    index = product(c.hidden, i.head_dim + i.heads) + product(c.q_lora, i.heads * i.head_dim);
  }
  return 2 * (queries + absorb + out) + index;
}

}  // namespace

uint64_t PrefillCost::before(uint32_t end) const {
  const uint64_t dense = std::min(end, attended), sparse = end - dense;
  return end * row + pair * (triangle(dense) + sparse * attended) +
         score * (triangle(end) - triangle(dense));
}

PrefillCost prefill_cost(const ModelConfig& c) {
  PrefillCost cost;
  const uint64_t choices = uint64_t{c.experts} + c.zero_experts;
  const uint64_t mlps = 2 * 3 * product(c.hidden, c.ffn);
  // A zero expert costs nothing: of the chosen, its share is that of the choices.
  const uint64_t experts =
      choices == 0 ? 0 : 3 * product(c.hidden, c.expert_ffn) * c.topk * c.experts / choices;
  cost.row = attention_row(c) + mlps + product(c.hidden, choices) + experts;
  cost.embed = c.ngram ? product(c.hidden, c.hidden) : c.hidden;
  cost.pair = 2 * product(c.heads, c.latent() + c.kv_lora);
  if (c.indexer) {
    cost.attended = c.indexer->topk;
    cost.score = product(c.indexer->heads, c.indexer->head_dim);
  }
  cost.head = product(c.vocab, c.hidden);
  return cost;
}

}  // namespace model
