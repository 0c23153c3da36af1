#include "nsa_kernel/info.h"

#include "launch.h"

namespace nsa_kernel {

const char* version() { return NSA_KERNEL_VERSION; }

Info info() {
  Info info;
  info.version = version();
  cuda::describe(info);
  return info;
}

void launch_empty_kernel(Device device, Stream stream) { cuda::launch_empty(device, stream); }

}  // namespace nsa_kernel
