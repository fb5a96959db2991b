// What a decode rank counts, for /metrics. Grows only; read by heartbeats.
#pragma once
#include <cstdint>

#include "experts/expert_dispatch.h"
#include "lookup/ngram_lookup.h"

namespace decode {

struct Counters : experts::ExpertCounters, lookup::NgramCounters {
  uint64_t steps = 0;
  uint64_t batch_rows = 0;      // of the passes of all steps, drafts and forced tokens included
  uint64_t step_sequences = 0;  // sum of the sequences of all steps
  uint64_t drafted = 0;         // tokens; `accepted` of them were emitted
  uint64_t accepted = 0;
  uint64_t step_tokens = 0;        // sampled by steps: all but first and forced tokens
  double draft_length = 0;         // drafts of a sequence in the latest step, on average
  uint64_t forced = 0;             // emitted without a pass of their own, by a grammar
  uint64_t tokens = 0;             // emitted, first and forced tokens included
  double expert_wait_seconds = 0;  // steps that stood still for rows away
  double step_seconds = 0;
  // Steps during which experts' weights were loaded for a plan or a dead rank, and their time.
  uint64_t steps_loading = 0;
  double step_seconds_loading = 0;
  uint64_t experts_loaded = 0;
  uint64_t kv_rows_received = 0;
  uint64_t kv_rows_held = 0;  // of reservations, here already: nobody shipped them
  // Sequences in shards: questions sent and their bytes with those of the answers, questions
  // answered, and the time that steps stood still for answers.
  uint64_t shard_questions = 0, shard_bytes = 0, shard_answers = 0;
  double shard_wait_seconds = 0;
  uint64_t stale = 0;             // messages of attempts that ended or were overtaken
  uint64_t numerical_faults = 0;  // rows that ceased to be finite
  uint64_t attempts_failed = 0;   // told to the coordinator
  uint64_t preempted = 0;         // attempts that gave way, told too
};

}  // namespace decode
