// Any array -> View. Everything that an argument can be refused for by itself is refused here, with its name.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <span>
#include <string>
#include <vector>

#include "arguments.h"
#include "dlpack.h"
#include "nsa_kernel/types.h"
#include "stream.h"

namespace nsa_kernel::bindings {

/// What keeps the memory of arrays alive.
struct HeldArrays {
  std::vector<nanobind::object> objects;  ///< the arrays, the buffers of some, the storages of torch's
  std::vector<nanobind::ndarray<nanobind::ro>> imports;
};

/// The arguments of one call. Views borrow their arrays, which the caller holds; what had to be imported is kept here.
class Arguments {
 public:
  /// `values` are those of the call, null or None where there is none, and `arrays` says where arrays stand among them;
  /// both outlive this object. `stream` is checked at once; it may be null. Of arrays that are kept, a plan takes the
  /// memory along.
  Arguments(const char* op, PyObject* const* values, std::span<const size_t> arrays, nanobind::handle stream,
            bool is_kept = false);

  /// [n] int32 or int64, any positive stride.
  LengthView lengths(const char* name, nanobind::handle array);
  /// [n] int32, contiguous, writable.
  View<int32_t> output(const char* name, nanobind::handle array);
  /// Elements of one or two dimensions, int32, contiguous, writable.
  FlatView flat_output(const char* name, nanobind::handle array);
  /// [rows, cols] int32, contiguous rows.
  TableView<const int32_t> table(const char* name, nanobind::handle array);
  /// [rows, cols] int32, contiguous rows that do not overlap, writable.
  TableView<int32_t> output_table(const char* name, nanobind::handle array);
  /// An integer, from anything with `__index__`.
  int64_t integer(const char* name, nanobind::handle value) const;
  /// Whether a value counts as true.
  bool flag(const char* name, nanobind::handle value) const;
  /// The value that a str stands for.
  template <class T>
  T word(const char* name, nanobind::handle value) const {
    check_str(name, value);
    for (const Word<T>& word : kWords<T>) {
      if (PyUnicode_CompareWithASCIIString(value.ptr(), word.text) == 0) return word.value;
    }
    std::string all;
    for (const Word<T>& word : kWords<T>) all += (all.empty() ? "'" : ", '") + std::string(word.text) + "'";
    refuse_word(name, value, all);
  }

  /// The device of all arrays read so far.
  Device device() const { return device_; }
  const StreamSource& source() const { return source_; }
  /// Whether one of them is torch's.
  bool has_torch() const { return has_torch_; }
  /// The stream to work on: the one given, or the framework's current one.
  Stream stream() const;

  /// The memory of arrays that are kept, also where an array is given other memory later.
  HeldArrays take_held() { return std::move(held_); }

 private:
  struct Raw;
  struct Tensor;

  /// Of `ndim` dimensions, or of up to `max_ndim`.
  Tensor read(const char* name, nanobind::handle array, int ndim, int max_ndim, bool writable);
  Raw borrowed(const char* name, nanobind::handle array, const ExchangeTable& table) const;
  Raw imported(const char* name, nanobind::handle array, bool writable);
  nanobind::object exported(const char* name, nanobind::handle array, bool is_jax);
  void check_version(const char* name, nanobind::handle source) const;
  TableView<int32_t> any_table(const char* name, nanobind::handle array, bool writable);
  void share_device(const char* name, Device device);
  void check_str(const char* name, nanobind::handle value) const;
  [[noreturn]] void refuse_word(const char* name, nanobind::handle value, const std::string& all) const;
  void keep_storage(const char* name, nanobind::handle tensor);
  void find_source();
  [[noreturn]] void refuse(const char* name, const std::string& what) const;
  [[noreturn]] void refuse_device(const char* name, Device device) const;
  [[noreturn]] void refuse_export(const char* name, nanobind::handle array, const std::string& reason) const;

  const char* op_;
  PyObject* const* values_;
  std::span<const size_t> arrays_;
  bool is_kept_;
  bool given_stream_ = false;
  bool has_torch_ = false;
  Stream stream_ = nullptr;
  StreamSource source_;
  const char* first_name_ = nullptr;
  Device device_;
  nanobind::ndarray<nanobind::ro> being_read_;  // its shape and strides
  HeldArrays held_;                             ///< of arrays that were not borrowed
};

/// A new int32 array of one element.
struct Element {
  nanobind::object array;
  bool to_jax = false;  ///< `array` stands in for a JAX array, which nothing can write

  /// The array to hand out, once the work that writes it is enqueued.
  nanobind::object result() const;
};

/// An element on `device`, of the framework of `like`; of `writable`'s until it is handed out, if `like` is immutable.
Element one_element(nanobind::handle like, nanobind::handle writable, Device device);

}  // namespace nsa_kernel::bindings
