// Embedding of the local engine: word rows and n-gram rows, table by table.
#include "base/check.h"
#include "model/local_engine.h"
#include "model/tensor_list.h"

namespace model {

void LocalEngine::read_words(const std::string& table, const Pass& pass, float* out) const {
  const size_t hidden = config_.hidden;
  for (size_t row = 0; row < pass.tokens.size(); ++row) {
    const TokenId token = pass.tokens[row];
    CHECK(token < config_.vocab, "token {} of a vocabulary of {}", token, config_.vocab);
    CHECK(read_rows(checkpoint_, table, token, 1, out + row * hidden).has_value(), "{} row {}",
          table, token);
  }
}

// All ids first, so that the disk works on every table while the first is read; then one product a
// table: e = E[t];  e += P_i T_i[id_i] for i ascending;  e / (1 + tables).
void LocalEngine::embed(Pass& pass) {
  const size_t rows = pass.rows(), hidden = config_.hidden;
  pass.h.resize(rows * hidden);
  std::vector<uint64_t> ids;
  if (ngram_) {
    const bool given = !pass.ngram.empty();
    if (!given || probe_ != nullptr) ids = ngram_->ids_of(pass);
    if (!given) ngram_->prefetch(ids);
    if (probe_ != nullptr) probe_->ngram_ids(ids);
  }
  read_words(kWordTable, pass, pass.h.data());
  if (!ngram_) return spoil_next(pass);

  const uint32_t tables = ngram_->tables(), dim = ngram_->dim();
  CHECK(pass.ngram.empty() || pass.ngram.size() == rows * tables * dim,
        "{} n-gram values for {} rows", pass.ngram.size(), rows);
  Scratch& s = scratch(pass);
  std::vector<float> entries(pass.ngram.empty() ? rows * dim : 0);
  s.y.resize(rows * hidden);
  for (uint32_t t = 0; t < tables; ++t) {
    const float* x = entries.data();
    if (pass.ngram.empty()) {
      const size_t found = ngram_->look_up(t, std::span(ids).subspan(t * rows, rows), entries);
      CHECK(found == rows, "{} of {} n-gram rows are in this share", found, rows);
    } else {
      x = pass.ngram.data() + t * rows * dim;
    }
    multiply(compute_, {&ngram_projections_[t], x, dim, pass.rows(), s.y.data(), hidden});
    for (size_t i = 0; i < rows * hidden; ++i) pass.h[i] = pass.h[i] + s.y[i];
  }
  const auto divisor = static_cast<float>(1 + tables);
  for (float& value : pass.h) value = value / divisor;
  pass.ngram.clear();
  spoil_next(pass);
}

void LocalEngine::prefetch(const Pass& pass) {
  if (ngram_ && pass.ngram.empty()) ngram_->prefetch(ngram_->ids_of(pass));
}

}  // namespace model
