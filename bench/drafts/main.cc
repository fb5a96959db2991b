// bench_drafts: what multi-token prediction brings a decode rank. Prompts of the built-in model's
// samples decode in batches of one and more through the rank's own step (decode_node/drafter.h,
// step_batch.h), without drafts and with up to k of them, by turns. Printed: tokens a step, what
// the acceptance of each draft step predicts for it, and the gain in wall-clock time.
#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <chrono>
#include <ctime>
#include <fstream>
#include <numeric>

#include "base/check.h"
#include "decode_node/drafter.h"
#include "decode_node/step_batch.h"
#include "model/checkpoint.h"
#include "model/forward.h"
#include "model/tokenizer.h"

namespace bench {
namespace {

using model::TokenId;
using std::chrono::steady_clock;

struct Options {
  std::string checkpoint = "models/serval-tiny";
  std::string prompts = "models/serval-tiny/samples.txt";
  std::vector<uint32_t> batches = {1, 4, 16};
  std::vector<uint32_t> steps = {0, 1, 2, 3};
  uint32_t tokens = 128, rounds = 5, threads = 1;
  float temperature = 0;
};

// The texts between "--- prompt" and "--- continuation", each once.
std::vector<std::string> read_prompts(const std::string& path) {
  std::vector<std::string> out;
  std::ifstream file(path);
  std::string line, text;
  bool inside = false;
  while (std::getline(file, line)) {
    if (line == "--- prompt") {
      inside = true;
      text.clear();
    } else if (line == "--- continuation") {
      inside = false;
      if (std::ranges::find(out, text) == out.end()) out.push_back(text);
    } else if (inside) {
      text += line + "\n";
    }
  }
  return out;
}

struct Measured {
  double seconds = 0, busy = 0;  // busy: of this process's CPU time, which others do not change
  uint64_t tokens = 0, sequence_steps = 0;
  uint64_t drafted = 0;
  std::array<uint64_t, model::kMaxDraftSteps> tried{}, right{};  // of each draft step, when reached
  std::vector<std::vector<TokenId>> answers;

  double rate() const { return static_cast<double>(tokens) / seconds; }
  double cost() const { return busy / static_cast<double>(tokens); }
  double tokens_a_step() const {
    return static_cast<double>(tokens) / static_cast<double>(sequence_steps);
  }
  void add(const Measured& other) {
    seconds += other.seconds;
    busy += other.busy;
    tokens += other.tokens;
    sequence_steps += other.sequence_steps;
    drafted += other.drafted;
    for (size_t i = 0; i < tried.size(); ++i) {
      tried[i] += other.tried[i];
      right[i] += other.right[i];
    }
  }
  void add_round(uint32_t drafts, uint32_t accepted) {
    drafted += drafts;
    for (uint32_t i = 0; i < drafts && i <= accepted; ++i) {
      ++tried[i];
      right[i] += i < accepted;
    }
  }
  double acceptance(uint32_t step) const {
    return static_cast<double>(right[step]) /
           static_cast<double>(std::max<uint64_t>(tried[step], 1));
  }
  // Were every step to draft `steps` tokens: 1 + a₁ + a₁a₂ + …
  double predicted(uint32_t steps) const {
    double tokens = 1, reached = 1;
    for (uint32_t i = 0; i < steps; ++i) tokens += reached *= acceptance(i);
    return tokens;
  }
};

class Batch {
 public:
  Batch(model::Engine& engine, uint32_t steps, std::span<const std::vector<TokenId>> prompts,
        const Options& options)
      : engine_(engine),
        shape_(engine.shape()),
        pool_(blocks_of(prompts, options.tokens), {0, shape_.kv_layers()}, shape_.kv_row_bytes),
        drafter_(shape_, steps, std::numeric_limits<uint16_t>::max()) {
    for (size_t i = 0; i < prompts.size(); ++i) add(prompts[i], options, i);
  }

