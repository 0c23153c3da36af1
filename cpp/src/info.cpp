#include "nsa_kernel/info.h"

#include "launch.h"
#include "require.h"

namespace nsa_kernel {

const char* version() { return NSA_KERNEL_VERSION; }

Info info() {
  Info info;
  info.version = version();
  cuda::describe(info);
  return info;
}

void launch_empty_kernel(Device device, Stream stream) {
  constexpr Require require("launch_empty_kernel");
  require(device.type == DeviceType::cuda, "device is the CPU, must be a CUDA device");
  cuda::launch_empty(device, stream);
}

}  // namespace nsa_kernel
