#include "coordinator/text_stream.h"

#include <algorithm>

namespace coordinator {

namespace {

struct Match {
  size_t begin = std::string::npos, end = std::string::npos;
};

// The stop string that is complete first; of those that end together the longest.
Match first_completed(const std::string& text, const std::vector<std::string>& stop) {
  Match best;
  for (const std::string& s : stop) {
    const size_t at = text.find(s);
    if (at == std::string::npos) continue;
    const size_t end = at + s.size();
    if (end < best.end || (end == best.end && at < best.begin)) best = {at, end};
  }
  return best;
}

// Length of the longest end of `text` that begins some stop string.
size_t possible_beginning(const std::string& text, const std::vector<std::string>& stop) {
  size_t most = 0;
  for (const std::string& s : stop) {
    for (size_t n = std::min(s.size() - 1, text.size()); n > most; --n) {
      if (text.compare(text.size() - n, n, s, 0, n) == 0) most = n;
    }
  }
  return most;
}

}  // namespace

std::string TextStream::search(std::string fresh) {
  held_ += fresh;
  const Match match = first_completed(held_, stop_);
  if (match.end != std::string::npos) {
    stopped_ = true;
    held_.resize(include_stop_ ? match.end : match.begin);
    return std::exchange(held_, {});
  }
  const size_t keep = possible_beginning(held_, stop_);
  std::string shown = held_.substr(0, held_.size() - keep);
  held_.erase(0, held_.size() - keep);
  return shown;
}

std::string TextStream::push(std::string_view bytes, bool may_stop) {
  if (stopped_) return {};
  std::string fresh = utf8_.push(bytes);
  if (!may_stop || stop_.empty()) return fresh;
  return search(std::move(fresh));
}

std::string TextStream::flush() {
  if (stopped_) return {};
  std::string fresh = utf8_.flush();
  if (stop_.empty()) return fresh;
  std::string shown = search(std::move(fresh));
  shown += std::exchange(held_, {});
  return shown;
}

}  // namespace coordinator
