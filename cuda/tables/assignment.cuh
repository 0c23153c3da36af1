// Which warp does which copy task of the tables.
//
// The live columns of each request's rows are cut into tasks, of which one warp does one at a time. They are assigned
// in two phases.
//
// Static phase (FastTraits): each request has warps of its own, one for each of its first tasks. They know what to read
// as soon as they know their request.
//
// Overflow phase: the tasks of a long request beyond its static assignment are dealt round-robin over all table warps,
// from a start of the request's own. Starts are `start_stride` apart, so the tasks of like requests are spread evenly,
// those of a long request over all warps, and no warp needs to know of the tasks of others.
//
// What all requests are, a warp has to know only to count the rows before a ragged one, and to find overflow tasks. In
// a small batch, of up to one warp's width, each warp looks for itself; in a larger one, half the warps of a block, its
// scheduler warps, look for all.
//
// `Args` below has what an op passes to its kernel: Traits, roles, bs_divisor, start_stride, batch, tables, and
// entries(request), the number of KV entries that tables show of a request.
#pragma once

#include <type_traits>

#include "tables/copy.cuh"

namespace nsa_kernel::cuda {

/// Whether a block beyond those of lengths writes tables: where no schedule is asked for, all do.
template <class Args>
__device__ bool writes_tables(const Args& args, unsigned block) {
  return !Args::Traits::kSchedules || block < args.roles.schedule;
}

/// Whether a request has more rows than a task covers.
template <class Args>
__device__ bool exceeds_task_rows(const Args&, int32_t tokens) {
  return Args::Traits::kCounts != TokenCounts::uniform && __builtin_expect(tokens > kMaxTaskRows, false);
}

/// Whether a request has tasks beyond its static assignment.
template <class Args>
__device__ bool overflows(const Args& args, int32_t entries, int32_t tokens) {
  return entries > args.tables.assignment.max_entries || exceeds_task_rows(args, tokens);
}

/// The first overflow task of request `place` of its tile that `position` of `positions` does; the next are `positions`
/// apart.
template <class Args>
__device__ int first_overflow_task(const Args& args, int place, int position, int positions) {
  const uint32_t start = static_cast<uint32_t>(place) * args.start_stride;
  const int distance = position - static_cast<int>(__umulhi(start, positions));
  return distance < 0 ? distance + positions : distance;
}

/// A warp among those of all blocks that write tables: neighbours are in other blocks.
template <class Args>
__device__ int table_warp(const Args& args, unsigned block) {
  return threadIdx.x / kWarp * args.roles.table_blocks() + block;
}

/// The task that a warp has by static assignment. First come the first warps of all requests, for these are busy where
/// requests are short, each in another block than the one before.
template <class Shape, class Args>
class StaticTask {
 public:
  /// Starts to read what the request is.
  __device__ StaticTask(const Args& args, unsigned block)
      : args_(args),
        place_(args.bs_divisor.quotient(table_warp(args, block))),
        request_(table_warp(args, block) - place_ * args.batch.bs),
        lengths_(args.batch.read(request_)),
        source_row_(args.batch.read_source_row(request_)) {}

  /// Starts to read the columns. A request of more rows than a task covers has no static tasks.
  __device__ void load() {
    const auto& tables = args_.tables;
    const int32_t entries = args_.entries(lengths_);
    of_slots_ = place_ < tables.assignment.slot_warps;
    begin_ = of_slots_ ? place_ * Shape::kTaskSlots : (place_ - tables.assignment.slot_warps) * Shape::kTaskPages;
    end_ = tokens_ = 0;
    // A warp past the end of its request does no more: the warps of a multiprocessor take turns.
    const uint32_t first_slot = static_cast<uint32_t>(begin_) * (of_slots_ ? 1 : tables.page_size);
    if (place_ >= tables.assignment.warps || first_slot >= static_cast<uint32_t>(entries)) return;
    tokens_ = args_.batch.tokens(lengths_);
    if (tokens_ <= 0 || exceeds_task_rows(args_, tokens_)) return;
    const SourceRow source(tables, args_.batch.source_row(source_row_, tables.source.rows));
    if (of_slots_) {
      end_ = min(begin_ + Shape::kTaskSlots, tables.live_slots(entries));
      slots_.load(source, begin_, end_);
    } else {
      end_ = min(begin_ + Shape::kTaskPages, tables.live_pages(entries));
      pages_.load(source, begin_, end_, tables.page_size);
    }
  }

