#include "lookup/ngram_lookup.h"

#include <algorithm>

#include "base/check.h"

namespace lookup {

namespace {

constexpr base::Duration kRetry = std::chrono::milliseconds(100);
// Reading the rows here takes a few disk accesses: worth little waiting.
constexpr base::Duration kDeadline = std::chrono::milliseconds(500);
constexpr base::Duration kAvoidFor = std::chrono::seconds(5);

}  // namespace

void report(const NgramCounters& counters, proto::Heartbeat& beat) {
  if (counters.ngram_rows_here + counters.ngram_rows_unanswered + counters.ngram_rows_answered == 0)
    return;
  const auto count = [&beat](const char* name, uint64_t value) {
    beat.counters.emplace_back(name, static_cast<double>(value));
  };
  count("ngram_rows_here_total", counters.ngram_rows_here);
  count("ngram_rows_away_total", counters.ngram_rows_away);
  count("ngram_rows_unanswered_total", counters.ngram_rows_unanswered);
  count("ngram_rows_answered_total", counters.ngram_rows_answered);
  beat.counters.emplace_back("ngram_wait_seconds_total", counters.ngram_wait_seconds);
}

std::vector<float> read_rows(const model::NgramTables& tables, std::span<const uint16_t> table_of,
                             std::span<const uint64_t> ids) {
  const size_t dim = tables.dim();
  std::vector<float> values(ids.size() * dim);
  for (size_t first = 0, end; first < ids.size(); first = end) {
    end = first;
    while (end < ids.size() && table_of[end] == table_of[first]) ++end;
    const size_t found =
        tables.look_up(table_of[first], ids.subspan(first, end - first),
                       std::span(values).subspan(first * dim, (end - first) * dim));
    CHECK(found == end - first, "{} of {} n-gram rows are in this node's tables", found,
          end - first);
  }
  return values;
}

base::Task<void> NgramLookup::run(model::Pass& pass, std::vector<base::NodeId> ranks) {
  const model::NgramTables* tables = engine_.ngram_tables();
  if (tables == nullptr || ranks.size() < 2 || pass.rows() == 0) co_return;
  const base::Time begun = ctx_.now();
  const std::vector<uint64_t> ids = tables->ids_of(pass);
  const std::vector<NgramShare> shares =
      plan_lookup(ids, tables->tables(), static_cast<uint32_t>(ranks.size()));
  std::vector<float> ngram(ids.size() * tables->dim());
  std::vector<base::Future<bool>> fates;
  std::vector<const NgramShare*> away;
  fates.reserve(shares.size());
  for (const NgramShare& share : shares) {  // questions leave before our own rows are read
    if (!may_ask(ranks[share.owner], share)) continue;
    fates.push_back(base::start(ask(ranks[share.owner], share, ngram)));
    away.push_back(&share);
  }
  for (const NgramShare& share : shares) {
    if (std::ranges::find(away, &share) != away.end()) continue;
    if (ranks[share.owner] == ctx_.self().node)
      counters_.ngram_rows_here += share.entries();
    else
      counters_.ngram_rows_unanswered += share.entries();
    base::Task<bool> here = read_here(share, ngram);
    co_await std::move(here);
  }
  for (size_t i = 0; i < fates.size(); ++i) {  // all of them: they write into `ngram`
    const bool home = co_await fates[i];
    if (home) continue;
    counters_.ngram_rows_unanswered += away[i]->entries();
    base::Task<bool> here = read_here(*away[i], ngram);
    co_await std::move(here);
  }
  pass.ngram = std::move(ngram);
  counters_.ngram_wait_seconds += base::seconds(ctx_.now() - begun);
}

bool NgramLookup::may_ask(base::NodeId peer, const NgramShare& share) {
  const base::Time now = ctx_.now();
  std::erase_if(avoided_, [now](const auto& entry) { return entry.second <= now; });
  const size_t bytes = share.entries() * engine_.ngram_tables()->dim() * sizeof(float);
  return peer != ctx_.self().node && !avoided_.contains(peer) && bytes <= kAnswerMost;
}

void NgramLookup::avoid(base::NodeId peer, std::string_view why) {
  avoided_[peer] = ctx_.now() + kAvoidFor;
  ctx_.log(base::Level::kWarn, "ngram.peer_avoided", {{"peer", peer.value}, {"why", why}});
}

base::Task<bool> NgramLookup::ask(base::NodeId peer, const NgramShare& share,
                                  std::span<float> ngram) {
  const actor::Address to{peer, actor_};
  const actor::CallOptions options{"ngram.rows", kRetry, kDeadline};
  proto::NgramRows question;
  question.tables = share.tables;
  question.ids = share.ids;
  ++in_flight_;
  auto call = ctx_.call<proto::NgramValues>(to, std::move(question), options);
  const base::Result<actor::Incoming<proto::NgramValues>> answer = co_await std::move(call);
  --in_flight_;
  if (!answer) {
    if (answer.error().code != base::Code::kStale) avoid(peer, answer.error().what);
    co_return false;
  }
  const uint32_t dim = engine_.ngram_tables()->dim();
  if (answer->msg.outcome != proto::Outcome::kOk) {
    avoid(peer, "it has no rows to give");
    co_return false;
  }
  if (answer->blobs.size() != 1 ||
      answer->blobs[0].size() != share.entries() * dim * sizeof(float) ||
      base::hash128(answer->blobs[0].view()) != answer->msg.digest) {
    ++counters_.ngram_corrupt;
    co_return false;
  }
  counters_.ngram_rows_away += share.entries();
  place_rows(share, answer->blobs[0].to_vector<float>(), dim, ngram);
  co_return true;
}

base::Task<bool> NgramLookup::read_here(const NgramShare& share, std::span<float> ngram) {
  std::function<void()> job = [this, &share, ngram] {
    const model::NgramTables& tables = *engine_.ngram_tables();
    place_rows(share, read_rows(tables, share.tables, share.ids), tables.dim(), ngram);
  };
  base::Task<void> run = ctx_.offload(std::move(job), cost_of_lookup(share.entries()));
  co_await std::move(run);
  co_return true;
}

}  // namespace lookup
