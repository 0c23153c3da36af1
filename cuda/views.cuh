// Borrowed memory as kernels see it.
#pragma once

#include <cstdint>

#include "nsa_kernel/types.h"
#include "rules.h"

namespace nsa_kernel::cuda {

/// The rows of a table; none where it is absent.
template <class T, class Stride>
struct TableRows {
  T* data;
  Stride row_bytes;  ///< from one row to the next
  int32_t rows;

  explicit TableRows(const TableView<T>& table)
      : data(table.data), row_bytes(static_cast<Stride>(stride_bytes(table))), rows(rules::saturated(table.rows)) {}

  static int64_t stride_bytes(const TableView<T>& table) { return table.row_stride * static_cast<int64_t>(sizeof(T)); }

  /// How many of `count` rows from `first` on it has; below 1: none.
  __device__ int32_t rows_from(int32_t first, int32_t count) const { return min(count, rows - first); }
  __device__ T* row(int32_t i) const { return below(data, static_cast<uint32_t>(i)); }
  __device__ T* below(T* at, uint64_t rows_on = 1) const {
    return reinterpret_cast<T*>(const_cast<char*>(reinterpret_cast<const char*>(at)) + rows_on * row_bytes);
  }
};

/// One value a token, for the first `size` of them.
struct TokenArray {
  int32_t* data;
  int32_t size;

  explicit TokenArray(const View<int32_t>& view, int64_t skipped = 0)
      : data(view.data + skipped), size(rules::saturated(rules::max(view.size - skipped, 0))) {}

  __device__ void store(int32_t t, int32_t value) const {
    if (t < size) data[t] = value;
  }
};

}  // namespace nsa_kernel::cuda
