#include "bench/model/cells.h"

#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cstring>

#include "base/check.h"
#include "model/forward.h"

namespace bench {
namespace {

double cpu_now() {
  rusage usage = {};
  ::getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + 1e-6 * static_cast<double>(t.tv_usec);
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

uint64_t mixed(uint64_t counter) {
  uint64_t z = counter * 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

// bf16 values of either sign in [0.5, 1): the size of a normalised latent.
void fill_random(std::byte* to, size_t bytes, uint64_t key) {
  for (size_t at = 0; at + 8 <= bytes; at += 8) {
    const uint64_t four = (mixed(key + at) & 0x807F807F807F807Fu) | 0x3F003F003F003F00u;
    std::memcpy(to + at, &four, 8);
  }
}

// Runs experts here and counts how many different ones each layer's rows chose.
class CountingSite final : public model::Site {
 public:
  explicit CountingSite(model::Engine& engine) : engine_(engine) {}
  base::Task<void> compute(std::function<void()> job, uint32_t rows) override {
    (void)rows;
    job();
    co_return;
  }
  base::Task<bool> run_experts(uint32_t layer, model::Pass& pass) override {
    chosen_.assign(engine_.shape().experts, false);
    for (const uint32_t id : pass.expert_ids)
      if (id < chosen_.size() && !chosen_[id]) chosen_[id] = true, ++experts_;
    engine_.routed_experts(layer, pass);
    co_return true;
  }
  uint64_t experts() const { return experts_; }

 private:
  model::Engine& engine_;
  std::vector<bool> chosen_;
  uint64_t experts_ = 0;
};

}  // namespace

Sequences::Sequences(const model::Shape& shape, uint32_t batch, uint32_t positions)
    : pool_(batch * model::KvPool::blocks_for(positions), model::LayerRange{0, shape.layers},
            shape.kv_row_bytes),
      blocks_(batch) {
  for (auto& blocks : blocks_) {
    blocks = *pool_.allocate(model::KvPool::blocks_for(positions));
    for (const model::BlockId block : blocks)
      for (uint32_t layer = 0; layer < shape.layers; ++layer)
        fill_random(pool_.entry(block, layer), pool_.entry_bytes(),
                    mixed(uint64_t{block} * shape.layers + layer));
  }
}

Sequences::~Sequences() {
  for (const auto& blocks : blocks_) pool_.release(blocks);
}

uint64_t Sequences::bytes_for(const model::Shape& shape, uint32_t batch, uint32_t positions) {
  return uint64_t{batch} * model::KvPool::blocks_for(positions) * model::kBlockTokens *
         shape.kv_row_bytes * shape.layers;
}

model::TokenId Runner::next_token() {
  return static_cast<model::TokenId>(mixed(token_state_++) % engine_.shape().vocab);
}

// The pass as it is set up, and the head on its last `heads` rows.
void Runner::pass(uint32_t heads, Sample* sample) {
  CountingSite site(engine_);
  const uint32_t layers = engine_.shape().layers;
  const bool ok =
      base::run_inline(model::forward(engine_, model::LayerRange{0, layers}, pass_, site));
  CHECK(ok, "a pass in one process cannot be given up");
  double positions = 0;
  for (const model::Segment& segment : pass_.segments) {
    const double n = segment.count;
    positions += n * segment.position + n * (n + 1) / 2;
    // A segment's rows share what they read of the cache.
    sample->bytes += costs_.kv_bytes(static_cast<double>(segment.position) + n);
  }
  rows_.clear();
  for (uint32_t i = pass_.rows() - heads; i < pass_.rows(); ++i) rows_.push_back(i);
  if (heads > 0) {
    logits_.resize(size_t{heads} * engine_.shape().vocab);
    engine_.head(pass_, rows_, logits_);
  }
  sample->bytes += costs_.weight_bytes(site.experts());
  sample->operations += costs_.operations(pass_.rows(), heads, positions);
}

void Runner::decode_run(const Cell& cell, Sequences& sequences, Sample* sample) {
  const uint32_t back = engine_.shape().ngram_context;
  prompt_.assign(back, 5);
  pass_.tokens.resize(cell.batch);
  pass_.segments.resize(cell.batch);
  for (uint32_t step = 0; step < cell.tokens; ++step) {
    const uint32_t position = cell.depth + step;
    for (uint32_t i = 0; i < cell.batch; ++i) {
      pass_.tokens[i] = next_token();
      model::Segment& segment = pass_.segments[i];
      segment = {};
      segment.row = i;
      segment.count = 1;
      segment.position = position;
      segment.kv = sequences.view(i);
      segment.context = std::span(prompt_).first(std::min(back, position));
    }
    pass(cell.batch, sample);
  }
  sample->tokens += uint64_t{cell.batch} * cell.tokens;
}

void Runner::prefill_run(const Cell& cell, Sequences& sequences, Sample* sample) {
  prompt_.resize(cell.tokens);
  for (model::TokenId& token : prompt_) token = next_token();
  const std::span<const model::TokenId> prompt(prompt_);
  for (uint32_t done = 0; done < cell.tokens;) {
    const uint32_t count = std::min(chunk_, cell.tokens - done);
    const uint32_t back = std::min(done, engine_.shape().ngram_context);
    model::Segment segment;
    segment.count = count;
    segment.position = done;
    segment.kv = sequences.view(0);
    segment.context = prompt.subspan(done - back, back);
    pass_.tokens.assign(prompt_.begin() + done, prompt_.begin() + done + count);
    pass_.segments.assign(1, segment);
    done += count;
    pass(done == cell.tokens ? 1 : 0, sample);
  }
  sample->tokens += cell.tokens;
}

Sample Runner::measure(const Cell& cell, Sequences& sequences, double least) {
  Sample sample;
  const double cpu = cpu_now();
  const auto begun = std::chrono::steady_clock::now();
  do {
    cell.prefill ? prefill_run(cell, sequences, &sample) : decode_run(cell, sequences, &sample);
    sample.seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - begun).count();
  } while (sample.seconds < least);
  sample.cpu_seconds = cpu_now() - cpu;
  return sample;
}

}  // namespace bench
