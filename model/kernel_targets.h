// Which instruction sets the kernels are compiled for. Included before <hwy/foreach_target.h>.
#pragma once
// Targets whose multiply-add is not fused would run the std::fma path anyway: one such target is
// enough.
#define HWY_DISABLED_TARGETS (HWY_SSE4 | HWY_SSSE3)
