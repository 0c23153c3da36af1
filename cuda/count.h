// How the number of tokens reaches the host: the one place of this library that synchronizes with the device.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace nsa_kernel::cuda {

/// Throws CudaError, naming the asynchronous op, if `stream` is being captured.
void refuse_capture(cudaStream_t stream, const char* op);

/// One count in pinned host memory that a kernel writes and this thread polls. Counts of concurrent calls are apart.
class HostCount {
 public:
  explicit HostCount(const char* op);
  ~HostCount();
  HostCount(const HostCount&) = delete;
  HostCount& operator=(const HostCount&) = delete;

  volatile int32_t* device_address() const { return slot_; }

  /// Polls until a kernel has written the count; throws CudaError if `stream` ends or fails without it.
  int32_t wait(cudaStream_t stream);

 private:
  const char* op_;
  volatile int32_t* slot_;
  bool settled_ = false;  // a kernel may still write an unsettled slot, so that one is never used again
};

}  // namespace nsa_kernel::cuda
