// Failures of CUDA. Bad arguments are `std::invalid_argument`.
#pragma once

#include <stdexcept>
#include <string>

namespace nsa_kernel {

/// A CUDA call that failed, CUDA memory given to a build without CUDA, or a synchronizing call during stream capture.
class CudaError : public std::runtime_error {
 public:
  CudaError(int code, const std::string& message) : std::runtime_error(message), code_(code) {}

  /// The `cudaError_t`.
  int code() const noexcept { return code_; }

 private:
  int code_;
};

}  // namespace nsa_kernel
