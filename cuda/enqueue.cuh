// How every kernel is launched, but for the empty one, and what it starts with.
//
// With programmatic dependent launch, a kernel may be set up while earlier work of its stream ends, and its launch
// takes less time of the host. It must wait by itself before it touches memory. In a graph, other nodes would pay for
// it: a node of another kind after one launched so starts later.
#pragma once

#include <cuda_runtime.h>

#include "check.h"
#include "kernels.h"

namespace nsa_kernel::cuda {

/// Every kernel's first statement that does something: returns when all earlier work of the stream is done.
__device__ inline void await_stream() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/// The architecture whose PTX has no fast kernels, if there is one: GPUs for which a build has no machine code run the
/// generic kernels, and a wheel is smaller.
#ifdef NSA_KERNEL_GENERIC_PTX
constexpr int kGenericPtx = NSA_KERNEL_GENERIC_PTX;
#else
constexpr int kGenericPtx = 0;
#endif

/// Whether a kernel of such traits is compiled for that, and has to be empty.
template <class Traits>
__device__ constexpr bool is_left_out() {
#ifdef __CUDA_ARCH__
  return !Traits::kMany && __CUDA_ARCH__ == 10 * kGenericPtx;
#else
  return false;
#endif
}

inline bool is_captured(cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  if (cudaStreamIsCapturing(stream, &status) == cudaSuccess) return status != cudaStreamCaptureStatusNone;
  cudaGetLastError();  // the launch will say it
  return true;
}

template <class Kernel, class... Args>
void enqueue(const char* op, Kernel* kernel, dim3 grid, int threads, const Target& target, cudaStream_t stream,
             const Args&... args) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = threads;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = target.dependent_launch && !is_captured(stream) ? 1 : 0;
  check(cudaLaunchKernelEx(&config, kernel, args...), op);
}

}  // namespace nsa_kernel::cuda
