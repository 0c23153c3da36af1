// The parameters of a Python callable: its arguments by position and by name, its docstring, and rows for other tools.
#pragma once

#include <nanobind/nanobind.h>

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "arguments.h"

namespace nsa_kernel::bindings {

struct Parameter {
  const char* name;
  const char* role;  ///< lengths, output, flat_output, table, output_table, number, word, flag or stream
  bool is_required;
  nanobind::object default_value;  ///< of one that is not required
  std::vector<std::string> words;  ///< those that it may be
  const char* shape;
  const char* sentence;
};

/// What a docstring says around its list of arguments.
struct Docs {
  const char* returns;  ///< the annotation
  const char* before;
  const char* after = "";
};

class Signature {
 public:
  Signature(const char* name, size_t positional, std::vector<Parameter> parameters, const Docs& docs);

  /// Puts the arguments of a call at their places in `values`, which is null for each parameter; those that are not
  /// given stay null. References are the caller's.
  void place(PyObject* const* arguments, Py_ssize_t count, PyObject* names, PyObject** values) const;
  /// The same from a tuple and from a dict that may be null.
  void place(PyObject* arguments, PyObject* by_name, PyObject** values) const;

  const char* name() const { return name_; }
  /// The docstring, behind the signature as Python reads it from text; `self` is empty or "$self".
  std::string doc(const char* self) const;
  /// What it returns, and a dict for each parameter.
  nanobind::dict row() const;

 private:
  /// A slot of the table that finds parameters by the addresses of their interned names: a name is in the slot that its
  /// address gives, or in the first after it that was free.
  struct Slot {
    PyObject* name;  ///< null in a free one
    size_t index;
  };
  static constexpr size_t kSlots = 128;
  static size_t first_slot(PyObject* name) { return reinterpret_cast<uintptr_t>(name) / 16 % kSlots; }
  static size_t next_slot(size_t slot) { return (slot + 1) % kSlots; }

  void check_count(size_t count) const;
  size_t index_of(PyObject* name) const;
  size_t index_of_text(PyObject* name) const;
  void place_by_name(PyObject* name, PyObject* value, PyObject** values) const;
  void require_all(PyObject* const* values) const;
  [[noreturn]] void refuse(const std::string& what) const;
  [[noreturn]] void refuse_count(size_t count) const;
  [[noreturn]] void refuse_twice(size_t i) const;
  [[noreturn]] void refuse_absence(size_t i) const;
  [[noreturn]] void refuse_name(PyObject* name) const;

  const char* name_;
  size_t positional_;
  std::vector<Parameter> parameters_;
  std::vector<PyObject*> names_;      ///< interned
  std::array<Slot, kSlots> slots_{};  ///< far more than there are parameters
  std::vector<size_t> required_;      ///< where the parameters stand that are
  Docs docs_;
};

/// The stream to work on; the sentence says what None stands for.
Parameter stream_parameter(
    const char* sentence =
        "None for the framework's current stream, an int handle, or an object with `__cuda_stream__`.");

template <class Field>
nanobind::object to_python(const Field& value) {
  if constexpr (std::is_enum_v<Field>) {
    return nanobind::str(word_of(value));
  } else if constexpr (std::is_same_v<Field, bool>) {
    return nanobind::bool_(value);
  } else if constexpr (std::is_same_v<Field, int64_t>) {
    return nanobind::int_(value);
  } else {
    return nanobind::none();  // an array or a std::optional, absent
  }
}

template <class Field>
std::vector<std::string> words_of(const Field*) {
  std::vector<std::string> words;
  if constexpr (std::is_enum_v<Field>) {
    for (const Word<Field>& word : kWords<Field>) words.push_back(word.text);
  }
  return words;
}

template <class Field>
std::vector<std::string> words_of(const std::optional<Field>*) {
  return words_of(static_cast<const Field*>(nullptr));
}

/// The parameters that stand for a list. What is not given keeps the member's initializer; `Buffers` is the struct that
/// its arguments are members of.
template <class Buffers, class List>
std::vector<Parameter> parameters_of(const List& list) {
  constexpr const char* kRoles[] = {"lengths",      "output", "flat_output", "table",
                                    "output_table", "number", "word",        "flag"};
  std::vector<Parameter> parameters;
  const Buffers initial;
  list.for_each([&](size_t, const auto& argument) {
    const auto& field = initial.*argument.field;
    using Field = std::decay_t<decltype(field)>;
    parameters.push_back({argument.name, kRoles[static_cast<int>(RoleOf<Field>::value)], argument.is_required,
                          argument.is_required ? nanobind::object() : to_python(field), words_of(&field),
                          argument.shape, argument.sentence});
  });
  return parameters;
}

}  // namespace nsa_kernel::bindings