  /// `row_of(b)` is the row of the first token of request b.
  template <class RowOf>
  __device__ void store(RowOf row_of) const {
    if (end_ == 0) return;
    const auto& tables = args_.tables;
    const int32_t row = row_of(request_);
    if (of_slots_) {
      const int32_t rows = tables.slots.rows_from(row, tokens_);
      if (rows > 0) slots_.store(tables.slots, row, rows, begin_, end_);
    } else {
      const int32_t rows = tables.pages.rows_from(row, tokens_);
      if (rows > 0) pages_.store(tables.pages, row, rows, begin_, end_, tables.page_size_divisor);
    }
  }

 private:
  const Args& args_;
  int place_;  ///< of the warp among those of the request
  int request_;
  typename Args::Request lengths_;
  RawIndex source_row_;
  int32_t tokens_;
  bool of_slots_;
  int begin_, end_;  ///< columns; nothing to do where they end at 0
  SlotTask<Shape::kVectors> slots_;
  PageTask<Shape::kPages> pages_;
};

/// Of more than one tile of requests, no task is assigned statically.
struct NoStaticTask {
  template <class Args>
  __device__ NoStaticTask(const Args&, unsigned) {}
  __device__ void load() {}
  template <class RowOf>
  __device__ void store(RowOf) const {}
};

/// The tasks of a request beyond its static assignment: slots first_slot .. slots-1 and pages first_page .. pages-1 of
/// its rows.
template <class Shape>
struct alignas(16) OverflowTasks {
  int32_t first_slot, slots;
  int32_t first_page, pages;
  int32_t source_row;
  int32_t rows;  ///< at most as many as some table holds
  int32_t count;

  OverflowTasks() = default;

  template <class Args>
  __device__ OverflowTasks(const Args& args, int32_t entries, int32_t source_row, int32_t tokens)
      : source_row(source_row), rows(min(tokens, args.tables.rows())) {
    const bool exceeds = exceeds_task_rows(args, tokens);
    slots = args.tables.live_slots(entries);
    pages = args.tables.live_pages(entries);
    first_slot = exceeds ? 0 : min(args.tables.static_extent.slots, slots);
    first_page = exceeds ? 0 : min(args.tables.static_extent.pages, pages);
    count = rows > 0 ? slot_tasks() + page_tasks() : 0;
    if (exceeds) count *= (rows + (kMaxTaskRows - 1)) / kMaxTaskRows;
  }

  __device__ int32_t slot_tasks() const { return Shape::slot_tasks(slots - first_slot); }
  __device__ int32_t page_tasks() const { return Shape::page_tasks(pages - first_page); }

  __device__ OverflowTasks from_lane(int lane) const {
    OverflowTasks result;
    result.first_slot = __shfl_sync(kAllLanes, first_slot, lane);
    result.slots = __shfl_sync(kAllLanes, slots, lane);
    result.first_page = __shfl_sync(kAllLanes, first_page, lane);
    result.pages = __shfl_sync(kAllLanes, pages, lane);
    result.source_row = __shfl_sync(kAllLanes, source_row, lane);
    result.rows = __shfl_sync(kAllLanes, rows, lane);
    result.count = __shfl_sync(kAllLanes, count, lane);
    return result;
  }