  // All to their ends; prefill is not counted.
  Measured run() {
    Measured out;
    const auto begun = steady_clock::now();
    const std::clock_t busy = std::clock();
    for (std::vector<decode::Sequence*> batch = running(); !batch.empty(); batch = running()) {
      if (drafter_.on()) drafter_.draft(engine_, batch, pool_);
      step_.assemble(batch, pool_, shape_);
      model::InlineSite site(engine_);
      CHECK(base::run_inline(model::forward(engine_, {0, shape_.layers}, step_.pass(), site)),
            "a pass in one process cannot be given up");
      step_.sample(engine_);
      for (size_t i = 0; i < batch.size(); ++i) {
        const decode::StepBatch::Next& next = step_.next()[i];
        CHECK(next.finite, "logits that are not finite");
        std::vector<TokenId>& tokens = batch[i]->tokens;
        tokens.insert(tokens.end(), next.run.tokens.begin(), next.run.tokens.end());
        out.tokens += next.run.tokens.size();
        out.add_round(next.drafted, next.run.accepted);
      }
      out.sequence_steps += batch.size();
    }
    out.busy = static_cast<double>(std::clock() - busy) / CLOCKS_PER_SEC;
    out.seconds = std::chrono::duration<double>(steady_clock::now() - begun).count();
    for (const auto& sequence : sequences_) out.answers.push_back(sequence->tokens);
    return out;
  }

 private:
  static uint32_t blocks_of(std::span<const std::vector<TokenId>> prompts, uint32_t tokens) {
    uint32_t blocks = 0;
    for (const auto& prompt : prompts)
      blocks += model::KvPool::blocks_for(static_cast<uint32_t>(prompt.size()) + tokens);
    return blocks;
  }
  std::vector<decode::Sequence*> running() {
    std::vector<decode::Sequence*> out;
    for (const auto& sequence : sequences_)
      if (sequence->emitted() < sequence->most_emitted) out.push_back(sequence.get());
    return out;
  }
  void add(const std::vector<TokenId>& prompt, const Options& options, size_t seed) {
    auto sequence = std::make_unique<decode::Sequence>();
    sequence->tokens = prompt;
    sequence->prompt_tokens = static_cast<uint32_t>(prompt.size());
    sequence->most_emitted = sequence->sampling.max_tokens = options.tokens;
    sequence->sampling.temperature = options.temperature;
    sequence->sampling.ignore_eos = true;
    sequence->sampling.seed = seed;
    sequence->blocks =
        *pool_.allocate(model::KvPool::blocks_for(sequence->prompt_tokens + options.tokens));
    prefill(*sequence);
    sequences_.push_back(std::move(sequence));
  }
  void prefill(decode::Sequence& sequence) {
    model::Pass pass;
    pass.tokens = sequence.tokens;
    model::Segment segment;
    segment.count = pass.rows();
    segment.kv = model::KvView{&pool_, sequence.blocks};
    pass.segments = {segment};
    model::InlineSite site(engine_);
    base::run_inline(model::forward(engine_, {0, shape_.layers}, pass, site));
    std::vector<float> logits(shape_.vocab), hidden;
    const uint32_t last = segment.count - 1;
    engine_.head(pass, std::span(&last, 1), logits, &hidden);
    if (drafter_.on()) {
      if (last > 0) {
        std::vector<uint32_t> rows(last);
        std::iota(rows.begin(), rows.end(), 0u);
        model::Pass drafts;
        engine_.final_norm(pass, rows, drafts.h);
        drafts.tokens.assign(sequence.tokens.begin() + 1, sequence.tokens.end());
        segment.count = last;
        drafts.segments = {segment};
        engine_.begin_draft(drafts);
      }
      drafter_.begin(sequence, hidden);
    }
    const model::SampleInput input{logits, sequence.tokens, {}, shape_.eos};
    sequence.tokens.push_back(model::sample(input, sequence.sampling).token);
  }

