// How a plan refuses its arguments: `<op>: <argument> <what it is>, must <what it should be>`.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#include "nsa_kernel/types.h"

namespace nsa_kernel {

/// A layout that does not fit: strides, alignment, or what no producer of an array may state. Python's TypeError.
class LayoutError : public std::invalid_argument {
 public:
  using std::invalid_argument::invalid_argument;
};

/// The checks of one op.
class Require {
 public:
  explicit constexpr Require(const char* op) : op_(op) {}

  /// Throws the message made of `parts` unless `holds`.
  template <class... Parts>
  void operator()(bool holds, const Parts&... parts) const {
    if (!holds) refuse<std::invalid_argument>(parts...);
  }

  /// The same of a layout.
  template <class... Parts>
  void layout(bool holds, const Parts&... parts) const {
    if (!holds) refuse<LayoutError>(parts...);
  }

  void at_most(const char* name, int64_t value, int64_t most) const {
    (*this)(value <= most, name, " is ", value, ", must be at most ", most);
  }

  /// Kernels count the elements of one dimension in 32 bits, and may step past the end.
  static constexpr int64_t kCountable = int64_t{1} << 30;

  void countable(const char* name, int64_t size) const {
    (*this)(size <= kCountable, name, " has size ", size, ", must be at most ", kCountable);
  }

  void same_size(const char* name, const LengthView& view, const char* other_name, const LengthView& other) const {
    (*this)(view.size == other.size, name, " has ", view.size, " elements, must have as many as ", other_name, " (",
            other.size, ")");
  }

  void at_least(const char* name, const View<int32_t>& view, int64_t size) const {
    (*this)(!view || view.size >= size, name, " has ", view.size, " elements, must have at least ", size);
  }

  /// A table of pairs, which kernels write 8 bytes at a time.
  void pairs(const char* name, const TableView<int32_t>& table) const {
    (*this)(table.cols == 2, name, " has ", table.cols, " columns, must have 2");
    countable(name, table.rows);
    layout(table.row_stride == 2, name, " has row stride ", table.row_stride, ", must be contiguous");
    layout(reinterpret_cast<uintptr_t>(table.data) % 8 == 0, name,
           " starts at an address that is not a multiple of 8, must be aligned");
  }

  /// A number that kernels divide by.
  void divisor(const char* name, int64_t value) const {
    constexpr int64_t kMost = 2147483647;
    (*this)(value >= 1 && value <= kMost, name, " is ", value, ", must be from 1 to ", kMost);
  }

  void not_negative(const char* name, int64_t value) const {
    (*this)(value >= 0, name, " is ", value, ", must be at least 0");
  }

 private:
  template <class Error, class... Parts>
  [[noreturn, gnu::noinline, gnu::cold]] void refuse(const Parts&... parts) const {
    throw Error(std::string(op_) + ": " + (text(parts) + ...));
  }

  static std::string text(const char* part) { return part; }
  static std::string text(int64_t part) { return std::to_string(part); }

  const char* op_;
};

}  // namespace nsa_kernel
