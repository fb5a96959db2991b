#include "model/multiply.h"

#include <algorithm>
#include <vector>

#include "base/check.h"

namespace model {

namespace {

// Panels that a thread claims at a time: enough work to outweigh the claim, few enough to share a
// narrow matrix.
constexpr uint32_t kPanelsATask = 8;

Panels panels_of(const PackedMatrix& w, uint32_t begin, uint32_t count) {
  const bool bf16 = w.format() == WeightFormat::kBf16;
  const size_t panel_bytes = static_cast<size_t>(w.inputs()) * kPanel * (bf16 ? 2 : 4);
  const uint32_t outputs = std::min(w.outputs() - begin * kPanel, count * kPanel);
  return {w.data() + begin * panel_bytes, outputs, w.inputs(), bf16};
}

}  // namespace

void multiply(const Compute& compute, std::span<const Product> products) {
  uint32_t tasks = 0;
  for (const Product& p : products) tasks += (p.w->panels() + kPanelsATask - 1) / kPanelsATask;
  compute.threads.run(tasks, [&](uint32_t task) {
    for (const Product& p : products) {
      const uint32_t own = (p.w->panels() + kPanelsATask - 1) / kPanelsATask;
      if (task >= own) {
        task -= own;
        continue;
      }
      const uint32_t begin = task * kPanelsATask;
      multiply_panels(panels_of(*p.w, begin, kPanelsATask), p.x, p.x_stride, p.rows,
                      p.y + static_cast<size_t>(begin) * kPanel, p.y_stride);
      return;
    }
  });
}

void multiply(const Compute& compute, const Product& product) {
  multiply(compute, std::span(&product, 1));
}

void multiply_gated(const Compute& compute, std::span<const GatedProduct> products) {
  for (const GatedProduct& p : products) {
    const size_t outputs = p.gate->outputs();
    std::vector<float> up(p.rows * outputs);
    const Product both[] = {{p.gate, p.x, p.gate->inputs(), p.rows, p.y, outputs},
                            {p.up, p.x, p.up->inputs(), p.rows, up.data(), outputs}};
    multiply(compute, both);
    silu_multiply({p.y, p.rows * outputs}, up, p.y);
  }
}

}  // namespace model
