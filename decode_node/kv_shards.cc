#include "decode_node/kv_shards.h"

#include <algorithm>

#include "experts/expert_service.h"
#include "model/kv_split.h"
#include "model/sharded_attention.h"

namespace decode {

using proto::Outcome;

Outcome KvShards::hold(const proto::HoldKv& m, Time now) {
  const SequenceKey key{m.request, m.attempt};
  if (find(key) != nullptr) return Outcome::kOk;
  const model::KvRange range{m.begin, m.end};
  if (!m.request || !m.owner || m.end > shape_.max_context || shape_.span == 0 ||
      !model::is_share(range, shape_.span))
    return Outcome::kCorrupt;
  if (m.attempt > 0) cancel(m.request, m.attempt - 1);
  auto blocks = pool_.allocate(range.count() / model::kBlockTokens);
  if (!blocks) return Outcome::kNoRoom;

  constexpr uint64_t kDeadlineMostMs = 7ull * 24 * 3600 * 1000;
  auto share = std::make_unique<Share>();
  share->key = key;
  share->owner = m.owner;
  share->range = range;
  share->blocks = std::move(*blocks);
  share->intake =
      KvIntake(shape_.kv_layers(), range.end, [range](uint32_t) { return range.begin; });
  share->deadline = now + std::chrono::milliseconds(std::min(m.deadline_ms, kDeadlineMostMs));
  share->heard = now;
  shares_.emplace(key, std::move(share));
  return Outcome::kOk;
}

KvShards::Share* KvShards::find(const SequenceKey& key) {
  const auto it = shares_.find(key);
  return it == shares_.end() ? nullptr : it->second.get();
}

void KvShards::release(Share& share) { pool_.release(share.blocks); }

void KvShards::end(Share& share) {
  auto entry = shares_.extract(share.key);
  if (share.users == 0) return release(*entry.mapped());
  share.doomed = true;
  doomed_.push_back(std::move(entry.mapped()));
}

void KvShards::cancel(RequestId request, uint32_t attempt) {
  auto it = shares_.lower_bound({request, 0});
  while (it != shares_.end() && it->first.request == request && it->first.attempt <= attempt) {
    Share& share = *it->second;
    ++it;
    end(share);
  }
}

void KvShards::clear() {
  while (!shares_.empty()) end(*shares_.begin()->second);
}

void KvShards::answer(actor::Context& ctx, model::Engine* engine,
                      const actor::Incoming<proto::KvQuestion>& in, Outcome absent) {
  if (in.call == 0 || jobs_.contains({in.from, in.call})) return;
  const proto::KvQuestion& m = in.msg;
  proto::KvAnswer refusal;
  Share* const share = find({m.request, m.attempt});
  const bool complete = share != nullptr && share->intake.all_committed();
  if (!complete || engine == nullptr || engine->sharded() == nullptr) {
    refusal.outcome = share == nullptr ? absent : Outcome::kUnknown;
  } else if (jobs_.size() >= kJobsMost) {
    refusal.outcome = Outcome::kNoRoom;
  } else if (m.layer >= shape_.layers || m.part > 1 || m.step > 1 || in.blobs.size() != 1 ||
             base::hash128(in.blobs[0].view()) != m.digest) {
    refusal.outcome = Outcome::kCorrupt;
    ++counters_.corrupt;
  } else {
    share->heard = ctx.now();
    ++counters_.shard_answers;
    jobs_.emplace(in.from, in.call);
    ctx.spawn(run(ctx, *engine, *share, in));
    return;
  }
  ctx.reply(in, refusal);
}

base::Task<void> KvShards::run(actor::Context& ctx, model::Engine& engine, Share& share,
                               actor::Incoming<proto::KvQuestion> in) {
  ++share.users;
  bool good = false;
  base::Bytes out;
  std::function<void()> job = [&] {
    const model::ShardPoint point{in.msg.layer, in.msg.part,
                                  static_cast<model::ShardStep>(in.msg.step)};
    good = engine.sharded()->answer(point, share.kv(pool_), share.range, in.blobs[0].view(), out);
  };
  base::Task<void> run = ctx.offload(std::move(job), experts::cost_of_rows(1));
  co_await std::move(run);
  jobs_.erase({in.from, in.call});
  if (--share.users == 0 && share.doomed) {
    release(share);
    std::erase_if(doomed_, [&share](const auto& other) { return other.get() == &share; });
  }
  if (!experts::can_be_trusted(ctx, engine)) co_return;
  proto::KvAnswer reply;
  base::Blobs blobs;
  if (good) {
    blobs.push_back(base::Blob(std::move(out)));
    reply.digest = base::hash128(blobs[0].view());
  } else {
    reply.outcome = Outcome::kCorrupt;
    ++counters_.corrupt;
  }
  ctx.reply(in, reply, std::move(blobs));
}

KvShards::Expired KvShards::expired(Time now, const node::View& view) {
  Expired out;
  for (const auto& [key, share] : shares_) {
    const base::Duration silence = now - share->heard;
    share->owner_seen = share->owner_seen || view.has(share->owner);
    if (now >= share->deadline) {
      out.overdue.push_back(share.get());
    } else if (share->owner_seen && !view.has(share->owner)) {
      out.orphaned.push_back(share.get());
    } else if (!share->intake.all_committed()) {
      if (silence >= kSilenceMost) out.silent.push_back(share.get());
    } else if (silence >= kLease && !share->asking) {
      out.in_doubt.push_back(share.get());
    }
  }
  return out;
}

uint32_t KvShards::blocks() const {
  size_t sum = 0;
  for (const auto& [key, share] : shares_) sum += share->blocks.size();
  for (const std::unique_ptr<Share>& share : doomed_) sum += share->blocks.size();
  return static_cast<uint32_t>(sum);
}

}  // namespace decode