  model::Engine& engine_;
  const model::Shape& shape_;
  model::KvPool pool_;
  decode::Drafter drafter_;
  decode::StepBatch step_;
  std::vector<std::unique_ptr<decode::Sequence>> sequences_;
};

void measure(model::Engine& engine, const std::vector<std::vector<TokenId>>& prompts,
             uint32_t batch, const Options& options) {
  std::vector<Measured> all(options.steps.size());
  std::vector<std::vector<TokenId>> answers;
  for (uint32_t round = 0; round < options.rounds; ++round) {
    for (size_t i = 0; i < options.steps.size(); ++i) {
      std::vector<std::vector<TokenId>> got;
      for (size_t at = 0; at + batch <= prompts.size(); at += batch) {
        Batch run(engine, options.steps[i], std::span(prompts).subspan(at, batch), options);
        Measured measured = run.run();
        std::ranges::move(measured.answers, std::back_inserter(got));
        all[i].add(measured);
      }
      if (answers.empty()) answers = got;
      CHECK(got == answers, "drafts have changed an answer");
    }
  }
  for (size_t i = 0; i < options.steps.size(); ++i) {
    const Measured& m = all[i];
    std::string chances;
    for (uint32_t step = 0; step < options.steps[i]; ++step)
      chances += fmt::format(" {:.2f}", m.acceptance(step));
    fmt::print("{:>5} {:>6} {:>10.1f} {:>12.3f} {:>10.3f} {:>8.2f} {:>6.2f} {:>9.2f}  {}\n", batch,
               options.steps[i], m.rate(), m.tokens_a_step(), m.predicted(options.steps[i]),
               static_cast<double>(m.drafted) / static_cast<double>(m.sequence_steps),
               m.rate() / all[0].rate(), all[0].cost() / m.cost(), chances);
  }
}

int run(const Options& options) {
  const auto checkpoint = model::Checkpoint::open(options.checkpoint);
  const auto tokenizer = model::Tokenizer::load(options.checkpoint);
  if (!checkpoint || !tokenizer) {
    fmt::print(stderr, "{}\n", (checkpoint ? tokenizer.error() : checkpoint.error()).what);
    return 1;
  }
  model::EngineOptions engine_options;
  engine_options.threads = options.threads;
  engine_options.mtp = true;
  const auto engine = model::make_local_engine(*checkpoint, engine_options);
  if (!engine) {
    fmt::print(stderr, "{}\n", engine.error().what);
    return 1;
  }
  std::vector<std::vector<TokenId>> prompts;
  const std::vector<std::string> texts = read_prompts(options.prompts);
  const uint32_t most = std::ranges::max(options.batches);
  for (size_t i = 0; !texts.empty() && i < std::max<size_t>(texts.size(), most); ++i)
    prompts.push_back(tokenizer->encode(texts[i % texts.size()]));
  if (prompts.empty()) {
    fmt::print(stderr, "{}: no prompts\n", options.prompts);
    return 1;
  }
  fmt::print("{} prompts, {} tokens each, temperature {}, {} threads, {} rounds by turns\n",
             prompts.size(), options.tokens, options.temperature, options.threads, options.rounds);
  fmt::print(
      "batch drafts   tokens/s  tokens/step  predicted  drafted   gain  CPU gain  acceptance by "
      "step\n");
  for (const uint32_t batch : options.batches) measure(**engine, prompts, batch, options);
  return 0;
}

}  // namespace
}  // namespace bench

int main(int argc, char** argv) {
  bench::Options options;
  CLI::App app("What multi-token prediction brings a decode rank");
  app.add_option("--checkpoint", options.checkpoint, "with a drafting block");
  app.add_option("--prompts", options.prompts, "texts after lines \"--- prompt\"");
  app.add_option("--batches", options.batches, "sequences a step")->delimiter(',');
  app.add_option("--steps", options.steps, "drafts a step, at most; the first is compared with")
      ->delimiter(',');
  app.add_option("--tokens", options.tokens, "of an answer");
  app.add_option("--rounds", options.rounds, "of all cells by turns");
  app.add_option("--threads", options.threads, "compute threads");
  app.add_option("--temperature", options.temperature, "0: greedy");
  CLI11_PARSE(app, argc, argv);
  return bench::run(options);
}
