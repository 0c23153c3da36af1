// Programmatic dependent launch: the device may set a kernel up while earlier work of its stream ends.
//
// All kernels that `enqueue` launches begin with `await_stream`, since earlier work may still run until it returns.
#pragma once

#include <cuda_runtime.h>

#include <utility>

#include "check.h"
#include "kernels.h"

namespace nsa_kernel::cuda {

/// Returns when all earlier work of the stream is done and seen; then a later kernel of this kind may be set up.
__device__ inline void await_stream() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait; griddepcontrol.launch_dependents;" ::: "memory");
#endif
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
  config.numAttrs = target.dependent_launch ? 1 : 0;
  check(cudaLaunchKernelEx(&config, kernel, args...), op);
}

}  // namespace nsa_kernel::cuda
