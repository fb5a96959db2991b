// The load of `serval bench` on one engine in this process and on this thread: what is left when
// the network, the processes and the division of the model are taken away.
#pragma once
#include "base/result.h"
#include "cluster/bench.h"
#include "cluster/bench_report.h"
#include "model/engine.h"

namespace bench {

struct LocalLimits {
  uint32_t chunk = 256;     // prompt tokens of one pass, all sequences together
  uint32_t max_batch = 32;  // sequences that have KV; more wait, as on a decode rank
};

// Closed loop: `concurrency` requests in flight, the next is sent when one ends. Each pass carries
// one row of every sequence that decodes and up to `chunk` rows of prompts, oldest first. Of
// `options`, url, model and json are not read. kInvalidArgument when a request does not fit the
// model's context or vocabulary.
base::Result<cluster::BenchResult> run_local(model::Engine& engine,
                                             const cluster::BenchOptions& options,
                                             const LocalLimits& limits);

}  // namespace bench
