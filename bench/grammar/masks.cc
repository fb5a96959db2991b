// bench_grammar: what a mask costs at the vocabulary of a large model: microseconds to compile, to
// find the mask of a state for the first time and again, and to bar the logits with it. The
// vocabulary is made up (or a model's, --model): pieces of words, digits, blanks and punctuation of
// lengths as a byte-level BPE has them.
#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>

#include "base/rng.h"
#include "bench/grammar/serving.h"
#include "grammar/grammar.h"

namespace {

using base::GrammarKind;
using base::TokenId;
using Clock = std::chrono::steady_clock;

grammar::Vocabulary made_up(uint32_t size) {
  static const char* const kEnds[] = {"",    "\"", "\":", "\",", ": ", ",",  ", ",
                                      "\"}", "}",  "]",   ")",   ".",  "\n", "\n ",
                                      "=",   "_",  "(",   "[",   "-",  "/",  " "};
  constexpr std::string_view kLetters = "etaoinshrdlucmfwypvbgkjqxz";
  std::vector<std::string> bytes;
  for (int byte = 0; byte < 256; ++byte) bytes.emplace_back(1, static_cast<char>(byte));
  base::Rng rng(1);
  while (bytes.size() + 1 < size) {
    std::string text = rng.chance(0.4) ? " " : "";
    for (uint64_t n = 1 + rng.below(9); n > 0; --n) {
      const uint64_t letter = std::min(rng.below(26), rng.below(26));
      text += rng.chance(0.05) ? static_cast<char>('0' + rng.below(10)) : kLetters[letter];
    }
    if (rng.chance(0.15)) text = kEnds[rng.below(std::size(kEnds))] + text;
    if (rng.chance(0.15)) text += kEnds[rng.below(std::size(kEnds))];
    bytes.push_back(std::move(text));
  }
  bytes.emplace_back();
  return grammar::Vocabulary(std::move(bytes), {size - 1});
}

double us_since(Clock::time_point begin) {
  return std::chrono::duration<double, std::micro>(Clock::now() - begin).count();
}

double percentile(std::vector<double> values, double part) {
  std::sort(values.begin(), values.end());
  return values.empty()
             ? 0
             : values[static_cast<size_t>(part * static_cast<double>(values.size() - 1))];
}

// One answer under the masks, as random as they allow. Microseconds of each mask.
std::vector<double> walk(grammar::Grammar& grammar, uint64_t seed, std::vector<TokenId>& tokens) {
  base::Rng rng(seed);
  grammar::Matcher matcher(grammar);
  std::vector<double> times;
  const grammar::Vocabulary& vocabulary = grammar.vocabulary();
  const bool replay = !tokens.empty();
  for (size_t n = 0; n < 200; ++n) {
    const Clock::time_point begin = Clock::now();
    const std::span<const TokenId> before = std::span(tokens).first(replay ? n : tokens.size());
    const std::span<const uint64_t> mask = matcher.allowed(before);
    times.push_back(us_since(begin));
    if (replay && n == tokens.size() - 1) break;
    if (replay) continue;
    std::vector<TokenId> ids;
    for (TokenId id = 0; id < vocabulary.size(); ++id)
      if ((mask[id / 64] >> (id % 64) & 1) != 0) ids.push_back(id);
    tokens.push_back(ids[rng.below(ids.size())]);
    if (vocabulary.is_eos(tokens.back())) break;
  }
  return times;
}

// Microseconds to bar what a mask forbids, as the sampler does.
double bar(const grammar::Vocabulary& vocabulary, std::span<const uint64_t> mask) {
  std::vector<float> logits(vocabulary.size(), 1.0f);
  const Clock::time_point begin = Clock::now();
  for (size_t id = 0; id < logits.size(); ++id)
    if ((mask[id / 64] >> (id % 64) & 1) == 0) logits[id] = -1.0f;
  const double us = us_since(begin);
  return logits[0] > 2 ? 0 : us;
}

void measure(const char* name, const base::GrammarText& text,
             const grammar::Vocabulary& vocabulary) {
  const Clock::time_point begin = Clock::now();
  const auto made = grammar::Grammar::compile(text, vocabulary);
  if (!made) return fmt::print("{:<10} refused: {}\n", name, made.error().what);
  const double compiled = us_since(begin);
  std::vector<double> cold, cached;
  for (uint64_t seed = 0; seed < 20; ++seed) {
    std::vector<TokenId> tokens;
    const std::vector<double> first = walk(**made, seed, tokens);
    const std::vector<double> again = walk(**made, seed, tokens);
    cold.insert(cold.end(), first.begin(), first.end());
    cached.insert(cached.end(), again.begin(), again.end());
  }
  double sum = 0;
  for (const double us : cold) sum += us;
  const auto& counters = (*made)->counters();
  fmt::print("{:<10} {:>9.0f} {:>9.0f} {:>9.0f} {:>9.0f} {:>9.1f} {:>9.1f} {:>7} {:>7} {:>7}\n",
             name, compiled, percentile(cold, 0.5), percentile(cold, 1),
             sum / static_cast<double>(cold.size()), percentile(cached, 0.5),
             percentile(cached, 0.99), cold.size(), counters.walks, counters.reused);
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("What masks of grammars cost");
  uint32_t size = 131072;
  std::string model;
  app.add_option("--vocabulary", size, "tokens")->capture_default_str();
  app.add_option("--model", model, "a model's folder, for its tokenizer");
  uint32_t schemas = 0;
  app.add_option("--schemas", schemas, "instead: the memory that so many random schemas take");
  std::string steps;
  app.add_option("--steps", steps, "instead: the cost beside the steps of this checkpoint");
  CLI11_PARSE(app, argc, argv);
  const Clock::time_point begin = Clock::now();
  auto vocabulary = std::make_unique<grammar::Vocabulary>(made_up(size));
  if (!model.empty()) {
    auto loaded = grammar::Vocabulary::load(model, size, {size - 1});
    if (!loaded) {
      fmt::print(stderr, "{}\n", base::to_string(loaded.error()));
      return 1;
    }
    vocabulary = std::make_unique<grammar::Vocabulary>(std::move(*loaded));
  }
  fmt::print("{} tokens, {} nodes in the trie, made in {:.0f} ms\n", vocabulary->size(),
             vocabulary->nodes().size(), us_since(begin) / 1000);
  if (schemas > 0) {
    bench::measure_memory(*vocabulary, schemas);
    return 0;
  }
  if (!steps.empty()) {
    const base::Status measured = bench::measure_steps(steps, *vocabulary);
    if (!measured) fmt::print(stderr, "{}\n", base::to_string(measured.error()));
    return measured ? 0 : 1;
  }
  std::vector<uint64_t> half(vocabulary->words(), 0x5555555555555555);
  fmt::print("barring half of the logits: {:.0f} us\n", bar(*vocabulary, half));
  fmt::print("{:<10} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>7} {:>7} {:>7}   (us)\n", "", "compile",
             "new p50", "new max", "new mean", "kept p50", "kept p99", "masks", "walks", "reused");
  measure("object", {GrammarKind::kJsonObject, ""}, *vocabulary);
  measure(
      "schema",
      {GrammarKind::kJsonSchema,
       R"({"type":"object","properties":{"name":{"type":"string"},"age":{"type":"integer","minimum":0,)"
       R"("maximum":150},"mail":{"type":"string","format":"email"},"address":{"type":"object",)"
       R"("properties":{"street":{"type":"string"},"city":{"type":"string","maxLength":40}},)"
       R"("required":["street","city"]},"tags":{"type":"array","items":{"enum":["red","green","blue"]}},)"
       R"("sons":{"type":"array","items":{"$ref":"#"}}},"required":["name","age","address"]})"},
      *vocabulary);
  measure("regex", {GrammarKind::kRegex, "([A-Z][a-z]+ ){2,8}\\d{4}-\\d{2}-\\d{2}"}, *vocabulary);
  measure("text", {GrammarKind::kRegex, "(.|\\n){0,2000}"}, *vocabulary);
  measure(
      "ebnf",
      {GrammarKind::kEbnf,
       "root ::= expr\nexpr ::= term ([+*/-] term)*\nterm ::= [a-z]+ | [0-9]+ | \"(\" expr \")\""},
      *vocabulary);
  return 0;
}
