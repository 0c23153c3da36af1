// What the kernels and their launchers use of CUDA, for a machine of plain memory whose threads take turns.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <functional>

#define __global__
#define __device__
#define __grid_constant__
#define __launch_bounds__(...)
#define __shared__ static  // one block runs at a time

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(16) int4 {
  int x, y, z, w;
};
extern dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

/// Runs every thread of every block, each thread until it has to wait for others. Throws if these never come.
void launch(dim3 grid, dim3 block, const std::function<void()>& thread);

/// Where threads meet: all lanes of a warp at the same place, or all threads of a block.
struct Place {
  const char* file;
  int line;
};

/// Waits for the other lanes of the warp; returns what each of them brought.
const int64_t* meet_warp(int64_t mine, Place place);
/// Waits for the other threads of the block.
void meet_block(Place place);

}  // namespace emulation

// In kernels.

#define EMULATION_HERE emulation::Place place = {__builtin_FILE(), __builtin_LINE()}

inline void __syncthreads(EMULATION_HERE) { emulation::meet_block(place); }
inline int __syncthreads_count(int mine, EMULATION_HERE) {
  static int count;
  if (mine != 0) ++count;
  emulation::meet_block(place);
  const int result = count;
  emulation::meet_block(place);
  count = 0;
  emulation::meet_block(place);
  return result;
}
inline int __syncthreads_or(int mine, EMULATION_HERE) { return __syncthreads_count(mine, place) != 0; }
template <class T>
T __shfl_sync(unsigned, T mine, int lane, EMULATION_HERE) {
  return static_cast<T>(emulation::meet_warp(mine, place)[lane & 31]);
}
template <class T>
T __shfl_up_sync(unsigned, T mine, int delta, EMULATION_HERE) {
  const int64_t* all = emulation::meet_warp(mine, place);
  const int lane = threadIdx.x % 32;
  return static_cast<T>(all[lane < delta ? lane : lane - delta]);
}
template <class T>
T __shfl_xor_sync(unsigned, T mine, int mask, EMULATION_HERE) {
  return static_cast<T>(emulation::meet_warp(mine, place)[threadIdx.x % 32 ^ mask]);
}
inline unsigned __ballot_sync(unsigned, bool mine, EMULATION_HERE) {
  const int64_t* all = emulation::meet_warp(mine, place);
  unsigned votes = 0;
  for (int lane = 0; lane < 32; ++lane) votes |= static_cast<unsigned>(all[lane]) << lane;
  return votes;
}
inline bool __any_sync(unsigned lanes, bool mine, EMULATION_HERE) { return __ballot_sync(lanes, mine, place) != 0; }
#undef EMULATION_HERE

inline int atomicAdd(int* at, int value) {
  *at += value;
  return *at - value;
}
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>(uint64_t{a} * b >> 32); }
inline int __ffs(unsigned bits) { return __builtin_ffs(static_cast<int>(bits)); }
inline int __clz(int bits) { return bits == 0 ? 32 : __builtin_clz(static_cast<unsigned>(bits)); }
template <class A, class B>
constexpr auto min(A a, B b) -> decltype(a + b) {
  return b < a ? b : a;
}
template <class A, class B>
constexpr auto max(A a, B b) -> decltype(a + b) {
  return a < b ? b : a;
}

// On the host.

using cudaError_t = int;
using cudaStream_t = void*;
enum { cudaSuccess };
enum cudaStreamCaptureStatus { cudaStreamCaptureStatusNone };
enum cudaStreamCaptureMode { cudaStreamCaptureModeRelaxed };
enum { cudaLaunchAttributeProgrammaticStreamSerialization };
struct cudaLaunchAttribute {
  int id;
  struct {
    int programmaticStreamSerializationAllowed;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorName(cudaError_t) { return "error"; }
inline const char* cudaGetErrorString(cudaError_t) { return "an error of the emulation"; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0; }
inline cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode*) { return cudaSuccess; }
inline cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  *status = cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
inline cudaError_t cudaMalloc(void** memory, size_t bytes) {
  *memory = std::malloc(bytes);
  return cudaSuccess;
}
inline cudaError_t cudaMallocAsync(void** memory, size_t bytes, cudaStream_t) { return cudaMalloc(memory, bytes); }
inline cudaError_t cudaFree(void* memory) {
  std::free(memory);
  return cudaSuccess;
}
inline cudaError_t cudaFreeAsync(void* memory, cudaStream_t) { return cudaFree(memory); }

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               const Arguments&... arguments) {
  emulation::launch(config->gridDim, config->blockDim, [&] { kernel(arguments...); });
  return cudaSuccess;
}
