// One call from Python: its arguments, as the op's struct.
#pragma once

#include <nanobind/nanobind.h>
#include <unistd.h>

#include <array>
#include <utility>

#include "arguments.h"
#include "array.h"

namespace nsa_kernel::bindings {

/// Lets other threads run Python.
class ReleasedGil {
 public:
  ReleasedGil() = default;
  ReleasedGil(const ReleasedGil&) = delete;
  ReleasedGil& operator=(const ReleasedGil&) = delete;

  /// Once the interpreter shuts down, Python before 3.14 ends a thread that asks for the GIL by unwinding its stack,
  /// which the frames below would answer by ending the process. Such a thread stops here, as it does in later versions.
  ~ReleasedGil() {
    try {
      PyEval_RestoreThread(state_);
    } catch (...) {
      for (;;) pause();
    }
  }

 private:
  PyThreadState* state_ = PyEval_SaveThread();
};

/// Does `work` while other threads run Python: it may wait for a stream that is full, or for the device, which may wait
/// for a callback in Python. The caller of the Python function holds the arrays meanwhile.
template <class Work>
auto without_gil(Work work) {
  const ReleasedGil released;
  return work();
}

/// The arguments of one call whose parameters are those of a list, with a stream behind them or not.
template <class List>
class Call {
 public:
  /// `values` are those that Signature::place found, and outlive this object; `stream` may be null.
  Call(const List& list, PyObject* const* values, nanobind::handle stream = {})
      : list_(list), values_(values), stream_(stream) {}

  Arguments arguments(bool is_kept = false) const {
    return Arguments(list_.op, values_, List::kArrayPlaces, stream_, is_kept);
  }

  /// The struct that the list describes.
  template <class Buffers>
  Buffers read(Arguments& arguments) const {
    Buffers buffers;
    // Numbers before addresses: reading one may run Python code.
    read<false>(arguments, buffers);
    read<true>(arguments, buffers);
    buffers.device = arguments.device();
    return buffers;
  }

 private:
  /// Reads either the arrays or all else.
  template <bool kArrays, class Buffers>
  void read(Arguments& arguments, Buffers& buffers) const {
    list_.for_each([&](size_t i, const auto& argument) {
      if constexpr (is_array(kRoleOf<decltype(argument)>) == kArrays) {
        if (values_[i] != nullptr) assign(buffers.*argument.field, arguments, argument, values_[i]);
      }
    });
  }

  template <class Field, class Entry>
  static void assign(Field& into, Arguments& arguments, const Entry& argument, nanobind::handle value) {
    constexpr Role kRole = Entry::kRole;
    const char* name = argument.name;
    if constexpr (is_array(kRole)) {
      if (value.is_none() && !argument.is_required) return;
    }
    if constexpr (kRole == Role::lengths) {
      into = arguments.lengths(name, value);
    } else if constexpr (kRole == Role::output) {
      into = arguments.output(name, value);
    } else if constexpr (kRole == Role::flat_output) {
      into = arguments.flat_output(name, value);
    } else if constexpr (kRole == Role::table) {
      into = arguments.table(name, value);
    } else if constexpr (kRole == Role::output_table) {
      into = arguments.output_table(name, value);
    } else if constexpr (kRole == Role::number) {
      into = arguments.integer(name, value);
    } else if constexpr (kRole == Role::word) {
      into = arguments.word<Field>(name, value);
    } else {
      into = arguments.flag(name, value);
    }
  }

  template <class Field, class Entry>
  static void assign(std::optional<Field>& into, Arguments& arguments, const Entry& argument, nanobind::handle value) {
    if (!value.is_none()) assign(into.emplace(), arguments, argument, value);
  }

  const List& list_;
  PyObject* const* values_;
  nanobind::handle stream_;
};

}  // namespace nsa_kernel::bindings
