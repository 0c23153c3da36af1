#include "signature.h"

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>

#include "text.h"

namespace nb = nanobind;

namespace nsa_kernel::bindings {
namespace {

/// `first`, then the words of `text`, in lines that the stub, which indents them once more, keeps below 120 columns.
std::string wrapped(std::string line, const std::string& text) {
  constexpr size_t kWidth = 112;
  std::string result;
  size_t end = 0;
  for (size_t begin = 0; begin < text.size(); begin = end + 1) {  // a stream would bring the locales of libstdc++ along
    end = std::min(text.find(' ', begin), text.size());
    const std::string word = text.substr(begin, end - begin);
    if (line.size() + 1 + word.size() > kWidth) {
      result += line + "\n";
      line = "       ";
    }
    line += " " + word;
  }
  return result + line + "\n";
}

std::string description(const Parameter& parameter) {
  const std::string role = parameter.role;
  std::string text = parameter.shape;
  if (!text.empty()) {
    const bool is_output = role.find("output") != std::string::npos;
    text += role == "lengths" ? " int32 or int64, " : is_output ? " int32 out, " : " int32, ";
  }
  return wrapped("    " + std::string(parameter.name) + ":", text + parameter.sentence);
}

}  // namespace

Signature::Signature(const char* name, size_t positional, std::vector<Parameter> parameters, const Docs& docs)
    : name_(name), positional_(positional), parameters_(std::move(parameters)), docs_(docs) {
  for (const Parameter& parameter : parameters_) {
    PyObject* interned = PyUnicode_InternFromString(parameter.name);
    if (interned == nullptr) throw nb::python_error();
    size_t slot = first_slot(interned);
    while (slots_[slot].name != nullptr) slot = next_slot(slot);
    slots_[slot] = {interned, names_.size()};
    if (parameter.is_required) required_.push_back(names_.size());
    names_.push_back(interned);
  }
}

void Signature::refuse(const std::string& what) const { throw nb::type_error((name_ + (": " + what)).c_str()); }

void Signature::refuse_name(PyObject* name) const {
  nb::list known;
  for (PyObject* each : names_) known.append(nb::handle(each));
  const nb::object near =
      nb::module_::import_("difflib").attr("get_close_matches")(nb::str(nb::handle(name)), known, 1);
  std::string text = text_by(PyObject_Str, name) + " is not the name of an argument, must be ";
  if (nb::len(near) == 1) {
    text += utf8(nb::object(near[0]));
  } else if (parameters_.empty()) {
    text += "absent";
  } else {
    text += parameters_.size() == 1 ? "" : "one of ";
    for (size_t i = 0; i < parameters_.size(); ++i) text += (i == 0 ? "" : ", ") + std::string(parameters_[i].name);
  }
  refuse(text);
}

void Signature::refuse_count(size_t count) const {
  std::string text = std::to_string(count) + (count == 1 ? " argument is" : " arguments are") +
                     " given by position, must be at most " + std::to_string(positional_);
  if (positional_ < parameters_.size()) text += "; " + std::string(parameters_[positional_].name) + " goes by name";
  refuse(text);
}

void Signature::refuse_twice(size_t i) const {
  refuse(std::string(parameters_[i].name) + " is given by position and by name, must be given once");
}

void Signature::refuse_absence(size_t i) const {
  refuse(std::string(parameters_[i].name) + " is absent, must be given");
}

inline void Signature::check_count(size_t count) const {
  if (count > positional_) refuse_count(count);
}

size_t Signature::index_of_text(PyObject* name) const {
  for (size_t i = 0; i < names_.size() && PyUnicode_Check(name); ++i) {
    if (PyUnicode_CompareWithASCIIString(name, parameters_[i].name) == 0) return i;
  }
  refuse_name(name);
}

inline size_t Signature::index_of(PyObject* name) const {
  for (size_t slot = first_slot(name); slots_[slot].name != nullptr; slot = next_slot(slot)) {
    if (slots_[slot].name == name) return slots_[slot].index;
  }
  return index_of_text(name);  // most often, names come interned
}

inline void Signature::place_by_name(PyObject* name, PyObject* value, PyObject** values) const {
  const size_t i = index_of(name);
  if (values[i] != nullptr) refuse_twice(i);
  values[i] = value;
}

inline void Signature::require_all(PyObject* const* values) const {
  for (const size_t i : required_) {
    if (values[i] == nullptr) refuse_absence(i);
  }
}

void Signature::place(PyObject* const* arguments, Py_ssize_t count, PyObject* names, PyObject** values) const {
  check_count(static_cast<size_t>(count));
  for (Py_ssize_t i = 0; i < count; ++i) values[i] = arguments[i];
  if (names != nullptr) {
    const Py_ssize_t named = PyTuple_Size(names);
    for (Py_ssize_t i = 0; i < named; ++i) place_by_name(PyTuple_GetItem(names, i), arguments[count + i], values);
  }
  require_all(values);
}

void Signature::place(PyObject* arguments, PyObject* by_name, PyObject** values) const {
  const Py_ssize_t count = PyTuple_Size(arguments);
  check_count(static_cast<size_t>(count));
  for (Py_ssize_t i = 0; i < count; ++i) values[i] = PyTuple_GetItem(arguments, i);
  PyObject *name = nullptr, *value = nullptr;
  for (Py_ssize_t at = 0; by_name != nullptr && PyDict_Next(by_name, &at, &name, &value);) {
    place_by_name(name, value, values);
  }
  require_all(values);
}

std::string Signature::doc(const char* self) const {
  std::string text = self;
  const auto add = [&](const std::string& part) { text += (text.empty() ? "" : ", ") + part; };
  for (size_t i = 0; i < parameters_.size(); ++i) {
    const Parameter& parameter = parameters_[i];
    if (i == positional_) add("*");
    add(parameter.is_required ? parameter.name
                              : std::string(parameter.name) + "=" + text_by(PyObject_Repr, parameter.default_value));
  }
  const std::string name = name_;
  text = name.substr(name.rfind('.') + 1) + "(" + text + ")\n--\n\n" + docs_.before;
  if (!parameters_.empty()) text += "\nArgs:\n";
  for (const Parameter& parameter : parameters_) text += description(parameter);
  return text + docs_.after;
}

nb::dict Signature::row() const {
  nb::list parameters;
  for (size_t i = 0; i < parameters_.size(); ++i) {
    const Parameter& parameter = parameters_[i];
    nb::dict row;
    row["name"] = parameter.name;
    row["role"] = parameter.role;
    row["required"] = parameter.is_required;
    row["default"] = parameter.is_required ? nb::none() : parameter.default_value;
    row["keyword_only"] = i >= positional_;
    row["words"] = nb::tuple(nb::cast(parameter.words));
    row["shape"] = parameter.shape;
    row["sentence"] = parameter.sentence;
    parameters.append(row);
  }
  nb::dict row;
  row["returns"] = docs_.returns;
  row["arguments"] = parameters;
  return row;
}

Parameter stream_parameter(const char* sentence) { return {"stream", "stream", false, nb::none(), {}, "", sentence}; }

}  // namespace nsa_kernel::bindings
