// How DeviceGuard makes another device current: by its context, so that the caller's device needs none to come back to.
#include <cuda.h>

#include "check.h"

namespace nsa_kernel::cuda {
namespace {

/// Finds a function of the driver through the runtime. The driver is not linked: a machine may have none.
template <class Function>
void find(const char* name, Function*& function, const char* op) {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
  check(cudaGetDriverEntryPointByVersion(name, &found, 12000, cudaEnableDefault, &result), op);
#else
  check(cudaGetDriverEntryPoint(name, &found, cudaEnableDefault, &result), op);
#endif
  if (result != cudaDriverEntryPointSuccess) {
    raise(cudaErrorNotSupported, op, std::string("; the driver has no ") + name);
  }
  function = reinterpret_cast<Function*>(found);
}

struct Driver {
  decltype(cuDeviceGet)* get_device;
  decltype(cuDevicePrimaryCtxRetain)* retain_context;
  decltype(cuDevicePrimaryCtxRelease)* release_context;
  decltype(cuCtxPushCurrent)* push_context;
  decltype(cuCtxPopCurrent)* pop_context;

  explicit Driver(const char* op) {
    find("cuDeviceGet", get_device, op);
    find("cuDevicePrimaryCtxRetain", retain_context, op);
    find("cuDevicePrimaryCtxRelease", release_context, op);
    find("cuCtxPushCurrent", push_context, op);
    find("cuCtxPopCurrent", pop_context, op);
  }
};

const Driver& driver(const char* op) {
  static const Driver driver(op);
  return driver;
}

/// The errors of the driver have the numbers of the runtime's.
cudaError_t status(CUresult result) { return static_cast<cudaError_t>(result); }

}  // namespace

void DeviceGuard::enter(Device device) {
  const Driver& driver = cuda::driver(op_);
  check(cudaInitDevice(device.index, 0, 0), op_);  // from here on, the runtime holds the context
  CUdevice ordinal = 0;
  CUcontext context = nullptr;
  check(status(driver.get_device(&ordinal, device.index)), op_);
  check(status(driver.retain_context(&context, ordinal)), op_);
  driver.release_context(ordinal);
  check(status(driver.push_context(context)), op_);
  entered_ = true;
}

void DeviceGuard::leave() {
  CUcontext context = nullptr;
  driver(op_).pop_context(&context);
}

}  // namespace nsa_kernel::cuda
