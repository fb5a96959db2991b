// NgramLookup: the n-gram rows of a pass, each from the rank whose share of the tables has it.
//
// A peer that left the view, did not answer in time or answered badly is avoided for a while and
// its rows are read here, from this node's own checkpoint. So a look-up cannot fail.
#pragma once
#include <map>
#include <string_view>
#include <vector>

#include "actor/context.h"
#include "lookup/ngram_plan.h"
#include "model/engine.h"
#include "model/ngram_tables.h"
#include "proto/lookup.h"
#include "proto/membership.h"

namespace lookup {

// For /metrics. Grows only. Rows are counted once for each (table, id) of a pass.
struct NgramCounters {
  uint64_t ngram_rows_here = 0, ngram_rows_away = 0;  // of this rank's share; from peers
  uint64_t ngram_rows_unanswered = 0;                 // read here in place of a peer
  uint64_t ngram_rows_answered = 0;                   // for peers
  uint64_t ngram_corrupt = 0;     // messages whose bytes did not match their digest or shape
  double ngram_wait_seconds = 0;  // from the start of look-ups until all rows were there
};

// Adds them to what a heartbeat tells; nothing where no rows were shared.
void report(const NgramCounters& counters, proto::Heartbeat& beat);

// What reading `rows` rows costs the simulated host.
inline actor::Cost cost_of_lookup(size_t rows) {
  return {std::chrono::microseconds(10) + std::chrono::nanoseconds(200 * rows)};
}

// [entries, dim] of the entries of a share or a question.  REQUIRES: ids and tables in range
std::vector<float> read_rows(const model::NgramTables& tables, std::span<const uint16_t> table_of,
                             std::span<const uint64_t> ids);

class NgramLookup {
 public:
  static constexpr size_t kAnswerMost = 16u << 20;  // bytes asked for in one call

  // All outlive the look-up. `actor`: who answers NgramRows at the ranks.
  NgramLookup(actor::Context& ctx, model::Engine& engine, uint16_t actor, NgramCounters& counters)
      : ctx_(ctx), engine_(engine), actor_(actor), counters_(counters) {}

  // Sets pass.ngram from pass.tokens and the segments' contexts. `ranks`: all who share the tables,
  // in order, this one among them. Leaves the pass as it is, to be embedded from this node's own
  // tables, when the model has no n-gram tables or there is nobody to share them with.
  base::Task<void> run(model::Pass& pass, std::vector<base::NodeId> ranks);

  uint32_t in_flight() const { return in_flight_; }  // calls to peers

 private:
  base::Task<bool> ask(base::NodeId peer, const NgramShare& share, std::span<float> ngram);
  base::Task<bool> read_here(const NgramShare& share, std::span<float> ngram);
  bool may_ask(base::NodeId peer, const NgramShare& share);
  void avoid(base::NodeId peer, std::string_view why);

  // Constant after construction.
  actor::Context& ctx_;
  model::Engine& engine_;
  const uint16_t actor_;
  NgramCounters& counters_;
  // Owned state.
  std::map<base::NodeId, base::Time> avoided_;  // until when
  uint32_t in_flight_ = 0;
};

}  // namespace lookup
