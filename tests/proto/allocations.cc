#include "tests/proto/allocations.h"

#include <algorithm>
#include <cstdlib>
#include <new>

namespace {
size_t g_largest = 0;
}  // namespace

void* operator new(size_t size) {
  g_largest = std::max(g_largest, size);
  if (void* memory = std::malloc(size)) return memory;
  throw std::bad_alloc();
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }

namespace proto_test {
void reset_largest_allocation() { g_largest = 0; }
size_t largest_allocation() { return g_largest; }
}  // namespace proto_test