  /// One warp does one of them; `row` is that of the request's first token.
  template <class Args>
  __device__ void run(const Args& args, int32_t row, int32_t task) const {
    int32_t task_rows = rows;
    if (exceeds_task_rows(args, rows)) {
      const int32_t each = slot_tasks() + page_tasks();
      const int32_t part = task / each;
      task -= part * each;
      row = rules::saturating_add(row, part * kMaxTaskRows);
      task_rows = min(rows - part * kMaxTaskRows, kMaxTaskRows);
    }
    const SourceRow source(args.tables, source_row);
    const int32_t page_task = task - slot_tasks();
    if (page_task < 0) {
      const int begin = first_slot + task * Shape::kTaskSlots, end = min(begin + Shape::kTaskSlots, slots);
      copy_slots<Shape::kVectors>(args.tables, source, row, task_rows, begin, end);
    } else {
      const int begin = first_page + page_task * Shape::kTaskPages, end = min(begin + Shape::kTaskPages, pages);
      copy_pages<Shape::kPages>(args.tables, source, row, task_rows, begin, end);
    }
  }
};

/// The tables of a small batch, each request of which every warp sees in one of its lanes.
template <class Shape, class OverflowShape, class Args>
__device__ void fill_tables_of_small_batch(const Args& args, unsigned block) {
  const auto& batch = args.batch;
  const int lane = threadIdx.x % kWarp, last = batch.bs - 1, seen = min(lane, last);
  // All that does not wait for another read is read first.
  StaticTask<Shape, Args> static_task(args, block);
  const auto request_seen = batch.read(seen);
  const int32_t entries_seen = args.entries(request_seen), tokens_seen = batch.tokens(request_seen);
  static_task.load();
  const auto row_of = [&](int request) {
    if (!batch.ragged()) return batch.uniform_tokens_before(request);
    return warp_sum(lane < request ? tokens_seen : 0);
  };
  if (__any_sync(kAllLanes, overflows(args, entries_seen, tokens_seen))) {
    const int32_t source_row = batch.source_row(batch.read_source_row(seen), args.tables.source.rows);
    const OverflowTasks<OverflowShape> tasks(args, entries_seen, source_row, lane <= last ? tokens_seen : 0);
    const int warps = args.roles.table_blocks() * (blockDim.x / kWarp);
    const int first = first_overflow_task(args, lane, table_warp(args, block), warps);
#pragma unroll 1
    for (unsigned pending = __ballot_sync(kAllLanes, first < tasks.count); pending != 0; pending &= pending - 1) {
      const int of = __ffs(pending) - 1;
      const OverflowTasks<OverflowShape> tasks_of = tasks.from_lane(of);
      const int32_t row = row_of(of);
#pragma unroll 1
      for (int task = __shfl_sync(kAllLanes, first, of); task < tasks_of.count; task += warps) {
        tasks_of.run(args, row, task);
      }
    }
  }
  static_task.store(row_of);
}

/// The last warps of a block, which have the fewest static tasks.
constexpr int kSchedulerWarps = 8;

constexpr int log2_of(int power_of_two) { return power_of_two == 1 ? 0 : 1 + log2_of(power_of_two / 2); }

/// The requests of a tile of which a block does overflow tasks, in any order.
template <class Shape, int kTile>
struct WorkList {
  OverflowTasks<Shape> tasks[kTile];
  int32_t first[kTile];    ///< of the block's tasks
  int32_t request[kTile];  ///< of the tile
  int count;
};

/// The warps of a block do the tasks on its list. First come the scheduler warps that see nothing of up to 128
/// requests, then the warps before them, for the first have more static tasks; last come the other scheduler warps.
/// Where the list is short, a power of two of warps divides the tasks of one request.
template <class Shape, int kTile, class Args, class RowOf>
__device__ void run_work_list(const Args& args, const WorkList<Shape, kTile>& list, RowOf row_of) {
  constexpr int kWarps = kTile / kWarp, kWarpsLog2 = log2_of(kWarps);
  const int warp = (kWarps - 1 - kSchedulerWarps / 2 - static_cast<int>(threadIdx.x / kWarp)) & (kWarps - 1);
  const int blocks = args.roles.table_blocks();
  const int each_log2 = max(kWarpsLog2 - (kWarp - __clz(list.count - 1)), 0);
  const int step = blocks << each_log2, first = (warp & ((1 << each_log2) - 1)) * blocks;
#pragma unroll 1
  for (int i = warp >> each_log2; i < list.count; i += 1 << kWarpsLog2 >> each_log2) {
    const OverflowTasks<Shape> tasks = list.tasks[i];
    const int32_t row = row_of(list.request[i]);
#pragma unroll 1
    for (int task = list.first[i] + first; task < tasks.count; task += step) tasks.run(args, row, task);
  }
}

/// What a scheduler warp sees of a tile: a few requests in each lane. Of other warps, nothing.
template <int kTile, class Args>
class SchedulerWarp {
 public:
  /// Starts to read the lengths.
  __device__ SchedulerWarp(const Args& args, const Tile& tile)
      : args_(args), tile_(tile), number_(kTile / kWarp - 1 - static_cast<int>(threadIdx.x / kWarp)) {
    if (number_ >= kSchedulerWarps) return;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      if (sees(i)) seen_[i] = args.batch.read(tile.begin + min(place(i), tile.requests - 1));
    }
  }

