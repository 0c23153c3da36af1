// What this build holds and which devices it can use.
#pragma once

#include <string>
#include <vector>

#include "nsa_kernel/types.h"

namespace nsa_kernel {

/// One CUDA device of this machine.
struct DeviceInfo {
  std::string name;
  int major = 0;  ///< compute capability
  int minor = 0;
  bool usable = false;  ///< this build has code that runs on it
};

/// The build and the machine.
struct Info {
  std::string version;
  std::string cuda_version;                ///< of the toolkit that built it; empty without CUDA
  std::vector<std::string> architectures;  ///< as built, such as "90" or "75-virtual"
  std::vector<DeviceInfo> devices;
  std::string reason;  ///< why no device can be used; empty where one can
};

/// Version of this library, such as "1.2.3".
const char* version();

/// Looks at the build and the machine; never throws for want of a device or a driver.
Info info();

/// Launches a kernel that does nothing on a CUDA device: the floor of every launch.
void launch_empty_kernel(Device device, Stream stream = nullptr);

}  // namespace nsa_kernel
