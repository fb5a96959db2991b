// ExpertBalance: where the experts of the decode ranks are, and when that changes. Keeps each
// rank's newest word, decides when a plan is due, and leads it through its phases: prepared by all
// of its ranks, active, settled. Pure: the actor feeds it reports, the ready ranks and the time,
// computes plans where computing happens, and sends what is owed. docs/PROTOCOL.md "Expert plans".
//
// A plan is due at once when the ready ranks are not those of the active one (there is none yet,
// one died, one came back), and every `interval` where the load has moved so far that the balance
// would gain `min_gain`. The death of one of its ranks, or a minute without progress, aborts a plan
// that is not active yet.
#pragma once
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "actor/message.h"
#include "base/time.h"
#include "experts/expert_placement.h"
#include "proto/experts.h"

namespace coordinator {

using base::NodeId;
using base::Time;

struct BalanceOptions {
  uint32_t layers = 0, experts = 0;
  uint32_t redundant = 0;  // copies a layer
  bool live = false;       // plans follow the load; else only the ranks
  base::Duration interval = std::chrono::seconds(60);
  double min_gain = 0.05;
  uint32_t positions = 1;  // of decode ranks; with all of them ready nobody else is waited for
};

struct BalanceCounters {
  uint64_t plans = 0;  // that became active
  uint64_t skipped = 0, aborted = 0, corrupt = 0;
};

class ExpertBalance {
 public:
  explicit ExpertBalance(BalanceOptions options);

  bool on() const { return options_.live || options_.redundant > 0; }
  // The ready decode ranks in order of position; to be told on every change and now and then.
  void set_ranks(std::vector<NodeId> ready, Time now);
  // False when the report makes no sense.
  bool report(const actor::Incoming<proto::ExpertReport>& in, Time now);

  // What a plan is computed from.
  struct Question {
    uint64_t epoch = 0;
    std::vector<NodeId> ranks;
    std::vector<float> loads;  // [layers, experts]
    experts::Placement former;
    uint32_t redundant = 0;
    bool needed = false;  // whatever it gains
  };
  struct Answer {
    experts::Placement plan;
    double before = 0, after = 0;  // balancedness under the loads
  };
  // A plan that is due: compute it and call planned(). Nothing more is due until then.
  std::optional<Question> due(Time now);
  static Answer compute(const Question& question);
  // True when it is to be prepared, false when it gains too little or was overtaken.
  bool planned(const Question& question, Answer answer, Time now);

  // What a rank has yet to hear, by its newest report. Nothing for one that never reported.
  struct Owed {
    proto::ExpertPlan message;
    base::Blobs blobs;
  };
  std::vector<Owed> owed(NodeId rank) const;
  const std::vector<NodeId>& ranks() const { return ready_; }
  // True once after each change that makes something owed to ranks that did not just report.
  bool take_news() { return std::exchange(news_, false); }
  // The log's words for what happened since the last call.
  std::vector<std::string> take_events() { return std::exchange(events_, {}); }

  // All ranks dispatch by the active plan and hold nothing else; no plan is under way.
  bool settled() const;
  uint64_t epoch() const { return active_.placement.epoch; }
  const BalanceCounters& counters() const { return counters_; }
  double progress() const;                // of the plan under way, 0 … 1; 1 without one
  double predicted() const;               // balancedness of what is active under the newest loads
  double measured() const;                // by what the ranks computed in the window
  std::vector<double> imbalance() const;  // of each layer: largest over mean of the same, minus 1
  double prepare_seconds() const { return prepare_seconds_; }  // of the last plan

 private:
  struct Rank {
    proto::ExpertReport word;
    std::vector<uint32_t> window;  // [layers, experts + 1]; empty until told
  };
  struct Table {
    experts::Placement placement;
    base::Blob blob;
    base::Hash128 digest;
  };
  Table table_of(experts::Placement placement) const;
  Owed message(proto::ExpertPlan::Phase phase, const Table& table) const;
  experts::Placement current() const;  // the active plan, or the even shares
  std::vector<float> loads() const;
  std::vector<double> computed(uint32_t layer) const;  // by each ready rank
  bool all_ready(bool (*holds)(const Rank&, uint64_t), uint64_t epoch,
                 const std::vector<NodeId>& ranks) const;
  bool everybody_settled() const;
  void advance(Time now);
  void abort(const std::string& why, Time now);

  // Constant after construction.
  const BalanceOptions options_;
  // Owned state.
  std::vector<NodeId> ready_;
  Time changed_at_{};  // when ready_ did
  std::map<NodeId, Rank> heard_;
  Table active_;  // epoch 0: none
  std::optional<Table> next_;
  uint64_t last_epoch_ = 0;  // given out, aborted ones too
  bool computing_ = false, news_ = false;
  Time planned_at_{};  // the last plan, skipped ones too
  Time next_since_{}, moved_at_{};
  uint64_t next_loaded_ = 0;  // by all of its ranks, at moved_at_
  double prepare_seconds_ = 0;
  BalanceCounters counters_;
  std::vector<std::string> events_;
};

}  // namespace coordinator
