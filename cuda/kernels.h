// The kernels of one op, made ready on a device before their first launch.
#pragma once

#include <array>
#include <atomic>
#include <initializer_list>
#include <vector>

#include "nsa_kernel/types.h"

namespace nsa_kernel::cuda {

/// Kernels that are loaded together, once a device. CUDA loads code at its first use, which a capture may forbid.
class Kernels {
 public:
  Kernels(const char* op, std::initializer_list<const void*> kernels) : op_(op), kernels_(kernels) {}

  /// Loads them on the current device `device`, if need be, and returns its number of multiprocessors.
  int ready(Device device) {
    const size_t index = static_cast<size_t>(device.index);
    if (index >= multiprocessors_.size()) return load(device);
    const int known = multiprocessors_[index].load(std::memory_order_acquire);
    if (known > 0) return known;
    const int loaded = load(device);
    multiprocessors_[index].store(loaded, std::memory_order_release);
    return loaded;
  }

 private:
  int load(Device device) const;

  const char* op_;
  std::vector<const void*> kernels_;
  std::array<std::atomic<int>, 64> multiprocessors_{};
};

}  // namespace nsa_kernel::cuda
