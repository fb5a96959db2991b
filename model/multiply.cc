#include "model/multiply.h"

#include <algorithm>
#include <optional>

#include "model/multiply_float.h"
#include "model/multiply_int.h"

namespace model {

namespace {

template <class Products>
void run_region(const Compute& compute, Products products, bool integers, bool floats) {
  std::optional<IntRegion> exact;
  std::optional<FloatRegion> rounded;
  if (integers) exact.emplace(compute, products);
  if (floats) rounded.emplace(compute, products);
  const uint32_t first = exact ? exact->tasks() : 0;
  compute.threads.run(first + (rounded ? rounded->tasks() : 0), [&](uint32_t task) {
    if (task < first)
      exact->run(task);
    else
      rounded->run(task - first);
  });
  if (exact) exact->finish();
  if (rounded) rounded->finish();
}

}  // namespace

void multiply(const Compute& compute, std::span<const Product> products) {
  const auto integer = [](const Product& p) { return is_integer(p.w->format()); };
  run_region(compute, products, std::any_of(products.begin(), products.end(), integer),
             !std::all_of(products.begin(), products.end(), integer));
}

void multiply(const Compute& compute, const Product& product) {
  multiply(compute, std::span(&product, 1));
}

void multiply_gated(const Compute& compute, std::span<const GatedProduct> products) {
  const auto integer = [](const GatedProduct& p) { return is_integer(p.gate->format()); };
  run_region(compute, products, std::any_of(products.begin(), products.end(), integer),
             !std::all_of(products.begin(), products.end(), integer));
}

}  // namespace model
