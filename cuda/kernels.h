// The kernels of one op, made ready on a device before their first launch.
#pragma once

#include <array>
#include <atomic>
#include <initializer_list>
#include <vector>

#include "nsa_kernel/types.h"

namespace nsa_kernel::cuda {

/// What a launch has to know of its device.
struct Target {
  int multiprocessors;
  bool dependent_launch;  ///< every kernel waits by itself, see enqueue.cuh
  bool has_fast;          ///< not only the generic kernels, see enqueue.cuh
};

/// Kernels that are loaded together, once a device. CUDA loads code at its first use, which a capture may forbid.
class Kernels {
 public:
  Kernels(const char* op, std::initializer_list<const void*> kernels) : op_(op), kernels_(kernels) {}

  /// Loads them on the current device `device`, if need be, and says what it is.
  Target ready(Device device) {
    const size_t index = static_cast<size_t>(device.index);
    if (index >= known_.size()) return load(device);
    const Target known = known_[index].load(std::memory_order_acquire);
    if (known.multiprocessors > 0) return known;
    const Target loaded = load(device);
    known_[index].store(loaded, std::memory_order_release);
    return loaded;
  }

 private:
  Target load(Device device) const;

  const char* op_;
  std::vector<const void*> kernels_;
  std::array<std::atomic<Target>, 64> known_{};
};

}  // namespace nsa_kernel::cuda
