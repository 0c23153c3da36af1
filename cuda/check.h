// CUDA status to CudaError, and the state that a launch borrows from the thread: device and capture mode.
#pragma once

#include <cuda_runtime_api.h>

#include <string>

#include "nsa_kernel/error.h"
#include "nsa_kernel/types.h"

namespace nsa_kernel::cuda {

[[noreturn]] inline void raise(cudaError_t status, const char* op, const std::string& hint = "") {
  cudaGetLastError();  // a later call must not report this error again
  throw CudaError(status, std::string(op) + ": CUDA error " + std::to_string(status) + " (" + cudaGetErrorName(status) +
                              "): " + cudaGetErrorString(status) + hint);
}

inline void check(cudaError_t status, const char* op) {
  if (status != cudaSuccess) raise(status, op);
}

/// Makes a device current for a scope. Opens no context on any other: the caller's device may have none yet, and
/// cudaSetDevice would open one as it comes back.
class DeviceGuard {
 public:
  DeviceGuard(Device device, const char* op) : op_(op) {
    int current = 0;
    check(cudaGetDevice(&current), op);
    if (current != device.index) enter(device);
  }
  ~DeviceGuard() {
    if (entered_) leave();
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  void enter(Device device);
  void leave();

  const char* op_;
  bool entered_ = false;
};

/// Lets this thread load code and allocate while a stream is being captured.
class RelaxedCapture {
 public:
  RelaxedCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  ~RelaxedCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  RelaxedCapture(const RelaxedCapture&) = delete;
  RelaxedCapture& operator=(const RelaxedCapture&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

}  // namespace nsa_kernel::cuda
