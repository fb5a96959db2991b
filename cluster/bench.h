// `serval bench`: a closed-loop load generator for any OpenAI-compatible server. Prompts are random
// token-like words of the asked length, answers run to the asked length (ignore_eos where the
// server knows it). One thread, any number of streams.
#pragma once
#include <cstdint>
#include <string>

namespace cluster {

struct BenchOptions {
  std::string url, model, json;
  uint32_t requests = 100, concurrency = 8, input_tokens = 128, output_tokens = 64;
  uint64_t seed = 1;
};
// The exit code: 1 when a request failed.
int bench(const std::string& config, const BenchOptions& options);

}  // namespace cluster
