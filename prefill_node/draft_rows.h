// DraftRows: what the last stage does for drafting. Of each chunk it computes the KV rows of the
// drafting block, which is the layer behind the model's last; it is rowwise, so that the ranks of a
// stage do it for their own tokens and exchange the rows. The row of the last token is left out: it
// is made with the first token that is sampled, by the decode rank, which gets the hidden row.
#pragma once
#include <functional>
#include <span>
#include <vector>

#include "model/engine.h"
#include "model/forward.h"

namespace prefill {

class DraftRows {
 public:
  // `tokens`: of the whole job. `chunk`: its pass, through all layers; a row that is not finite in
  // the block is noted in its `faulty`. Where computing happens.
  void compute(model::Engine& engine, model::Pass& chunk, std::span<const base::TokenId> tokens);

 private:
  model::Pass pass_;
  std::vector<uint32_t> rows_;  // of the chunk
};

// Runs it for a chunk and tells the site when the rows are final. False: the chunk is void.
base::Task<bool> run_draft_rows(model::Site& site, uint32_t layer, model::Pass& chunk,
                                std::function<void()> compute);

}  // namespace prefill
