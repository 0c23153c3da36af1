#include "error.h"

#include <new>
#include <stdexcept>

#include "docs.h"
#include "nsa_kernel/error.h"
#include "require.h"

namespace nb = nanobind;

namespace nsa_kernel::bindings {
namespace {

PyObject* cuda_error_type = nullptr;

void set_cuda_error(const CudaError& error) {
  try {
    const nb::object raised = nb::handle(cuda_error_type)(error.what());
    raised.attr("code") = error.code();
    PyErr_SetObject(cuda_error_type, raised.ptr());
  } catch (nb::python_error& failure) {
    failure.restore();
  }
}

PyObject* type_of(const nb::builtin_exception& error) {
  switch (error.type()) {
    case nb::exception_type::type_error: return PyExc_TypeError;
    case nb::exception_type::value_error: return PyExc_ValueError;
    default: return PyExc_RuntimeError;
  }
}

}  // namespace

void def_cuda_error(nb::module_& module) {
  const nb::object type =
      nb::steal(PyErr_NewExceptionWithDoc("nsa_kernel.CudaError", kCudaErrorDoc, PyExc_RuntimeError, nullptr));
  if (!type.is_valid()) throw nb::python_error();
  module.attr("CudaError") = type;
  cuda_error_type = type.ptr();
  Py_INCREF(cuda_error_type);
}

void set_python_error() noexcept {
  try {
    throw;
  } catch (nb::python_error& error) {
    error.restore();
  } catch (const nb::builtin_exception& error) {
    PyErr_SetString(type_of(error), error.what());
  } catch (const CudaError& error) {
    set_cuda_error(error);
  } catch (const LayoutError& error) {
    PyErr_SetString(PyExc_TypeError, error.what());
  } catch (const std::invalid_argument& error) {
    PyErr_SetString(PyExc_ValueError, error.what());
  } catch (const std::bad_alloc& error) {
    PyErr_SetString(PyExc_MemoryError, error.what());
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
}

}  // namespace nsa_kernel::bindings
