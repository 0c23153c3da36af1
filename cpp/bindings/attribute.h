// Attributes that an object may lack.
#pragma once

#include <nanobind/nanobind.h>

namespace nsa_kernel::bindings {

/// An attribute; None where there is none, or where asking for it raises. From Python 3.13 on, PyObject_HasAttr, and so
/// nanobind's hasattr, prints every exception but AttributeError.
inline nanobind::object attribute(nanobind::handle of, const char* name) {
  nanobind::object value = nanobind::steal(PyObject_GetAttrString(of.ptr(), name));
  if (value.is_valid()) return value;
  if (!PyErr_ExceptionMatches(PyExc_Exception)) throw nanobind::python_error();
  PyErr_Clear();
  return nanobind::none();
}

}  // namespace nsa_kernel::bindings