  /// Tells how many rows each request has, where they are ragged, and which overflow tasks are the block's.
  template <class Shape>
  __device__ void report(unsigned block, SumBefore<kTile, Args::Traits::kMany>& rows,
                         WorkList<Shape, kTile>& list) const {
    if (number_ >= kSchedulerWarps) return;
    const auto& batch = args_.batch;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      if (!sees(i)) continue;
      const bool exists = place(i) < tile_.requests;
      const int32_t entries = args_.entries(seen_[i]), tokens = exists ? batch.tokens(seen_[i]) : 0;
      if (batch.ragged()) rows.set(place(i), tokens);
      if (!exists || !overflows(args_, entries, tokens)) continue;
      const RawIndex source_row = batch.read_source_row(tile_.begin + place(i));
      const OverflowTasks<Shape> tasks(args_, entries, batch.source_row(source_row, args_.tables.source.rows), tokens);
      const int first = first_overflow_task(args_, place(i), block, args_.roles.table_blocks());
      if (first >= tasks.count) continue;
      const int at = atomicAdd(&list.count, 1);
      list.tasks[at] = tasks;
      list.first[at] = first;
      list.request[at] = place(i);
    }
  }

 private:
  static constexpr int kEach = kTile / kWarp / kSchedulerWarps;
  static_assert(kEach * kSchedulerWarps * kWarp == kTile);

  /// Places in the tile: of lane 0's request, which tells whether the warp sees any, and of this lane's.
  __device__ int first_place(int i) const { return (i * kSchedulerWarps + number_) * kWarp; }
  __device__ int place(int i) const { return first_place(i) + threadIdx.x % kWarp; }
  __device__ bool sees(int i) const { return first_place(i) < tile_.requests; }

  const Args& args_;
  const Tile& tile_;
  int number_;
  typename Args::Request seen_[kEach];
};

/// The tables of any number of requests.
template <class Shape, class OverflowShape, int kTile, class Args>
__device__ void fill_tables(const Args& args, unsigned block) {
  constexpr bool kMany = Args::Traits::kMany;
  const auto& batch = args.batch;
  __shared__ WorkList<OverflowShape, kTile> list;
  __shared__ typename SumBefore<kTile, kMany>::Shared shared;
  SumBefore<kTile, kMany> rows(shared);
  for_each_tile<kTile, kMany>(batch.bs, 0, 1, [&](const Tile& tile) {
    // All that does not wait for another read is read before anything waits.
    std::conditional_t<kMany, NoStaticTask, StaticTask<Shape, Args>> static_task(args, block);
    const SchedulerWarp<kTile, Args> scheduler(args, tile);
    if (batch.ragged()) {
      rows.enter(
          tile, [&](int earlier) { return batch.read(earlier); },
          [&](const auto& request) { return batch.tokens(request); });
    }
    if (threadIdx.x == 0) list.count = 0;
    __syncthreads();
    scheduler.report(block, rows, list);
    static_task.load();
    __syncthreads();
    const auto row_of = [&](int request) {
      return batch.ragged() ? rows.before(request) : batch.uniform_tokens_before(tile.begin + request);
    };
    if (list.count > 0) run_work_list(args, list, row_of);
    static_task.store(row_of);
    if constexpr (kMany) __syncthreads();
  });
}

}  // namespace nsa_kernel::cuda
