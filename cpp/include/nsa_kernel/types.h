// The words that every op shares: devices, streams and borrowed views of memory.
#pragma once

#include <cstdint>

namespace nsa_kernel {

/// Where memory lives.
enum class DeviceType { cpu, cuda };

/// One device; all views of a call share it.
struct Device {
  DeviceType type = DeviceType::cpu;
  int index = 0;  ///< CUDA ordinal, 0 on the CPU

  friend constexpr bool operator==(const Device& a, const Device& b) { return a.type == b.type && a.index == b.index; }
};

/// A `cudaStream_t` as an opaque handle. Null is the legacy default stream. CPU ops ignore it.
using Stream = void*;

/// Borrowed input lengths or indices: int32 or int64, any positive stride.
struct LengthView {
  const int32_t* int32 = nullptr;  ///< set for int32 elements
  const int64_t* int64 = nullptr;  ///< set for int64 elements
  int64_t size = 0;                ///< number of elements
  int64_t stride = 1;              ///< elements from one to the next

  LengthView() = default;
  LengthView(const int32_t* data, int64_t count, int64_t step = 1) : int32(data), size(count), stride(step) {}
  LengthView(const int64_t* data, int64_t count, int64_t step = 1) : int64(data), size(count), stride(step) {}

  /// False for a view that was not given.
  explicit constexpr operator bool() const { return int32 != nullptr || int64 != nullptr; }
  constexpr int64_t operator[](int64_t i) const { return int64 != nullptr ? int64[i * stride] : int32[i * stride]; }
  /// Whether both are the same elements, wherever they come from.
  friend constexpr bool operator==(const LengthView& a, const LengthView& b) {
    return a.int32 == b.int32 && a.int64 == b.int64 && a.size == b.size && a.stride == b.stride;
  }
};

/// Borrowed contiguous elements.
template <class T>
struct View {
  T* data = nullptr;
  int64_t size = 0;  ///< number of elements

  /// False for a view that was not given.
  explicit constexpr operator bool() const { return data != nullptr; }
  friend constexpr bool operator==(const View& a, const View& b) { return a.data == b.data && a.size == b.size; }
};

/// Borrowed contiguous elements of an array of one or two dimensions, in order.
struct FlatView : View<int32_t> {};

/// A borrowed table whose rows are contiguous and `row_stride` elements apart.
template <class T>
struct TableView {
  T* data = nullptr;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t row_stride = cols;  ///< elements from one row to the next

  /// False for a table that was not given.
  explicit constexpr operator bool() const { return data != nullptr; }
  constexpr T* row(int64_t i) const { return data + i * row_stride; }
  friend constexpr bool operator==(const TableView& a, const TableView& b) {
    return a.data == b.data && a.rows == b.rows && a.cols == b.cols && a.row_stride == b.row_stride;
  }
};

}  // namespace nsa_kernel
