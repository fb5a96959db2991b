// Shares of other ranks' sequences, as the actor sees them.
#include "decode_node/decode_actor.h"
#include "decode_node/kv_rows.h"

namespace decode {

using proto::Outcome;

void DecodeActor::on(Context& ctx, const Incoming<proto::HoldKv>& in) {
  proto::KvReserved reply;
  reply.outcome = Outcome::kNoRoom;
  const SequenceKey key{in->request, in->attempt};
  const bool again = shards_.find(key) != nullptr;  // answered as before, a leaving rank's too
  if (again || membership_.state() == proto::NodeState::kReady) {
    const bool stale = !again && table_.absent(key) == Outcome::kStale;
    if (!stale && in->attempt > 0) table_.cancel(in->request, in->attempt - 1);
    reply.outcome = stale ? Outcome::kStale : shards_.hold(in.msg, ctx.now());
  }
  if (reply.outcome == Outcome::kOk) reply.credits = kCredits;
  ctx.reply(in, reply);
}

void DecodeActor::on(Context& ctx, const Incoming<proto::KvQuestion>& in) {
  shards_.answer(ctx, engine_.get(), in, table_.absent({in->request, in->attempt}));
}

void DecodeActor::on(Context& ctx, const Incoming<proto::KvInUse>& in) {
  proto::Done reply;
  const SequenceKey key{in->request, in->attempt};
  if (table_.find(key) == nullptr) reply.outcome = table_.absent(key);
  ctx.reply(in, reply);
}

Outcome DecodeActor::take_share_rows(Context& ctx, const Incoming<proto::KvLayer>& in) {
  const SequenceKey key{in->request, in->attempt};
  KvShards::Share* share = shards_.find(key);
  if (share == nullptr) return absent(key);
  share->heard = ctx.now();
  return take_kv_rows(ctx, in, share->kv(table_.pool()), config_.shape, share->intake, counters_);
}

Outcome DecodeActor::take_share_commit(Context& ctx, const Incoming<proto::KvCommit>& in) {
  const SequenceKey key{in->request, in->attempt};
  KvShards::Share* share = shards_.find(key);
  if (share == nullptr) return absent(key);
  const bool plain = in.blobs.empty() && !in->has_token;
  const auto verdict = plain ? share->intake.commit(in.msg) : KvIntake::Commit::kMalformed;
  if (verdict == KvIntake::Commit::kMalformed) {
    ++counters_.corrupt;
    return Outcome::kCorrupt;
  }
  share->heard = ctx.now();
  if (verdict == KvIntake::Commit::kAccepted) return Outcome::kOk;
  fail_share(ctx, *share, base::Code::kCorrupt, "the KV that arrived is not the KV that was sent",
             /*without_cache=*/true);
  return Outcome::kStale;
}

void DecodeActor::end_share(KvShards::Share& share) {
  const SequenceKey key = share.key;
  shards_.end(share);
  table_.cancel(key.request, key.attempt);  // remembers that it has ended
}

void DecodeActor::fail_share(Context& ctx, KvShards::Share& share, base::Code code,
                             std::string what, bool without_cache) {
  const SequenceKey key = share.key;
  end_share(share);
  tell_failure(ctx, key, code, std::move(what), without_cache, {});
}

void DecodeActor::watch_shares(Context& ctx) {
  const KvShards::Expired expired = shards_.expired(ctx.now(), membership_.view());
  for (KvShards::Share* share : expired.overdue) end_share(*share);
  // The coordinator, whose view it is, has ended the attempt.
  for (KvShards::Share* share : expired.orphaned) end_share(*share);
  for (KvShards::Share* share : expired.silent)
    fail_share(ctx, *share, base::Code::kDeadline, "no KV has arrived for a minute",
               /*without_cache=*/false);
  for (KvShards::Share* share : expired.in_doubt) {
    share->asking = true;
    ctx.spawn(ask_owner(ctx, share->key, share->owner));
  }
}

Task<void> DecodeActor::ask_owner(Context& ctx, SequenceKey key, base::NodeId owner) {
  const actor::CallOptions options{"kv.in_use", std::chrono::milliseconds(250),
                                   std::chrono::seconds(5)};
  const actor::Address to{owner, proto::kDecode};
  proto::KvInUse message;
  message.request = key.request;
  message.attempt = key.attempt;
  ++reports_;
  auto call = ctx.call<proto::Done>(to, message, options);
  const auto answer = co_await std::move(call);
  --reports_;
  KvShards::Share* share = shards_.find(key);
  if (share == nullptr) co_return;
  share->asking = false;
  if (!answer) co_return;  // asked again, or the owner leaves the view
  share->heard = ctx.now();
  if (answer->msg.outcome != Outcome::kOk) end_share(*share);
}

}  // namespace decode
