// The emulated device, as a test sets it.
#pragma once

#include <cstdint>

namespace emulation {

extern int multiprocessors;
/// Blocks, warps and lanes take turns in an order that follows from this.
void seed(uint64_t value);

}  // namespace emulation
