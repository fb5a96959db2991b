// TextStream: the tokens of one choice become text that may be shown. Held back: bytes of an
// unfinished code point, and text that may yet turn out to be the beginning of a stop string. What
// comes out, joined, does not depend on how the bytes were cut into tokens: the first stop string
// to be completed ends the text; of several completed at once the longest counts.
#pragma once
#include <string>
#include <string_view>
#include <vector>

#include "coordinator/api_types.h"
#include "model/tokenizer.h"

namespace coordinator {

class TextStream {
 public:
  TextStream(std::vector<std::string> stop, bool include_stop)
      : stop_(std::move(stop)), include_stop_(include_stop) {}

  // The text that can be shown now. `may_stop` is false while min_tokens is not reached: text of
  // such tokens takes no part in a stop string. Nothing comes after stopped().
  std::string push(std::string_view bytes, bool may_stop = true);
  // The end of the tokens: all that was held back.
  std::string flush();
  bool stopped() const { return stopped_; }

 private:
  std::string search(std::string fresh);

  // Constant after construction.
  const std::vector<std::string> stop_;
  const bool include_stop_;
  // Owned state.
  model::Utf8Stream utf8_;
  std::string held_;  // shorter than the longest stop string
  bool stopped_ = false;
};

}  // namespace coordinator
