#include "proto/common.h"

namespace proto {

SamplingFields to_wire(const base::Sampling& sampling) {
  SamplingFields out;
  out.temperature = sampling.temperature;
  out.top_p = sampling.top_p;
  out.top_k = sampling.top_k;
  out.min_p = sampling.min_p;
  out.frequency_penalty = sampling.frequency_penalty;
  out.presence_penalty = sampling.presence_penalty;
  out.repetition_penalty = sampling.repetition_penalty;
  out.seed = sampling.seed;
  out.choice = sampling.choice;
  out.max_tokens = sampling.max_tokens;
  out.min_tokens = sampling.min_tokens;
  out.ignore_eos = sampling.ignore_eos;
  out.top_logprobs = sampling.top_logprobs;
  out.stop_tokens = sampling.stop_tokens;
  out.logit_bias = sampling.logit_bias;
  out.grammar_kind = static_cast<uint8_t>(sampling.grammar.kind);
  out.grammar_text = sampling.grammar.text;
  return out;
}

base::Sampling from_wire(const SamplingFields& fields) {
  base::Sampling out;
  out.temperature = fields.temperature;
  out.top_p = fields.top_p;
  out.top_k = fields.top_k;
  out.min_p = fields.min_p;
  out.frequency_penalty = fields.frequency_penalty;
  out.presence_penalty = fields.presence_penalty;
  out.repetition_penalty = fields.repetition_penalty;
  out.seed = fields.seed;
  out.choice = fields.choice;
  out.max_tokens = fields.max_tokens;
  out.min_tokens = fields.min_tokens;
  out.ignore_eos = fields.ignore_eos;
  out.top_logprobs = fields.top_logprobs;
  out.stop_tokens = fields.stop_tokens;
  out.logit_bias = fields.logit_bias;
  out.grammar = {static_cast<base::GrammarKind>(fields.grammar_kind), fields.grammar_text};
  return out;
}

bool plausible(const SamplingFields& fields) {
  return fields.grammar_kind <= static_cast<uint8_t>(base::GrammarKind::kEbnf);
}

}  // namespace proto
