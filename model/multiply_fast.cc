#include "model/multiply_fast.h"

#ifdef SERVAL_OPENBLAS
#include <cblas.h>
#endif

#include <bit>
#include <cstring>
#include <vector>

#include "base/check.h"

namespace model {

#ifdef SERVAL_OPENBLAS

namespace {

// Panels to rows: out[k][j], `columns` floats a row.
void unpack(const Panels& w, size_t columns, float* out) {
  const size_t panels = columns / kPanel;
  for (size_t p = 0; p < panels; ++p) {
    float* to = out + p * kPanel;
    if (w.bf16) {
      const auto* words =
          static_cast<const uint32_t*>(w.data) + p * panel_elements(w.inputs, 2) / 2;
      for (size_t k = 0; k < w.inputs; ++k, to += columns) {
        const uint32_t* pair = words + k / 2 * kPanel;
        for (size_t j = 0; j < kPanel; ++j)
          to[j] = std::bit_cast<float>(k % 2 == 0 ? pair[j] << 16 : pair[j] & 0xFFFF0000u);
      }
    } else {
      const float* from = static_cast<const float*>(w.data) + p * panel_elements(w.inputs, 4);
      for (size_t k = 0; k < w.inputs; ++k, to += columns, from += kPanel)
        std::memcpy(to, from, kPanel * sizeof(float));
    }
  }
}

}  // namespace

bool fast_available() { return true; }

void multiply_fast(const Panels& w, const float* x, size_t x_stride, uint32_t rows, float* y,
                   size_t y_stride) {
  // Serval parallelises above; OpenBLAS's own threads would fight ours.
  [[maybe_unused]] static const bool single = [] {
    openblas_set_num_threads(1);
    return true;
  }();
  thread_local std::vector<float> scratch;
  const size_t columns = round_up_panel(w.outputs);
  if (scratch.size() < columns * w.inputs) scratch.resize(columns * w.inputs);
  unpack(w, columns, scratch.data());
  const auto blas = [](size_t n) { return static_cast<blasint>(n); };
  cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, blas(rows), blas(w.outputs),
              blas(w.inputs), 1.0f, x, blas(x_stride), scratch.data(), blas(columns), 0.0f, y,
              blas(y_stride));
}

#else

bool fast_available() { return false; }

void multiply_fast(const Panels&, const float*, size_t, uint32_t, float*, size_t) {
  CHECK(false, "this build has no OpenBLAS");
}

#endif

}  // namespace model
