#include "coordinator/token_log.h"

#include <utility>

namespace coordinator {

using base::FinishReason;

bool TokenLog::accept(uint32_t index, std::span<const TokenId> tokens,
                      std::vector<base::TokenLogprobs> logprobs, FinishReason finish) {
  if (index > limit_ || tokens.size() > limit_ - index) return false;
  if (!logprobs.empty() && logprobs.size() != tokens.size()) return false;
  if (tokens.empty()) {
    // A bare end, once the tokens before it are here.
    if (index == emitted_.size() && finish_ == FinishReason::kNone) finish_ = finish;
    return true;
  }
  for (size_t i = 0; i < tokens.size() && finish_ == FinishReason::kNone; ++i) {
    const uint32_t at = index + static_cast<uint32_t>(i);
    if (at < emitted_.size()) continue;
    Entry entry;
    entry.token = tokens[i];
    entry.has_logprobs = !logprobs.empty();
    if (entry.has_logprobs) entry.logprobs = std::move(logprobs[i]);
    if (i + 1 == tokens.size()) entry.finish = finish;
    if (at == emitted_.size()) {
      take(std::move(entry));
    } else {
      waiting_.try_emplace(at, std::move(entry));
    }
  }
  while (finish_ == FinishReason::kNone && !waiting_.empty() &&
         waiting_.begin()->first <= emitted_.size()) {
    auto node = waiting_.extract(waiting_.begin());
    if (node.key() == emitted_.size()) take(std::move(node.mapped()));
  }
  if (finish_ != FinishReason::kNone) waiting_.clear();
  return true;
}

void TokenLog::take(Entry entry) {
  if (entry.has_logprobs && logprobs_.size() == emitted_.size()) {
    logprobs_.push_back(std::move(entry.logprobs));
  }
  emitted_.push_back(entry.token);
  finish_ = entry.finish;
}

std::span<const base::TokenLogprobs> TokenLog::logprobs_from(size_t begin) const {
  if (logprobs_.size() != emitted_.size() || begin > logprobs_.size()) return {};
  return std::span(logprobs_).subspan(begin);
}

}  // namespace coordinator
