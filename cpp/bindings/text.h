// Python objects as text for messages. A text that cannot be had never hides what the message is about.
#pragma once

#include <nanobind/nanobind.h>

#include <string>

namespace nsa_kernel::bindings {

/// A str in UTF-8; what UTF-8 or a C string cannot say is escaped.
inline std::string utf8(nanobind::handle text) {
  const nanobind::object bytes = nanobind::steal(PyUnicode_AsEncodedString(text.ptr(), "utf-8", "backslashreplace"));
  if (!bytes.is_valid()) {
    PyErr_Clear();
    return "";
  }
  std::string result(PyBytes_AsString(bytes.ptr()), static_cast<size_t>(PyBytes_Size(bytes.ptr())));
  for (size_t at = 0; (at = result.find('\0', at)) != std::string::npos;) result.replace(at, 1, "\\0");
  return result;
}

inline std::string a_type(nanobind::handle value) { return "a " + utf8(nanobind::type_name(value.type())); }

/// What `repr` or `str` makes of a value; its type where that fails.
inline std::string text_by(PyObject* (*make)(PyObject*), nanobind::handle value) {
  const nanobind::object text = nanobind::steal(make(value.ptr()));
  if (text.is_valid()) return utf8(text);
  PyErr_Clear();
  return a_type(value);
}

}  // namespace nsa_kernel::bindings
