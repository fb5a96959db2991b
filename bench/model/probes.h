// What the machine gives: memory read bandwidth and fused multiply-adds, measured beside the model
// so that both see the same neighbours.
#pragma once
#include <cstddef>
#include <cstdint>

namespace bench {

// A buffer far larger than any cache, in huge pages where the system gives them.
class ReadProbe {
 public:
  explicit ReadProbe(size_t bytes = size_t{512} << 20);
  ReadProbe(const ReadProbe&) = delete;
  ReadProbe& operator=(const ReadProbe&) = delete;
  ~ReadProbe();
  // Bytes a second, every one of `threads` reading its own part once. One thread is timed by the
  // CPU time it had, several by the clock.
  double measure(uint32_t threads) const;

 private:
  std::byte* memory_ = nullptr;
  size_t bytes_ = 0;
};

// Likewise f32 operations a second of `threads` (two a fused multiply-add), from registers.
double measure_fma(uint32_t threads);

}  // namespace bench
