// Copy tasks: a part of the live columns of a request's row, which one warp reads once and stores to up to kMaxTaskRows
// rows of a table.
#pragma once

#include "tables/arguments.cuh"

namespace nsa_kernel::cuda {

/// How many elements each lane has of a task.
template <int kVectors_, int kPages_>
struct CopyShape {
  static constexpr int kVectors = kVectors_;  ///< of four slots
  static constexpr int kPages = kPages_;
  static constexpr int kTaskSlots = kWarp * 4 * kVectors;
  static constexpr int kTaskPages = kWarp * kPages;

  static constexpr int32_t slot_tasks(uint32_t slots) { return (slots + (kTaskSlots - 1)) / kTaskSlots; }
  static constexpr int32_t page_tasks(uint32_t pages) { return (pages + (kTaskPages - 1)) / kTaskPages; }
};

/// A request's row of the source table. Outside the table it holds zeros.
struct SourceRow {
  const int32_t* data;
  int32_t index;

  template <class Traits>
  __device__ SourceRow(const Tables<Traits>& tables, int32_t index)
      : data(tables.source.row(max(index, 0))), index(index) {}

  __device__ bool exists() const { return index >= 0; }
};

/// Calls `store(out)` with the start of each of the `rows` rows from `row` on, at least one. A task without rows is not
/// read: the next one would have to wait for it, since no store has.
template <class Table, class Store>
__device__ void for_each_row(const Table& table, int32_t row, int32_t rows, Store store) {
  int32_t* out = table.row(row);
#pragma unroll 1
  do {
    store(out);
    out = table.below(out);
  } while (--rows > 0);
}

/// Slots begin .. end-1 of a request's row, in the registers of a warp: 16 bytes an access, but for up to three at the
/// end. Rows are aligned, and so is `begin`.
template <int kVectors>
struct SlotTask {
  int4 vectors[kVectors];
  int32_t last;

  __device__ static unsigned at(unsigned begin, int i) { return begin + (threadIdx.x % kWarp + kWarp * i) * 4; }
  __device__ static bool has_last(unsigned end) { return threadIdx.x % kWarp < end % 4; }
  __device__ static unsigned at_last(unsigned end) { return end / 4 * 4 + threadIdx.x % kWarp; }

  __device__ void load(const SourceRow& source, unsigned begin, unsigned end) {
    if (!source.exists()) end = 0;
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      vectors[i] = int4{};
      if (at(begin, i) + 4 <= end) vectors[i] = *reinterpret_cast<const int4*>(source.data + at(begin, i));
    }
    last = has_last(end) ? source.data[at_last(end)] : 0;
  }

  template <class Table>
  __device__ void store(const Table& table, int32_t row, int32_t rows, unsigned begin, unsigned end) const {
    for_each_row(table, row, rows, [&](int32_t* out) {
#pragma unroll
      for (int i = 0; i < kVectors; ++i) {
        if (at(begin, i) + 4 <= end) *reinterpret_cast<int4*>(out + at(begin, i)) = vectors[i];
      }
      if (has_last(end)) out[at_last(end)] = last;
    });
  }
};

/// Pages begin .. end-1 of a request: the slots that they start with, up to kPages a lane. With pages of one slot,
/// these are slots of any alignment.
template <int kPages>
struct PageTask {
  int32_t slots[kPages];

  __device__ static unsigned at(unsigned begin, int i) { return begin + threadIdx.x % kWarp + kWarp * i; }

  __device__ void load(const SourceRow& source, unsigned begin, unsigned end, uint32_t page_size) {
    if (!source.exists()) end = 0;
#pragma unroll
    for (int i = 0; i < kPages; ++i) {
      slots[i] = at(begin, i) < end ? source.data[uint64_t{at(begin, i)} * page_size] : 0;
    }
  }

  template <class Table>
  __device__ void store(const Table& table, int32_t row, int32_t rows, unsigned begin, unsigned end,
                        const rules::Divisor& page_size) const {
    int32_t pages[kPages];
#pragma unroll
    for (int i = 0; i < kPages; ++i) pages[i] = rules::page_id(slots[i], page_size);
    for_each_row(table, row, rows, [&](int32_t* out) {
#pragma unroll
      for (int i = 0; i < kPages; ++i) {
        if (at(begin, i) < end) out[at(begin, i)] = pages[i];
      }
    });
  }
};

/// Loads and stores slots begin .. end-1 for `rows` rows from `row` on, as far as the table has them.
template <int kVectors, class Traits>
__device__ void copy_slots(const Tables<Traits>& tables, const SourceRow& source, int32_t row, int32_t rows, int begin,
                           int end) {
  rows = tables.slots.rows_from(row, rows);
  if (rows <= 0) return;
  if (Traits::kAligned || tables.aligned) {
    SlotTask<kVectors> task;
    task.load(source, begin, end);
    task.store(tables.slots, row, rows, begin, end);
  } else {
    PageTask<4 * kVectors> task;
    task.load(source, begin, end, 1);
    task.store(tables.slots, row, rows, begin, end, rules::Divisor(1));
  }
}

/// The same of pages.
template <int kPages, class Traits>
__device__ void copy_pages(const Tables<Traits>& tables, const SourceRow& source, int32_t row, int32_t rows, int begin,
                           int end) {
  rows = tables.pages.rows_from(row, rows);
  if (rows <= 0) return;
  PageTask<kPages> task;
  task.load(source, begin, end, tables.page_size);
  task.store(tables.pages, row, rows, begin, end, tables.page_size_divisor);
}

}  // namespace nsa_kernel::cuda
