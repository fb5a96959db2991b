#include "lookup/ngram_service.h"

namespace lookup {

bool is_sound(const proto::NgramRows& question, const model::NgramTables& tables) {
  const size_t n = question.ids.size();
  if (n == 0 || n != question.tables.size()) return false;
  if (n > NgramLookup::kAnswerMost / (tables.dim() * sizeof(float))) return false;
  for (size_t i = 0; i < n; ++i) {
    if (question.tables[i] >= tables.tables()) return false;
    if (question.ids[i] >= tables.rows(question.tables[i])) return false;
  }
  return true;
}

void NgramService::answer(actor::Context& ctx, const model::Engine* engine,
                          const actor::Incoming<proto::NgramRows>& in) {
  if (in.call == 0 || jobs_.contains({in.from, in.call})) return;
  const model::NgramTables* tables = engine == nullptr ? nullptr : engine->ngram_tables();
  proto::NgramValues refusal;
  if (tables == nullptr) {
    refusal.outcome = proto::Outcome::kUnknown;
  } else if (jobs_.size() >= kJobsMost) {
    refusal.outcome = proto::Outcome::kNoRoom;
  } else if (!is_sound(in.msg, *tables)) {
    refusal.outcome = proto::Outcome::kCorrupt;
    ++counters_.ngram_corrupt;
  } else {
    counters_.ngram_rows_answered += in->ids.size();
    jobs_.emplace(in.from, in.call);
    ctx.spawn(run(ctx, *tables, in));
    return;
  }
  ctx.reply(in, refusal);
}

base::Task<void> NgramService::run(actor::Context& ctx, const model::NgramTables& tables,
                                   actor::Incoming<proto::NgramRows> in) {
  proto::NgramValues reply;
  base::Blobs blobs(1);
  std::function<void()> job = [&tables, &in, &reply, &blobs] {
    const std::vector<float> values = read_rows(tables, in.msg.tables, in.msg.ids);
    blobs[0] = base::Blob::of(std::span<const float>(values));
    reply.digest = base::hash128(blobs[0].view());
  };
  base::Task<void> run =
      ctx.offload(std::move(job), cost_of_lookup(in.msg.ids.size()).at(actor::Turn::kAsked));
  co_await std::move(run);
  jobs_.erase({in.from, in.call});
  ctx.reply(in, reply, std::move(blobs));
}

}  // namespace lookup
