#include "decode_node/shard_exchange.h"

#include <algorithm>

namespace decode {

namespace {

constexpr base::Duration kRetry = std::chrono::milliseconds(250);
// A dead peer is unlinked before this; it bounds the wait for one that only we cannot reach.
constexpr base::Duration kDeadline = std::chrono::seconds(2);
constexpr int kTriesMost = 3;

}  // namespace

void ShardExchange::begin() {
  members_.clear();
  lost_.clear();
  void_ = false;
}

void ShardExchange::add(const model::Pass& pass, std::span<Sequence* const> members) {
  members_.emplace(&pass, members);
}

const ShardExchange::Lost* ShardExchange::lost(const Sequence& member) const {
  const auto found = lost_.find(&member);
  return found == lost_.end() ? nullptr : &found->second;
}

void ShardExchange::lose(const Question& question, std::string why) {
  ctx_.log(base::Level::kInfo, "kv.share_lost",
           {{"request", question.message.request.value},
            {"holder", question.holder.value},
            {"why", why}});
  lost_.try_emplace(question.member, Lost{question.holder, std::move(why)});
}

base::Task<bool> ShardExchange::attend(model::Site& site, uint32_t layer, uint32_t j,
                                       model::Pass& pass) {
  if (engine_.sharded()->chooses(layer, j, pass)) {
    const model::ShardPoint index{layer, j, model::ShardStep::kIndex};
    base::Task<bool> chosen = step(site, index, pass);
    if (!co_await std::move(chosen)) co_return false;
  }
  const model::ShardPoint rest{layer, j, model::ShardStep::kAttend};
  base::Task<bool> attended = step(site, rest, pass);
  const bool whole = co_await std::move(attended);
  co_return whole;
}

std::vector<ShardExchange::Question> ShardExchange::questions(const model::ShardPoint& point,
                                                              const model::Pass& pass) const {
  std::vector<Question> out;
  const std::span<Sequence* const> members = members_.at(&pass);
  for (size_t member = 0; member < members.size(); ++member) {
    const Sequence& sequence = *members[member];
    if (lost_.contains(&sequence)) continue;
    for (size_t share = 0; share < sequence.away.size(); ++share) {
      base::Bytes bytes = engine_.sharded()->question(point, pass, {member, share});
      if (bytes.empty()) continue;
      Question question;
      question.ref = {member, share};
      question.member = &sequence;
      question.holder = sequence.holders[share];
      question.blob = base::Blob(std::move(bytes));
      question.message.request = sequence.key.request;
      question.message.attempt = sequence.key.attempt;
      question.message.layer = point.layer;
      question.message.part = point.j;
      question.message.step = static_cast<uint8_t>(point.step);
      question.message.digest = base::hash128(question.blob.view());
      out.push_back(std::move(question));
    }
  }
  return out;
}

base::Task<bool> ShardExchange::step(model::Site& site, model::ShardPoint point,
                                     model::Pass& pass) {
  std::vector<Question> asked;
  std::function<void()> prepare = [&] { asked = questions(point, pass); };
  base::Task<void> prepared = site.compute(std::move(prepare), pass.rows());
  co_await std::move(prepared);
  std::vector<base::Future<void>> calls;
  calls.reserve(asked.size());
  for (Question& question : asked) calls.push_back(base::start(ask(question)));

  std::function<void()> own = [&] { engine_.sharded()->own(point, pass); };
  base::Task<void> here = site.compute(std::move(own), pass.rows());
  co_await std::move(here);
  const base::Time begin = ctx_.now();
  for (base::Future<void>& call : calls) co_await call;  // all of them: they use what was asked
  counters_.shard_wait_seconds += base::seconds(ctx_.now() - begin);
  if (void_) co_return false;

  std::vector<const Question*> malformed;
  std::function<void()> finish = [&] {
    for (const Question& question : asked) {
      const bool answered = !question.answer.empty();
      if (answered && !engine_.sharded()->take(point, pass, question.ref, question.answer.view()))
        malformed.push_back(&question);
    }
    engine_.sharded()->finish(point, pass);
  };
  base::Task<void> finished = site.compute(std::move(finish), pass.rows());
  co_await std::move(finished);
  for (const Question* question : malformed) lose(*question, "its answer makes no sense");
  co_return true;
}

base::Task<void> ShardExchange::ask(Question& question) {
  const actor::Address to{question.holder, proto::kDecode};
  const actor::CallOptions options{"kv.question", kRetry, kDeadline};
  for (int tries = 0; tries < kTriesMost; ++tries) {
    base::Blobs blobs(1, question.blob);
    ++counters_.shard_questions;
    counters_.shard_bytes += question.blob.size();
    ++in_flight_;
    auto call = ctx_.call<proto::KvAnswer>(to, question.message, options, std::move(blobs));
    base::Result<actor::Incoming<proto::KvAnswer>> answer = co_await std::move(call);
    --in_flight_;
    if (!answer) {
      void_ = void_ || answer.error().code == base::Code::kStale;
      if (!void_) lose(question, answer.error().what);
      co_return;
    }
    const proto::Outcome outcome = answer->msg.outcome;
    if (outcome == proto::Outcome::kOk && answer->blobs.size() == 1 && !answer->blobs[0].empty() &&
        base::hash128(answer->blobs[0].view()) == answer->msg.digest) {
      question.answer = answer->blobs[0];
      counters_.shard_bytes += question.answer.size();
      co_return;
    }
    if (outcome != proto::Outcome::kOk && outcome != proto::Outcome::kCorrupt) break;
    ++counters_.corrupt;
  }
  lose(question, "it gave no good answer");
}

}  // namespace decode
