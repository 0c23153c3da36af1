#include "stream.h"

#include <string>

#include "attribute.h"
#include "text.h"

namespace nb = nanobind;

namespace nsa_kernel::bindings {
namespace {

constexpr int32_t kDlCuda = 2;

/// The address that a Python int holds; false for anything else.
bool to_handle(nb::handle value, Stream& handle) {
  if (!PyLong_Check(value.ptr()) || PyBool_Check(value.ptr())) return false;
  const size_t address = PyLong_AsSize_t(value.ptr());
  if (address == static_cast<size_t>(-1) && PyErr_Occurred()) {
    PyErr_Clear();
    return false;
  }
  handle = reinterpret_cast<Stream>(address);
  return true;
}

/// The handle that `__cuda_stream__` gives: a tuple of the protocol's version and the address.
bool ask_for_handle(nb::handle stream, Stream& handle) {
  try {
    nb::object answer = stream.attr("__cuda_stream__");
    if (PyCallable_Check(answer.ptr())) answer = answer();
    return PyTuple_Check(answer.ptr()) && nb::len(answer) >= 2 && to_handle(answer[1], handle);
  } catch (nb::python_error& error) {
    if (!error.matches(PyExc_Exception)) throw;
    return false;
  }
}

}  // namespace

std::string package_of(nb::handle type) {
  const nb::object module = attribute(type, "__module__");
  const std::string name = nb::isinstance<nb::str>(module) ? utf8(module) : "";
  return name.substr(0, name.find('.'));
}

Framework framework_of(nb::handle type) {
  auto* base = reinterpret_cast<PyTypeObject*>(type.ptr());
  for (; base != nullptr; base = static_cast<PyTypeObject*>(PyType_GetSlot(base, Py_tp_base))) {
    const std::string package = package_of(reinterpret_cast<PyObject*>(base));
    if (package == "torch") return Framework::torch;
    if (package == "cupy") return Framework::cupy;
    if (package == "jax" || package == "jaxlib") return Framework::jax;
  }
  return Framework::other;
}

Stream StreamSource::current(Device device) const {
  if (device.type != DeviceType::cuda) return nullptr;
  Stream handle = nullptr;
  if (table_ != nullptr) {
    if (table_->current_stream(kDlCuda, device.index, &handle) != 0) {
      if (!PyErr_Occurred()) PyErr_SetString(PyExc_RuntimeError, "the framework gave no current stream, and no reason");
      throw nb::python_error();
    }
    return handle;
  }
  if (framework_ == Framework::other) return nullptr;
  const nb::object stream =
      framework_ == Framework::torch
          ? nb::module_::import_("torch").attr("cuda").attr("current_stream")(device.index).attr("cuda_stream")
          : nb::module_::import_("cupy").attr("cuda").attr("get_current_stream")(device.index).attr("ptr");
  to_handle(stream, handle);
  return handle;
}

Stream stream_handle(const char* op, nb::handle stream) {
  Stream handle = nullptr;
  if (to_handle(stream, handle)) return handle;
  if (!attribute(stream, "__cuda_stream__").is_none() && ask_for_handle(stream, handle)) return handle;
  // torch before 2.10 names the handle by this attribute alone.
  if (to_handle(attribute(stream, "cuda_stream"), handle)) return handle;
  const std::string kind = PyLong_Check(stream.ptr()) ? text_by(PyObject_Repr, stream) : a_type(stream);
  const std::string message =
      std::string(op) + ": stream is " + kind + ", must be None, an int handle, or an object with __cuda_stream__";
  throw nb::type_error(message.c_str());
}

}  // namespace nsa_kernel::bindings
