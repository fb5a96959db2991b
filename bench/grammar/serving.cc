#include "bench/grammar/serving.h"

#include <fmt/core.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <deque>
#include <fstream>
#include <nlohmann/json.hpp>

#include "base/rng.h"
#include "grammar/cache.h"
#include "model/checkpoint.h"
#include "model/forward.h"
#include "tests/grammar/random_schemas.h"

namespace bench {

namespace {

using base::GrammarKind;
using base::TokenId;

double resident_mb() {
  std::ifstream in("/proc/self/statm");
  uint64_t all = 0, resident = 0;
  in >> all >> resident;
  return static_cast<double>(resident) * static_cast<double>(::sysconf(_SC_PAGESIZE)) / 1e6;
}

double cpu_ms() {
  timespec at{};
  ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &at);
  return static_cast<double>(at.tv_sec) * 1e3 + static_cast<double>(at.tv_nsec) / 1e6;
}

// As random as the masks allow.
void answer(grammar::Matcher& matcher, const grammar::Vocabulary& vocabulary, base::Rng& rng) {
  std::vector<TokenId> tokens, ids;
  while (tokens.size() < 200 && (tokens.empty() || !vocabulary.is_eos(tokens.back()))) {
    const std::span<const uint64_t> mask = matcher.allowed(tokens);
    if (mask.empty()) return;
    ids.clear();
    for (size_t word = 0; word < mask.size(); ++word)
      for (uint64_t left = mask[word]; left != 0; left &= left - 1)
        ids.push_back(
            static_cast<TokenId>(word * 64 + static_cast<size_t>(std::countr_zero(left))));
    tokens.push_back(ids[rng.below(ids.size())]);
  }
}

// Times a mask and passes it on.
class Timed final : public model::Constraint {
 public:
  explicit Timed(model::Constraint& inner) : inner_(inner) {}
  std::span<const uint64_t> allowed(std::span<const TokenId> emitted) override {
    const double begin = cpu_ms();
    const std::span<const uint64_t> mask = inner_.allowed(emitted);
    ms += cpu_ms() - begin;
    return mask;
  }
  TokenId only_token(std::span<const TokenId> emitted) override {
    const double begin = cpu_ms();
    const TokenId only = inner_.only_token(emitted);
    ms += cpu_ms() - begin;
    return only;
  }
  double ms = 0;

 private:
  model::Constraint& inner_;
};

struct Cost {
  double step_ms = 0, mask_ms = 0;
  uint32_t tokens = 0, forced = 0;
};

// `answers` of a grammar (or of none).
Cost generate(model::Engine& engine, grammar::Grammar* grammar, uint32_t answers) {
  Cost cost;
  for (uint32_t i = 0; i < answers; ++i) {
    base::Sampling sampling;
    sampling.max_tokens = 120;
    sampling.temperature = 1;
    sampling.seed = i;
    sampling.ignore_eos = grammar == nullptr;
    if (grammar != nullptr) sampling.stop_tokens = {grammar->vocabulary().eos().front()};
    model::GenerateOptions options;
    std::optional<grammar::Matcher> matcher;
    std::optional<Timed> timed;
    if (grammar != nullptr) options.constraint = &timed.emplace(matcher.emplace(*grammar));
    const std::vector<TokenId> prompt{1, 2, 3, 4};
    const double begin = cpu_ms();
    const model::Generated made = model::generate(engine, prompt, sampling, options);
    cost.step_ms += cpu_ms() - begin;
    cost.tokens += static_cast<uint32_t>(made.tokens.size());
    cost.forced += made.forced;
    if (timed) cost.mask_ms += timed->ms;
  }
  return cost;
}

}  // namespace

void measure_memory(const grammar::Vocabulary& vocabulary, uint32_t count) {
  constexpr size_t kInUse = 32;
  grammar::Cache cache;
  struct Sequence {
    grammar::Cache::Handle grammar;
    std::unique_ptr<grammar::Matcher> matcher;
  };
  std::deque<Sequence> sequences;
  base::Rng rng(5);
  uint32_t refused = 0;
  double most = 0;
  const double before = resident_mb();
  fmt::print("{:.0f} MB resident before the first grammar\n", before);
  for (uint32_t i = 1; i <= count; ++i) {
    const base::GrammarText text{GrammarKind::kJsonSchema, grammar::random_schema(rng).dump()};
    Sequence sequence;
    sequence.grammar = cache.find(text);
    if (!sequence.grammar) {
      auto made = grammar::Grammar::compile(text, vocabulary);
      if (made) sequence.grammar = cache.insert(text, std::move(*made));
      refused += made ? 0 : 1;
    }
    if (sequence.grammar) {
      sequence.matcher = std::make_unique<grammar::Matcher>(*sequence.grammar);
      answer(*sequence.matcher, vocabulary, rng);
      sequences.push_back(std::move(sequence));
    }
    if (sequences.size() > kInUse) sequences.pop_front();
    most = std::max(most, resident_mb());
    if (i % std::max(count / 5, 1u) == 0) {
      fmt::print("{:>6} schemas: {:>5.0f} MB resident, {:>5.0f} at most, {} grammars kept\n", i,
                 resident_mb(), most, cache.size());
    }
  }
  fmt::print("{} were refused\n", refused);
}

base::Status measure_steps(const std::string& folder, const grammar::Vocabulary& vocabulary) {
  const auto checkpoint = std::make_unique<model::Checkpoint>(TRY(model::Checkpoint::open(folder)));
  const std::unique_ptr<model::Engine> engine = TRY(model::make_local_engine(*checkpoint, {}));
  if (engine->shape().vocab != vocabulary.size()) {
    return base::fail(base::Code::kMismatch, "{} has a vocabulary of {}, not {}", folder,
                      engine->shape().vocab, vocabulary.size());
  }
  const Cost plain = generate(*engine, nullptr, 2);
  const double step = plain.step_ms / plain.tokens;
  fmt::print("without a grammar: {:.1f} ms of CPU a token\n", step);
  const std::pair<const char*, base::GrammarText> grammars[] = {
      {"object", {GrammarKind::kJsonObject, ""}},
      {"schema",
       {GrammarKind::kJsonSchema,
        R"({"properties":{"name":{"type":"string","maxLength":40},"age":{"type":"integer",)"
        R"("maximum":150},"mail":{"type":"string","format":"email"},"tags":{"items":{"enum":)"
        R"(["red","green"]}}},"required":["name","age"]})"}},
      {"text", {GrammarKind::kRegex, "(.|\\n){0,2000}"}},
      {"choice", {GrammarKind::kChoice, R"(["positive","negative","neither of the two"])"}}};
  for (const auto& [name, text] : grammars) {
    const auto grammar = TRY(grammar::Grammar::compile(text, vocabulary));
    for (const char* run : {"first", "again"}) {
      const Cost cost = generate(*engine, grammar.get(), 4);
      fmt::print(
          "{:<7} {}: {:>6.1f} ms a token, masks {:>6.3f} ms, {:>5.1f} % of a plain step; "
          "{} of {} tokens forced\n",
          name, run, cost.step_ms / cost.tokens, cost.mask_ms / cost.tokens,
          100 * cost.mask_ms / cost.tokens / step, cost.forced, cost.tokens);
    }
  }
  return {};
}

}  // namespace bench
