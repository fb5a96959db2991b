// The measured passes: decode steps of a batch at a depth, and prefills of a prompt, on one engine
// in this process.
#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "bench/model/costs.h"
#include "model/engine.h"

namespace bench {

struct Cell {
  bool prefill = false;
  uint32_t batch = 1, depth = 0;  // decode
  uint32_t tokens = 0;            // prefill: of the prompt; decode: steps of a run
};

// One measurement of a cell.
struct Sample {
  double seconds = 0;
  double cpu_seconds =
      0;  // of all threads: less than seconds · threads where neighbours had a core
  uint64_t tokens = 0;
  double bytes = 0;       // weights and KV that had to be read
  double operations = 0;  // f32 or integer, two a multiply-add
};

// KV blocks of `depth` positions for `batch` sequences. Their content is random rows: computing
// 32768 positions for 32 sequences would take hours and change no speed.
class Sequences {
 public:
  Sequences(const model::Shape& shape, uint32_t batch, uint32_t positions);
  ~Sequences();
  static uint64_t bytes_for(const model::Shape& shape, uint32_t batch, uint32_t positions);
  model::KvView view(uint32_t sequence) { return {&pool_, blocks_[sequence]}; }

 private:
  model::KvPool pool_;
  std::vector<std::vector<model::BlockId>> blocks_;
};

class Runner {
 public:
  Runner(model::Engine& engine, const Costs& costs, uint32_t chunk)
      : engine_(engine), costs_(costs), chunk_(chunk) {}
  // Repeats the cell's run until it has taken `least` seconds.
  Sample measure(const Cell& cell, Sequences& sequences, double least);

 private:
  void decode_run(const Cell& cell, Sequences& sequences, Sample* sample);
  void prefill_run(const Cell& cell, Sequences& sequences, Sample* sample);
  void pass(uint32_t heads, Sample* sample);
  model::TokenId next_token();

  model::Engine& engine_;
  const Costs& costs_;
  const uint32_t chunk_;
  model::Pass pass_;
  std::vector<uint32_t> rows_;
  std::vector<float> logits_;
  std::vector<model::TokenId> prompt_;
  uint64_t token_state_ = 1;
};

}  // namespace bench
