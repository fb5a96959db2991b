#include "prefill_node/sequence_exchange.h"

#include <algorithm>
#include <cstring>

#include "prefill_node/zigzag.h"

namespace prefill {

// Attention 0 writes its latent and the index key, attention 1 its latent (kv_pool.h).
std::vector<SequenceExchange::Bytes> SequenceExchange::parts(uint32_t part) const {
  const uint32_t latent = facts_.latent_bytes, row = facts_.kv.pool->row_bytes();
  if (part == 1) return {{latent, latent}};
  if (row == 2 * latent) return {{0, latent}};
  return {{0, latent}, {2 * latent, row - 2 * latent}};
}

size_t SequenceExchange::row_bytes(uint32_t part) const {
  size_t bytes = 0;
  for (const Bytes& it : parts(part)) bytes += it.count;
  return bytes;
}

uint32_t SequenceExchange::rank_of(base::NodeId node) const {
  const auto found = std::ranges::find(facts_.ranks, node, &Address::node);
  return static_cast<uint32_t>(found - facts_.ranks.begin());
}

base::Bytes SequenceExchange::pack(const Step& step, uint32_t count) const {
  const auto ranks = static_cast<uint32_t>(facts_.ranks.size());
  const std::vector<Bytes> from = parts(step.part);
  base::Bytes out(zigzag_rows(count, ranks, facts_.rank) * row_bytes(step.part));
  std::byte* to = out.data();
  for (const Piece& piece : zigzag(step.begin, count, ranks, facts_.rank)) {
    for (uint32_t i = 0; i < piece.count; ++i) {
      const std::byte* row = facts_.kv.row(step.layer, piece.begin + i);
      for (const Bytes& it : from) to = std::copy_n(row + it.at, it.count, to);
    }
  }
  return out;
}

void SequenceExchange::unpack(const Step& step, uint32_t count, uint32_t rank,
                              base::ByteView rows) const {
  const std::vector<Bytes> into = parts(step.part);
  const std::byte* from = rows.data();
  for (const Piece& piece :
       zigzag(step.begin, count, static_cast<uint32_t>(facts_.ranks.size()), rank)) {
    for (uint32_t i = 0; i < piece.count; ++i) {
      std::byte* row = facts_.kv.write_row(step.layer, piece.begin + i);
      for (const Bytes& it : into) {
        std::copy_n(from, it.count, row + it.at);
        from += it.count;
      }
    }
  }
}

void SequenceExchange::offer(const Step& step, uint32_t count) {
  proto::SequenceKv message;
  message.request = facts_.key.request;
  message.attempt = facts_.key.attempt;
  message.token_begin = step.begin;
  message.token_count = count;
  message.layer = step.layer;
  message.part = step.part;
  const base::Blob rows(pack(step, count));
  message.digest = proto::sequence_digest(message, rows.view());
  for (uint32_t rank = 0; rank < facts_.ranks.size(); ++rank) {
    if (rank == facts_.rank) continue;
    counters_.bytes += rows.size();
    ++unacknowledged_;
    tasks_.start(send(facts_.ranks[rank], message, rows));
  }
}

Task<void> SequenceExchange::send(Address to, proto::SequenceKv message, base::Blob rows) {
  base::Blobs blobs(1, std::move(rows));
  DeliveryOptions options{"sequence.kv"};
  options.unknown_is_early = true;
  options.counters = &counters_;
  Task<bool> delivery =
      deliver<proto::Done>(ctx_, party_, to, std::move(message), std::move(blobs), options);
  const bool taken = co_await std::move(delivery);
  if (!taken) co_return;
  --unacknowledged_;
  party_.moved();
}

bool SequenceExchange::complete(const Step& step) const {
  const auto found = arrived_.find(step);
  return found != arrived_.end() && found->second.of.size() + 1 == facts_.ranks.size();
}

Task<bool> SequenceExchange::collect(Step step, uint32_t count) {
  const base::Time begun = ctx_.now();
  while (!party_.over() && !complete(step)) {
    base::Slot<bool> slot;
    waiting_ = &slot;
    co_await slot;
  }
  counters_.waited += ctx_.now() - begun;
  if (party_.over()) co_return false;
  auto rows = arrived_.extract(step);
  if (rows.mapped().count != count) {
    base::Error error{base::Code::kCorrupt, "the ranks of a stage have cut different chunks"};
    party_.failed(std::move(error), /*without_cache=*/false);
    co_return false;
  }
  for (const auto& [rank, blob] : rows.mapped().of) unpack(step, count, rank, blob.view());
  collected_ = step;
  co_return true;
}

proto::Outcome SequenceExchange::accept(const proto::SequenceKv& message, base::NodeId from,
                                        const base::Blob& rows) {
  const auto ranks = static_cast<uint32_t>(facts_.ranks.size());
  const uint32_t rank = rank_of(from);
  const Step step{message.token_begin, message.layer, message.part};
  const bool in_range = rank < ranks && rank != facts_.rank && step.part < 2 &&
                        step.layer >= facts_.layers.begin && step.layer < facts_.layers.end &&
                        message.token_count > 0 && step.begin < facts_.tokens &&
                        message.token_count <= facts_.tokens - step.begin;
  if (!in_range) return proto::Outcome::kCorrupt;
  if (collected_ && step <= *collected_) return proto::Outcome::kOk;
  if (rows.size() != zigzag_rows(message.token_count, ranks, rank) * row_bytes(step.part))
    return proto::Outcome::kCorrupt;
  const auto found = arrived_.find(step);
  if (found == arrived_.end() && arrived_.size() >= kSteps) return proto::Outcome::kNoRoom;
  if (found != arrived_.end() && found->second.count != message.token_count)
    return proto::Outcome::kCorrupt;
  Arrived& here = arrived_[step];
  here.count = message.token_count;
  here.of.emplace(rank, rows);
  if (here.of.size() + 1 == ranks) wake();
  return proto::Outcome::kOk;
}

Task<void> SequenceExchange::wake_later() {
  Task<void> turn = ctx_.sleep(base::Duration{0});
  co_await std::move(turn);
  wake();
}

void SequenceExchange::wake() {
  if (base::Slot<bool>* slot = std::exchange(waiting_, nullptr)) slot->set(true);
}

}  // namespace prefill
