// C++ exceptions -> Python's.
#pragma once

#include <nanobind/nanobind.h>

#include <exception>

namespace nsa_kernel::bindings {

/// Adds the exception type `CudaError` to the module.
void def_cuda_error(nanobind::module_& module);

/// Sets the Python error that stands for the exception being handled.
void set_python_error() noexcept;

/// What `work` returns, which is a new reference or null; null too, with the Python error set, where it throws.
template <class Work>
PyObject* guarded(Work work) noexcept {
  try {
    return work();
  } catch (...) {
    set_python_error();
    return nullptr;
  }
}

}  // namespace nsa_kernel::bindings
