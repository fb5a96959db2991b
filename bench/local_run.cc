#include "bench/local_run.h"

#include <algorithm>
#include <chrono>
#include <deque>
#include <utility>
#include <vector>

#include "base/check.h"
#include "cluster/bench_load.h"
#include "model/forward.h"
#include "model/sampler.h"

namespace bench {

namespace {

using cluster::BenchSample;
using model::TokenId;
using std::chrono::steady_clock;

// One request in flight.
struct Sequence {
  std::vector<TokenId> tokens;  // prompt, then what was emitted
  uint32_t prompt = 0;          // tokens of it
  uint32_t done = 0;            // tokens that have KV
  std::vector<model::BlockId> blocks;
  BenchSample sample;
  double previous = 0;

  uint32_t pending() const { return static_cast<uint32_t>(tokens.size()) - done; }
};

class LocalRun {
 public:
  LocalRun(model::Engine& engine, const cluster::BenchOptions& options, const LocalLimits& limits)
      : engine_(engine),
        options_(options),
        limits_(limits),
        blocks_each_(model::KvPool::blocks_for(options.input_tokens + options.output_tokens)),
        pool_(blocks_each_ * limits.max_batch, model::LayerRange{0, engine.shape().layers},
              engine.shape().kv_row_bytes) {
    greedy_.temperature = 0;
    greedy_.ignore_eos = true;
    greedy_.max_tokens = options.output_tokens;
  }
  cluster::BenchResult run();

 private:
  double now() const { return std::chrono::duration<double>(steady_clock::now() - begun_).count(); }
  void send(uint32_t index);
  void admit();
  void step();
  void take_rows(Sequence& sequence, uint32_t count);
  void emit(Sequence& sequence, std::span<const float> logits, double at);

  model::Engine& engine_;
  const cluster::BenchOptions& options_;
  const LocalLimits limits_;
  const uint32_t blocks_each_;
  model::KvPool pool_;
  model::Pass pass_;
  std::vector<float> logits_;
  base::Sampling greedy_;
  steady_clock::time_point begun_;
  std::deque<Sequence> waiting_;
  std::deque<Sequence> running_;  // oldest first; segments point into them during a pass
  cluster::BenchResult result_;
};

void LocalRun::send(uint32_t index) {
  Sequence sequence;
  sequence.tokens = cluster::bench_prompt(options_.seed, index, options_.input_tokens);
  sequence.prompt = options_.input_tokens;
  sequence.sample.input_tokens = options_.input_tokens;
  sequence.sample.sent = now();
  waiting_.push_back(std::move(sequence));
}

void LocalRun::admit() {
  while (!waiting_.empty() && running_.size() < limits_.max_batch) {
    running_.push_back(std::move(waiting_.front()));
    waiting_.pop_front();
    auto blocks = pool_.allocate(blocks_each_);
    CHECK(blocks.has_value(), "the pool has room for max_batch sequences");
    running_.back().blocks = std::move(*blocks);
  }
}

void LocalRun::take_rows(Sequence& sequence, uint32_t count) {
  const uint32_t back = std::min(sequence.done, engine_.shape().ngram_context);
  model::Segment segment;
  segment.row = pass_.rows();
  segment.count = count;
  segment.position = sequence.done;
  segment.kv = model::KvView{&pool_, sequence.blocks};
  segment.context = std::span<const TokenId>(sequence.tokens).subspan(sequence.done - back, back);
  const auto first = sequence.tokens.begin() + sequence.done;
  pass_.tokens.insert(pass_.tokens.end(), first, first + count);
  pass_.segments.push_back(segment);
  sequence.done += count;
}

void LocalRun::emit(Sequence& sequence, std::span<const float> logits, double at) {
  const std::span<const TokenId> all(sequence.tokens);
  const model::SampleInput input{logits, all.first(sequence.prompt), all.subspan(sequence.prompt),
                                 engine_.shape().eos};
  sequence.tokens.push_back(model::sample(input, greedy_).token);
  BenchSample& sample = sequence.sample;
  if (sample.output_tokens == 0) {
    sample.first = at;
  } else {
    sample.gaps.push_back(at - sequence.previous);
  }
  ++sample.output_tokens;
  sequence.previous = sample.last = at;
}

void LocalRun::step() {
  const model::Shape& shape = engine_.shape();
  pass_.tokens.clear();
  pass_.segments.clear();
  uint32_t left = limits_.chunk;
  std::vector<Sequence*> ready;  // their last pending token is in this pass
  std::vector<uint32_t> rows;    // it stands there
  for (Sequence& sequence : running_) {
    const bool decodes = sequence.done >= sequence.prompt;
    const uint32_t count = decodes ? 1 : std::min(left, sequence.pending());
    if (count == 0) continue;
    if (!decodes) left -= count;
    take_rows(sequence, count);
    if (sequence.pending() > 0) continue;
    ready.push_back(&sequence);
    rows.push_back(pass_.rows() - 1);
  }
  model::InlineSite site(engine_);
  const bool ok =
      base::run_inline(model::forward(engine_, model::LayerRange{0, shape.layers}, pass_, site));
  CHECK(ok, "a pass in one process cannot be given up");
  if (rows.empty()) return;
  logits_.resize(rows.size() * shape.vocab);
  engine_.head(pass_, rows, logits_);
  const std::span<const float> logits(logits_);
  for (size_t i = 0; i < ready.size(); ++i)
    emit(*ready[i], logits.subspan(i * shape.vocab, shape.vocab), now());
}

cluster::BenchResult LocalRun::run() {
  uint32_t sent = 0;
  begun_ = steady_clock::now();
  while (result_.samples.size() < options_.requests) {
    while (sent < options_.requests && running_.size() + waiting_.size() < options_.concurrency)
      send(sent++);
    admit();
    step();
    for (Sequence& sequence : running_) {
      if (sequence.sample.output_tokens < options_.output_tokens) continue;
      pool_.release(sequence.blocks);
      sequence.sample.ok = true;
      result_.samples.push_back(std::move(sequence.sample));
      sequence.blocks.clear();
    }
    std::erase_if(running_, [](const Sequence& sequence) { return sequence.blocks.empty(); });
  }
  result_.duration = now();
  result_.concurrency = options_.concurrency;
  return std::move(result_);
}

}  // namespace

base::Result<cluster::BenchResult> run_local(model::Engine& engine,
                                             const cluster::BenchOptions& options,
                                             const LocalLimits& limits) {
  const model::Shape& shape = engine.shape();
  const uint64_t longest = uint64_t{options.input_tokens} + options.output_tokens;
  if (longest > shape.max_context) {
    return base::fail(base::Code::kInvalidArgument,
                      "{} input and {} output tokens in a context of {}", options.input_tokens,
                      options.output_tokens, shape.max_context);
  }
  if (shape.vocab < cluster::kCommonVocab) {
    return base::fail(base::Code::kInvalidArgument,
                      "the load uses token ids below {}; the model has {}", cluster::kCommonVocab,
                      shape.vocab);
  }
  return LocalRun(engine, options, limits).run();
}

}  // namespace bench
