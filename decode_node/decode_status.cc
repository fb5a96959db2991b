// What a decode rank tells of itself: heartbeats and the ledger.
#include "decode_node/decode_actor.h"
#include "model/integrity.h"

namespace decode {

void DecodeActor::fill(proto::Heartbeat& beat) {
  if (beat.state == proto::NodeState::kLoading && config_.load_percent != nullptr) {
    // The first half is the engine, the second the experts of this rank.
    beat.load_percent =
        config_.load_percent->load(std::memory_order_relaxed) / 2 + plans_.load_percent() / 2;
  }
  beat.running = table_.running();
  beat.waiting = table_.reservations();
  beat.blocks_used = table_.pool().used();
  beat.blocks_total = table_.pool().total();
  const auto count = [&beat](const char* name, double value) {
    beat.counters.emplace_back(name, value);
  };
  const Counters& c = counters_;
  if (config_.read_bytes) count(node::kReadBytes, static_cast<double>(config_.read_bytes()));
  count("decode_steps_total", static_cast<double>(c.steps));
  count("decode_batch_rows_total", static_cast<double>(c.batch_rows));
  count("decode_step_sequences_total", static_cast<double>(c.step_sequences));
  count("decode_tokens_total", static_cast<double>(c.tokens));
  count("decode_forced_tokens_total", static_cast<double>(c.forced));
  count("decode_step_tokens_total", static_cast<double>(c.step_tokens));
  count("decode_drafted_total", static_cast<double>(c.drafted));
  count("decode_drafts_accepted_total", static_cast<double>(c.accepted));
  count("decode_draft_length", c.draft_length);
  count("expert_rows_sent_total", static_cast<double>(c.expert_rows_sent));
  count("expert_rows_received_total", static_cast<double>(c.expert_rows_received));
  count("expert_calls_total", static_cast<double>(c.expert_calls));
  count("expert_redispatched_total", static_cast<double>(c.expert_redispatched));
  count("expert_wait_seconds_total", c.expert_wait_seconds);
  lookup::report(c, beat);
  count("expert_layers_total", static_cast<double>(c.expert_layers));
  count("expert_jobs_total", static_cast<double>(c.expert_jobs));
  count("expert_batches_total", static_cast<double>(c.expert_batches));
  count("expert_pairs_total", static_cast<double>(c.expert_pairs));
  count("expert_dispatch_seconds_total", c.dispatch_seconds);
  count("expert_away_seconds_total", c.away_seconds);
  count("expert_compute_seconds_total", c.expert_seconds);
  count("expert_queue_seconds_total", c.expert_queue_seconds);
  count("expert_combine_seconds_total", c.combine_seconds);
  count("decode_step_seconds_total", c.step_seconds);
  count("decode_steps_loading_total", static_cast<double>(c.steps_loading));
  count("decode_step_seconds_loading_total", c.step_seconds_loading);
  count("experts_loaded_total", static_cast<double>(c.experts_loaded));
  count("experts_loading", plans_.loading());
  count("experts_resident", static_cast<double>(plans_.resident()));
  count("expert_epoch", static_cast<double>(plans_.epoch()));
  count("kv_rows_received_total", static_cast<double>(c.kv_rows_received));
  count("kv_rows_held_total", static_cast<double>(c.kv_rows_held));
  count("shards_held", shards_.size());
  count("shard_questions_total", static_cast<double>(c.shard_questions));
  count("shard_answers_total", static_cast<double>(c.shard_answers));
  count("shard_bytes_total", static_cast<double>(c.shard_bytes));
  count("shard_wait_seconds_total", c.shard_wait_seconds);
  count("store_entries_put_total", static_cast<double>(offers_.counters().stored));
  count("store_entries_dropped_total", static_cast<double>(offers_.counters().dropped));
  count("transport_corrupt_total", static_cast<double>(c.corrupt + c.ngram_corrupt));
  count("stale_dropped_total", static_cast<double>(c.stale));
  count("attempts_failed_total", static_cast<double>(c.attempts_failed));
  count("preemptions_total", static_cast<double>(c.preempted));
  count("numerical_faults_total", static_cast<double>(c.numerical_faults));
  if (engine_ && engine_->integrity() != nullptr) {
    const model::Integrity& integrity = *engine_->integrity();
    count("product_rows_checked_total", static_cast<double>(integrity.rows_checked()));
    count("product_faults_transient_total", static_cast<double>(integrity.transient_faults()));
  }
}

Ledger DecodeActor::ledger() const {
  Ledger ledger;
  ledger.reservations = table_.reservations();
  ledger.running = table_.running();
  ledger.ending = static_cast<uint32_t>(table_.size()) - ledger.reservations - ledger.running;
  ledger.blocks_used = table_.pool().used();
  ledger.outbox = outbox_.in_flight() + static_cast<uint32_t>(outbox_.waiting());
  ledger.reports = reports_;
  ledger.shares = shards_.size();
  ledger.expert_calls = exchange_ ? exchange_->in_flight() : 0;
  ledger.expert_jobs = service_.computing() + shards_.answering();
  ledger.ngram_reads = ngram_.reading();
  ledger.storing = static_cast<uint32_t>(offers_.pending());
  ledger.compiling = static_cast<uint32_t>(grammars_.compiling());
  ledger.experts_loading = plans_.loading();
  return ledger;
}

}  // namespace decode
