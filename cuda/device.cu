// What the op launchers share: loading, the empty kernel, and the description of build and machine.
#include <cuda_runtime.h>

#include <algorithm>
#include <string>
#include <vector>

#include "check.h"
#include "enqueue.cuh"
#include "kernels.h"
#include "launch.h"

namespace nsa_kernel::cuda {
namespace {

/// Compute capability from which on kernels wait for their stream by themselves, times ten.
constexpr int kDependentLaunch = 90;

__global__ void empty_kernel() {}

Kernels empty_kernels("launch_empty_kernel", {reinterpret_cast<const void*>(empty_kernel)});

std::string dotted(int major, int minor) { return std::to_string(major) + "." + std::to_string(minor); }

std::string version_text(int version) { return dotted(version / 1000, version % 1000 / 10); }

std::vector<std::string> built_architectures() {
  const std::string all = NSA_KERNEL_ARCHITECTURES;
  std::vector<std::string> result;
  for (size_t begin = 0; begin < all.size();) {
    const size_t end = std::min(all.find(',', begin), all.size());
    result.push_back(all.substr(begin, end - begin));
    begin = end + 1;
  }
  return result;
}

/// Whether code for `architecture`, such as "90", "90a" or "75-virtual", runs on a device. Looking at the device
/// instead would create a context there.
bool runs_on(const std::string& architecture, int major, int minor) {
  const int built = std::stoi(architecture);
  const int device = major * 10 + minor;
  if (architecture.find("-virtual") != std::string::npos) return device >= built;
  if (architecture.find('a') != std::string::npos) return device == built;
  return built / 10 == major && device >= built;
}

std::vector<DeviceInfo> ask_devices(int count, const std::vector<std::string>& architectures) {
  std::vector<DeviceInfo> devices;
  for (int device = 0; device < count; ++device) {
    cudaDeviceProp properties;
    if (cudaGetDeviceProperties(&properties, device) != cudaSuccess) {
      cudaGetLastError();
      devices.push_back({"unknown", 0, 0, false});
      continue;
    }
    const bool usable = std::any_of(architectures.begin(), architectures.end(), [&](const auto& built) {
      return runs_on(built, properties.major, properties.minor);
    });
    devices.push_back({properties.name, properties.major, properties.minor, usable});
  }
  return devices;
}

}  // namespace

Target Kernels::load(Device device) const {
  const RelaxedCapture relaxed;
  Target target{0, true, true};
  for (const void* kernel : kernels_) {
    cudaFuncAttributes attributes;
    const cudaError_t status = cudaFuncGetAttributes(&attributes, kernel);
    if (status == cudaErrorNoKernelImageForDevice || status == cudaErrorInvalidDeviceFunction) {
      int major = 0, minor = 0;
      cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device.index);
      cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device.index);
      raise(status, op_,
            "; device " + std::to_string(device.index) + " has compute capability " + dotted(major, minor) +
                ", this build holds " NSA_KERNEL_ARCHITECTURES);
    }
    check(status, op_);
    // Code for an older device does not wait, also where it was compiled anew for this one.
    target.dependent_launch = target.dependent_launch && attributes.ptxVersion >= kDependentLaunch;
    target.has_fast = target.has_fast && attributes.ptxVersion != kGenericPtx;
  }
  check(cudaDeviceGetAttribute(&target.multiprocessors, cudaDevAttrMultiProcessorCount, device.index), op_);
  return target;
}

void launch_empty(Device device, Stream stream) {
  const DeviceGuard guard(device, "launch_empty_kernel");
  empty_kernels.ready(device);
  empty_kernel<<<1, 32, 0, static_cast<cudaStream_t>(stream)>>>();
  check(cudaGetLastError(), "launch_empty_kernel");
}

void describe(Info& info) {
  info.cuda_version = version_text(CUDART_VERSION);
  info.architectures = built_architectures();
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess) {
    cudaGetLastError();
    int driver = 0;
    cudaDriverGetVersion(&driver);
    info.reason = driver == 0 ? "no NVIDIA driver was found"  // which CUDA calls one of an insufficient version
                              : std::string(cudaGetErrorName(status)) + ": " + cudaGetErrorString(status) +
                                    "; the driver supports CUDA " + version_text(driver);
    return;
  }
  // They stay the same, and CUDA 12 takes more than a millisecond to tell.
  static const std::vector<DeviceInfo> devices = ask_devices(count, info.architectures);
  info.devices = devices;
  const bool any = std::any_of(devices.begin(), devices.end(), [](const DeviceInfo& device) { return device.usable; });
  if (!any) info.reason = "no device runs the architectures of this build: " NSA_KERNEL_ARCHITECTURES;
}

}  // namespace nsa_kernel::cuda
