// What the kernels of replay read, and what each kernel assumes of it at compile time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "batch.h"
#include "nsa_kernel/replay.h"
#include "rules.h"
#include "scan.cuh"
#include "schedule.cuh"

namespace nsa_kernel::cuda {

/// Rows of a request that one copy task covers, at most.
constexpr int kMaxTaskRows = kShort;

/// Compile-time assumptions that hold for what engines pass: up to 512 requests, tables of aligned rows, distances of
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

/// No assumptions.
template <bool kSchedules_ = false>
struct GenericTraits {
  using Step = uint64_t;
  using Stride = uint64_t;
  static constexpr TokenCounts kCounts = TokenCounts::uniform_or_lengths;
  static constexpr bool kAligned = false;
  static constexpr bool kMany = true;
  static constexpr bool kSchedules = kSchedules_;
};

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

/// The first block of each role, in a row of the grid: those before `tokens` write one value a request.
struct Roles {
  unsigned tokens = 0;
  unsigned tables = 0;
  unsigned schedule = 0;  ///< and top-k plan; these roles divide themselves

  constexpr unsigned token_blocks() const { return tables - tokens; }
  constexpr unsigned table_blocks() const { return schedule - tables; }
};

/// In a small batch, the warps of the blocks that write lengths: first those of tokens, then those of requests, then
/// those of padding, which write what belongs to no token.
struct SmallBatchWarps {
  unsigned tokens = 0;
  unsigned token_shares = 0;  ///< warps that share the tokens of each request
  unsigned requests = 0;
  unsigned padding = 0;

  unsigned all() const { return tokens + requests + padding; }
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

/// Arguments are fetched by lines of 64 bytes, one after the other: what a warp of tables reads first stands first. On
/// an H100, three lines hold all that tables take with FastTraits.
template <class Traits_>
struct ReplayArguments {
  using Traits = Traits_;

  Roles roles;
  rules::Divisor bs_divisor;
  uint32_t start_stride;  ///< of overflow tasks, see assignment.cuh; here it fills a gap
  Batch<Traits::kCounts, typename Traits::Step> batch;
  Tables<Traits> tables;
  // Lengths.
  SmallBatchWarps small_batch;
  // One value a token.
  int32_t topk;
  TokenArray seqlens_expanded;
  TokenArray nsa_cache_seqlens;
  TokenArray nsa_cu_seqlens_k;      ///< from its second element on
  int32_t* nsa_cu_seqlens_k_start;  ///< this one and all after it may be null
  int32_t* num_tokens;
  // One value a request.
  int32_t* cache_seqlens;
  int32_t* cu_seqlens_k;
  TableRows<int32_t, typename Traits::Stride> ctx_lens_2d;
  [[no_unique_address]] std::conditional_t<Traits::kSchedules, ScheduleArguments<rules::SeqlenSplits>, Absent>
      schedules;

  using Request = typename decltype(batch)::Request;

  /// KV entries that the tables show of a request.
  __device__ int32_t entries(const Request& request) const { return batch.kv(request); }
};

}  // namespace nsa_kernel::cuda
