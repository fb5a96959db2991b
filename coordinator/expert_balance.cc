#include "coordinator/expert_balance.h"

#include <fmt/core.h>

#include <algorithm>
#include <numeric>

#include "experts/eplb.h"

namespace coordinator {

using Phase = proto::ExpertPlan::Phase;

namespace {

// A rank that restarts is back within this; planning without it would move experts twice.
constexpr base::Duration kWaitForRanks = std::chrono::seconds(5);
constexpr base::Duration kRanksStable = std::chrono::milliseconds(300);
constexpr base::Duration kStalled = std::chrono::seconds(60);
constexpr base::Duration kTryAgain = std::chrono::seconds(1);  // after an abort
// Fewer pairs an expert and layer in the window than this say nothing about the load.
constexpr double kPairsAnExpert = 8;

bool is_active(const auto& rank, uint64_t epoch) { return rank.word.active == epoch; }
bool is_ready(const auto& rank, uint64_t epoch) { return rank.word.ready == epoch; }
bool is_settled(const auto& rank, uint64_t epoch) {
  return rank.word.active == epoch && rank.word.settled == epoch;
}

}  // namespace

ExpertBalance::ExpertBalance(BalanceOptions options) : options_(options) {}

void ExpertBalance::set_ranks(std::vector<NodeId> ready, Time now) {
  if (!on()) return;
  if (ready == ready_) return advance(now);
  ready_ = std::move(ready);
  changed_at_ = now;
  std::erase_if(heard_, [this](const auto& entry) {
    return std::ranges::find(ready_, entry.first) == ready_.end();
  });
  if (next_) {
    const auto here = [this](NodeId node) {
      return std::ranges::find(ready_, node) != ready_.end();
    };
    if (!std::ranges::all_of(next_->placement.ranks, here)) abort("one of its ranks left", now);
  }
  advance(now);
}

bool ExpertBalance::report(const actor::Incoming<proto::ExpertReport>& in, Time now) {
  if (!on()) return true;
  const size_t entries = size_t{options_.layers} * (options_.experts + 1);
  if (!in.blobs.empty() &&
      (in.blobs.size() != 1 || in.blobs[0].size() != entries * sizeof(uint32_t) ||
       base::hash128(in.blobs[0].view()) != in->digest)) {
    ++counters_.corrupt;
    return false;
  }
  if (in->active > epoch() || in->held > last_epoch_) {  // of another coordinator's time
    ++counters_.corrupt;
    return false;
  }
  Rank& rank = heard_[in.from.node];
  rank.word = in.msg;
  if (!in.blobs.empty()) rank.window = in.blobs[0].to_vector<uint32_t>();
  advance(now);
  return true;
}

bool ExpertBalance::all_ready(bool (*holds)(const Rank&, uint64_t), uint64_t epoch,
                              const std::vector<NodeId>& ranks) const {
  return std::ranges::all_of(ranks, [&](NodeId node) {
    const auto found = heard_.find(node);
    return found != heard_.end() && holds(found->second, epoch);
  });
}

bool ExpertBalance::everybody_settled() const {
  return all_ready(is_settled<Rank>, epoch(), ready_);
}

bool ExpertBalance::settled() const {
  return !on() || (!next_ && !computing_ && everybody_settled());
}

// What reports and deaths lead to.
void ExpertBalance::advance(Time now) {
  if (!next_) return;
  uint64_t loaded = 0;
  for (const auto& [node, rank] : heard_) loaded += rank.word.loaded + rank.word.held;
  if (loaded != next_loaded_) next_loaded_ = loaded, moved_at_ = now;
  if (now - moved_at_ > kStalled) return abort("nothing was loaded for a minute", now);
  const uint64_t epoch = next_->placement.epoch;
  if (!all_ready(is_ready<Rank>, epoch, next_->placement.ranks)) return;
  active_ = std::move(*next_);
  next_.reset();
  ++counters_.plans;
  news_ = true;
  prepare_seconds_ = base::seconds(now - next_since_);
  events_.push_back(fmt::format("plan {} is active after {:.1f} s", epoch, prepare_seconds_));
}

void ExpertBalance::abort(const std::string& why, Time now) {
  events_.push_back(fmt::format("plan {} is aborted: {}", next_->placement.epoch, why));
  next_.reset();
  ++counters_.aborted;
  news_ = true;
  planned_at_ = now;
}

// --- planning

experts::Placement ExpertBalance::current() const {
  if (epoch() != 0) return active_.placement;
  return experts::even_placement(ready_, options_.layers, options_.experts);
}

std::vector<float> ExpertBalance::loads() const {
  std::vector<float> sum(size_t{options_.layers} * options_.experts, 0.0f);
  for (const auto& [node, rank] : heard_) {
    if (rank.window.empty()) continue;
    for (size_t i = 0; i < sum.size(); ++i) {
      const size_t layer = i / options_.experts;
      sum[i] += static_cast<float>(rank.window[i + layer]);  // one more column there
    }
  }
  return sum;
}

std::optional<ExpertBalance::Question> ExpertBalance::due(Time now) {
  if (!on() || computing_ || next_ || ready_.empty() || !everybody_settled()) return std::nullopt;
  const bool whole = ready_.size() >= options_.positions;
  if (now - changed_at_ < (whole ? kRanksStable : kWaitForRanks)) return std::nullopt;
  Question question;
  const bool others = epoch() != 0 && active_.placement.ranks != ready_;
  question.needed = others || (epoch() == 0 && options_.redundant > 0);
  const base::Duration pause = question.needed ? kTryAgain : options_.interval;
  if (!question.needed && !options_.live) return std::nullopt;
  if (last_epoch_ > 0 && now - planned_at_ < pause) return std::nullopt;
  question.loads = loads();
  const double pairs = std::accumulate(question.loads.begin(), question.loads.end(), 0.0);
  const bool enough = pairs >= kPairsAnExpert * options_.layers * options_.experts;
  if (!enough && !question.needed) return std::nullopt;
  if (!enough) std::ranges::fill(question.loads, 1.0f);
  question.epoch = ++last_epoch_;
  question.ranks = ready_;
  question.former = current();
  question.redundant = options_.redundant;
  computing_ = true;
  return question;
}

ExpertBalance::Answer ExpertBalance::compute(const Question& question) {
  Answer answer;
  answer.plan =
      experts::plan_placement(question.loads, question.ranks, question.redundant, question.former);
  answer.plan.epoch = question.epoch;
  answer.before = experts::balancedness(question.former, question.loads);
  answer.after = experts::balancedness(answer.plan, question.loads);
  return answer;
}

bool ExpertBalance::planned(const Question& question, Answer answer, Time now) {
  computing_ = false;
  planned_at_ = now;
  if (question.ranks != ready_) return false;
  if (!question.needed && answer.after - answer.before < options_.min_gain) {
    ++counters_.skipped;
    return false;
  }
  events_.push_back(fmt::format("plan {} for {} ranks: balancedness {:.3f}, was {:.3f}",
                                question.epoch, question.ranks.size(), answer.after,
                                answer.before));
  next_ = table_of(std::move(answer.plan));
  next_since_ = moved_at_ = now;
  next_loaded_ = 0;
  news_ = true;
  return true;
}

// --- telling

ExpertBalance::Table ExpertBalance::table_of(experts::Placement placement) const {
  Table table;
  table.blob = experts::to_blob(placement);
  table.digest = base::hash128(table.blob.view());
  table.placement = std::move(placement);
  return table;
}

ExpertBalance::Owed ExpertBalance::message(Phase phase, const Table& table) const {
  Owed owed;
  owed.message.phase = phase;
  owed.message.epoch = table.placement.epoch;
  if (phase != Phase::kPrepare && phase != Phase::kActive) return owed;
  owed.message.slots = table.placement.slots;
  owed.message.ranks = table.placement.ranks;
  owed.message.digest = table.digest;
  owed.blobs.push_back(table.blob);
  return owed;
}

std::vector<ExpertBalance::Owed> ExpertBalance::owed(NodeId node) const {
  std::vector<Owed> all;
  const auto found = heard_.find(node);
  if (found == heard_.end()) return all;
  const proto::ExpertReport& word = found->second.word;
  if (word.active < epoch()) {
    all.push_back(message(Phase::kActive, active_));
  } else if (word.settled != epoch() && epoch() != 0 &&
             all_ready(is_active<Rank>, epoch(), ready_)) {
    all.push_back(message(Phase::kSettled, active_));
  }
  if (next_ && word.held < next_->placement.epoch) {
    all.push_back(message(Phase::kPrepare, *next_));
  } else if (!next_ && word.held > epoch()) {
    Owed aborted;
    aborted.message.phase = Phase::kAborted;
    aborted.message.epoch = word.held;
    all.push_back(std::move(aborted));
  }
  return all;
}

// --- for /metrics

double ExpertBalance::progress() const {
  if (!next_) return 1;
  double loaded = 0, wanted = 0;
  for (const NodeId node : next_->placement.ranks) {
    const auto found = heard_.find(node);
    if (found == heard_.end() || found->second.word.held != next_->placement.epoch) {
      ++wanted;  // it has not begun
      continue;
    }
    loaded += found->second.word.loaded;
    wanted += found->second.word.wanted;
  }
  return wanted == 0 ? 1 : loaded / wanted;
}

double ExpertBalance::predicted() const {
  return ready_.empty() ? 1 : experts::balancedness(current(), loads());
}

std::vector<double> ExpertBalance::computed(uint32_t layer) const {
  std::vector<double> pairs;
  for (const NodeId node : ready_) {
    const auto found = heard_.find(node);
    const bool told = found != heard_.end() && !found->second.window.empty();
    const size_t at = size_t{layer} * (options_.experts + 1) + options_.experts;
    pairs.push_back(told ? static_cast<double>(found->second.window[at]) : 0.0);
  }
  return pairs;
}

double ExpertBalance::measured() const {
  double mean = 0, most = 0;
  for (uint32_t layer = 0; layer < options_.layers && !ready_.empty(); ++layer) {
    const std::vector<double> pairs = computed(layer);
    mean += std::accumulate(pairs.begin(), pairs.end(), 0.0) / static_cast<double>(pairs.size());
    most += *std::ranges::max_element(pairs);
  }
  return most == 0 ? 1 : mean / most;
}

std::vector<double> ExpertBalance::imbalance() const {
  std::vector<double> layers;
  for (uint32_t layer = 0; on() && layer < options_.layers; ++layer) {
    const std::vector<double> pairs = computed(layer);
    layers.push_back(pairs.empty() ? 0 : 1 / experts::balancedness(pairs) - 1);
  }
  return layers;
}

}  // namespace coordinator
