// The tables of a launch, and what a kernel assumes of them and of the batch at compile time.
#pragma once

#include <cstdint>

#include "batch.h"
#include "rules.h"
#include "scan.cuh"
#include "views.cuh"

namespace nsa_kernel::cuda {

/// Rows of a request that one copy task covers, at most.
constexpr int kMaxTaskRows = kShort;

/// Compile-time assumptions that hold for what engines pass: one tile of requests, tables of aligned rows, distances of
/// up to 32 bits. Where counts are uniform, they are up to kMaxTaskRows.
template <TokenCounts kValue, bool kSchedules_ = false>
struct FastTraits {
  using Step = uint32_t;
  using Stride = uint32_t;
  static constexpr TokenCounts kCounts = kValue;
  static constexpr bool kAligned = true;
  static constexpr bool kMany = false;             ///< more than one tile of requests
  static constexpr bool kSchedules = kSchedules_;  ///< a schedule or top-k plan is asked for
};

/// No assumptions but on where the counts are.
template <TokenCounts kValue, bool kSchedules_ = false>
struct GenericTraits {
  using Step = uint64_t;
  using Stride = uint64_t;
  static constexpr TokenCounts kCounts = kValue;
  static constexpr bool kAligned = false;
  static constexpr bool kMany = true;
  static constexpr bool kSchedules = kSchedules_;
};

/// The static assignment: warps that the tables of each request have to themselves, see assignment.cuh.
struct StaticAssignment {
  int32_t warps = 0;
  int32_t slot_warps = 0;   ///< the first of them, which have a task of slots each; the others have one of pages
  int32_t max_entries = 0;  ///< KV entries of a request up to which they are enough
};

/// A part of a request's rows, from their start.
struct Extent {
  int32_t slots = 0;
  int32_t pages = 0;
};

/// The tables of a launch: where rows come from, and where they go.
template <class Traits>
struct Tables {
  StaticAssignment assignment;
  Extent max_extent;  ///< live at most, however long the request
  uint32_t page_size;
  TableRows<const int32_t, typename Traits::Stride> source;
  rules::Divisor page_size_divisor;
  TableRows<int32_t, typename Traits::Stride> slots;
  TableRows<int32_t, typename Traits::Stride> pages;
  Extent static_extent;  ///< what the static assignment covers of a request, at most
  bool aligned;          ///< every row of source and slots starts at a multiple of 16 bytes

  /// rules::live_slots and rules::live_pages of a request of so many KV entries.
  __device__ int32_t live_slots(int32_t entries) const { return min(entries, max_extent.slots); }
  __device__ int32_t live_pages(int32_t entries) const {
    return min(rules::page_count(entries, page_size_divisor), max_extent.pages);
  }
  /// Rows of the longer table.
  constexpr int32_t rows() const { return slots.rows > pages.rows ? slots.rows : pages.rows; }
};

}  // namespace nsa_kernel::cuda
