// The launcher's side of tables: how many blocks they get, and which warps each request has to itself.
#pragma once

#include <cstdint>
#include <numeric>

#include "batch.h"
#include "grid.h"
#include "launch.h"
#include "rules.h"
#include "tables/arguments.cuh"
#include "tables/copy.cuh"

namespace nsa_kernel::cuda {

// A small batch, of up to one warp's width of requests.
constexpr int kSmallBatchBlock = 128;
// A larger one.
constexpr int kTile = 512;
constexpr int kBlocksPerMultiprocessor = 2;
using LargeBatchShape = CopyShape<3, 2>;
// Overflow tasks of either, of which plans take care that there are less than 2**31.
using OverflowShape = CopyShape<2, 1>;
static_assert(OverflowShape::kTaskSlots >= kLeastTaskSlots && OverflowShape::kTaskPages >= kLeastTaskPages &&
              kMaxTaskRows >= kLeastTaskRows && kTile <= kMostRequestsCounted);

/// Where the overflow tasks of the second request of a tile start, as a part of 2**32 of all table warps: starts are
/// evenly spaced, and those of consecutive requests far apart.
inline uint32_t start_stride(int64_t requests) {
  int64_t apart = requests * 5 / 8;
  while (std::gcd(apart, requests) > 1) ++apart;
  return static_cast<uint32_t>((apart << 32) / rules::max(requests, 1));
}

/// Divides up to about `warps` warps among the requests: as many for each as its widest rows can use.
template <class Shape, class Traits>
void assign_statically(Tables<Traits>& tables, int64_t bs, int64_t warps) {
  const int64_t slot_tasks = Shape::slot_tasks(tables.max_extent.slots);
  const int64_t page_tasks = Shape::page_tasks(tables.max_extent.pages);
  const int64_t tasks = slot_tasks + page_tasks;
  const int64_t each = rules::min(rules::max(warps / bs, 2), tasks);
  const int64_t page_warps = rules::min(rules::ceil_div(each * page_tasks, rules::max(tasks, 1)), page_tasks);
  const int64_t slot_warps = each - page_warps;
  const int64_t slots = slot_warps * Shape::kTaskSlots, pages = page_warps * Shape::kTaskPages;
  const int64_t slot_entries = slot_warps < slot_tasks ? slots : rules::kMaxStored;
  const int64_t page_entries = page_warps < page_tasks ? pages * tables.page_size : rules::kMaxStored;
  tables.assignment = {.warps = static_cast<int32_t>(each),
                       .slot_warps = static_cast<int32_t>(slot_warps),
                       .max_entries = static_cast<int32_t>(rules::min(slot_entries, page_entries))};
  tables.static_extent = {.slots = static_cast<int32_t>(slots), .pages = static_cast<int32_t>(pages)};
}

/// Overflow tasks of a tile of requests for which there must be blocks beside those of the static assignment, at most:
/// all of a batch of many tiles, those of requests that exceed the rows of a task in any other.
template <class Traits>
int64_t max_overflow_tasks(const Tables<Traits>& tables, int64_t bs) {
  const int64_t each =
      OverflowShape::slot_tasks(tables.max_extent.slots) + OverflowShape::page_tasks(tables.max_extent.pages);
  if constexpr (Traits::kMany) return each * (rules::min(bs, kTile) + tables.rows() / kMaxTaskRows);
  return Traits::kCounts != TokenCounts::uniform ? each * (tables.rows() / kMaxTaskRows) : 0;
}

/// Blocks for tables, where about `limit` run at once beside those of other roles.
template <class Shape, class Args>
int64_t table_blocks(Args& args, int64_t warps_of_block, int64_t limit) {
  int64_t static_blocks = 1;
  if constexpr (!Args::Traits::kMany) {
    assign_statically<Shape>(args.tables, args.batch.bs, limit * warps_of_block);
    static_blocks = rules::ceil_div(int64_t{args.tables.assignment.warps} * args.batch.bs, warps_of_block);
  }
  const int64_t overflow_tasks = max_overflow_tasks(args.tables, args.batch.bs);
  const Grid overflow(args.batch.bs, kTile, rules::ceil_div(overflow_tasks, warps_of_block), limit);
  return rules::max(static_blocks, overflow.shares);
}

/// Not many more blocks for tables than run at once beside the others: one that has to wait takes twice the time.
inline int64_t table_block_limit(int64_t at_once, int64_t other_blocks) {
  return rules::max(at_once - other_blocks, rules::ceil_div(at_once, 2));
}

/// Whether every row starts at a multiple of 16 bytes.
template <class T>
bool rows_are_aligned(const TableView<T>& table) {
  return reinterpret_cast<uintptr_t>(table.data) % 16 == 0 && (table.row_stride % 4 == 0 || table.rows <= 1);
}

// Whether distances are those of FastTraits.

template <class T>
bool is_near(const TableView<T>& table) {
  const int64_t bytes = TableRows<T, uint32_t>::stride_bytes(table);
  return bytes >= 0 && bytes < int64_t{1} << 32;
}

inline bool is_near(const LengthView& view) {
  const int64_t bytes = IndexArray<>::step_bytes(view);
  return bytes >= 0 && bytes <= rules::kMaxStored;
}

}  // namespace nsa_kernel::cuda
