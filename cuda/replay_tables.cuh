// The tables of replay.
//
// The live part of each request's rows is cut into units, of which one warp does one at a time: a span of slots, or of
// pages, of up to kUnitRows rows.
//
// Where arguments are Plain, each request has warps of its own, one for each of its first units: they know what to read
// as soon as they know their request. What a long request leaves over, all warps share: they form a ring, in which each
// request has a home, from where those units go round. Homes are apart, so the units of like requests are spread
// evenly, those of a long request over all warps, and no warp needs to know of the units of others.
//
// What all requests are, a warp has to know only to count the rows before a ragged one, and to find what is left over.
// Of up to one warp's width of requests, each warp looks for itself; of more, half the warps of a block, its scouts,
// look for all.
#pragma once

#include <type_traits>

#include "replay_args.cuh"

namespace nsa_kernel::cuda {

/// How many elements each lane has of a unit.
template <int kVectors_, int kPages_>
struct UnitSize {
  static constexpr int kVectors = kVectors_;  ///< of four slots
  static constexpr int kPages = kPages_;
  static constexpr int kUnitSlots = kWarp * 4 * kVectors;
  static constexpr int kUnitPages = kWarp * kPages;

  static constexpr int32_t slot_units(uint32_t slots) { return (slots + (kUnitSlots - 1)) / kUnitSlots; }
  static constexpr int32_t page_units(uint32_t pages) { return (pages + (kUnitPages - 1)) / kUnitPages; }
};

/// Whether a request has more rows than a unit covers.
template <class Form>
__device__ bool is_tall(const Args<Form>&, int32_t tokens) {
  return Form::kCounts != TokenCounts::uniform && __builtin_expect(tokens > kUnitRows, false);
}

/// Whether a request's own warps leave units over.
template <class Form>
__device__ bool leaves_units(const Args<Form>& args, int32_t kv, int32_t tokens) {
  return kv > args.own.kv || is_tall(args, tokens);
}

/// How far on a ring `position` is from the home of request `place` of its tile.
template <class Form>
__device__ int ring_distance(const Args<Form>& args, int place, int position, int ring) {
  const int distance = position - static_cast<int>(__umulhi(static_cast<uint32_t>(place) * args.home_step, ring));
  return distance < 0 ? distance + ring : distance;
}

/// A warp among those of all blocks that write tables: neighbours are in other blocks.
template <class Form>
__device__ int table_warp(const Args<Form>& args, unsigned block) {
  return threadIdx.x / kWarp * args.table_blocks + block;
}

/// A request's row of req_to_token. Outside the pool it holds zeros.
struct Source {
  const int32_t* row;
  int32_t pool_row;

  template <class Form>
  __device__ Source(const Args<Form>& args, int32_t pool_row)
      : row(args.req_to_token.row(max(pool_row, 0))), pool_row(pool_row) {}

  __device__ bool in_pool() const { return pool_row >= 0; }
};

/// Calls `store(out)` with the start of each of the `rows` rows from `row` on, at least one. A unit without rows is not
/// read: the next unit would have to wait for it, since no store has.
template <class Table, class Store>
__device__ void for_each_row(const Table& table, int32_t row, int32_t rows, Store store) {
  int32_t* out = table.row(row);
#pragma unroll 1
  do {
    store(out);
    out = table.below(out);
  } while (--rows > 0);
}

/// Elements begin .. end-1 of the live part of a request's row, in the registers of a warp: 16 bytes an access, but for
/// up to three elements at the end. Rows are aligned, and so is `begin`.
template <int kVectors>
struct SlotUnit {
  int4 vectors[kVectors];
  int32_t last;

  __device__ static unsigned at(unsigned begin, int i) { return begin + (threadIdx.x % kWarp + kWarp * i) * 4; }
  __device__ static bool has_last(unsigned end) { return threadIdx.x % kWarp < end % 4; }
  __device__ static unsigned at_last(unsigned end) { return end / 4 * 4 + threadIdx.x % kWarp; }

  __device__ void load(const Source& source, unsigned begin, unsigned end) {
    if (!source.in_pool()) end = 0;
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      vectors[i] = int4{};
      if (at(begin, i) + 4 <= end) vectors[i] = *reinterpret_cast<const int4*>(source.row + at(begin, i));
    }
    last = has_last(end) ? source.row[at_last(end)] : 0;
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

/// The same, of any alignment.
template <int kVectors>
struct OddSlotUnit {
  static constexpr int kSlots = 4 * kVectors;
  int32_t slots[kSlots];

  __device__ static unsigned at(unsigned begin, int i) { return begin + threadIdx.x % kWarp + kWarp * i; }

  __device__ void load(const Source& source, unsigned begin, unsigned end) {
    if (!source.in_pool()) end = 0;
#pragma unroll
    for (int i = 0; i < kSlots; ++i) slots[i] = at(begin, i) < end ? source.row[at(begin, i)] : 0;
  }

  template <class Table>
  __device__ void store(const Table& table, int32_t row, int32_t rows, unsigned begin, unsigned end) const {
    for_each_row(table, row, rows, [&](int32_t* out) {
#pragma unroll
      for (int i = 0; i < kSlots; ++i) {
        if (at(begin, i) < end) out[at(begin, i)] = slots[i];
      }
    });
  }
};

/// Pages begin .. end-1 of a request: the slots that they start with, up to kPages a lane.
template <int kPages>
struct PageUnit {
  int32_t slots[kPages];

  __device__ static unsigned at(unsigned begin, int i) { return begin + threadIdx.x % kWarp + kWarp * i; }

  __device__ void load(const Source& source, unsigned begin, unsigned end, uint32_t page_size) {
    if (!source.in_pool()) end = 0;
#pragma unroll
    for (int i = 0; i < kPages; ++i) {
      slots[i] = at(begin, i) < end ? source.row[uint64_t{at(begin, i)} * page_size] : 0;
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

/// The first unit that a warp does: one of those that a request's own warps do. First come the first warps of all
/// requests, for these are busy where requests are short, each in another block than the one before.
template <class Size, class Form>
class OwnUnit {
 public:
  /// Starts to read what the request is.
  __device__ OwnUnit(const Args<Form>& args, unsigned block)
      : args_(args),
        place_(args.bs_divisor.quotient(table_warp(args, block))),
        request_(table_warp(args, block) - place_ * args.bs),
        lengths_(args.read(request_)),
        pool_index_(args.req_pool_indices.read(request_)) {}

  /// Starts to read the unit. A tall request has no units of its own.
  __device__ void load() {
    const int32_t kv = args_.kv(lengths_);
    of_slots_ = place_ < args_.own.slot_warps;
    begin_ = of_slots_ ? place_ * Size::kUnitSlots : (place_ - args_.own.slot_warps) * Size::kUnitPages;
    end_ = 0;
    // A warp past the end of its request does no more for a unit of its own: the warps of a multiprocessor take turns.
    const uint32_t first_slot = static_cast<uint32_t>(begin_) * (of_slots_ ? 1 : args_.page_size);
    if (place_ >= args_.own.each || first_slot >= static_cast<uint32_t>(kv)) return;
    tokens_ = args_.tokens(lengths_);
    if (tokens_ <= 0 || is_tall(args_, tokens_)) return;
    const Source source(args_, args_.pool_row(pool_index_));
    if (of_slots_) {
      end_ = min(begin_ + Size::kUnitSlots, args_.live_slots(kv));
      slots_.load(source, begin_, end_);
    } else {
      end_ = min(begin_ + Size::kUnitPages, args_.live_pages(kv));
      pages_.load(source, begin_, end_, args_.page_size);
    }
  }

  /// `row_of(b)` is the row of the first token of request b.
  template <class RowOf>
  __device__ void store(RowOf row_of) const {
    if (end_ == 0) return;
    const int32_t row = row_of(request_);
    if (of_slots_) {
      const int32_t rows = args_.page_table.rows_from(row, tokens_);
      if (rows > 0) slots_.store(args_.page_table, row, rows, begin_, end_);
    } else {
      const int32_t rows = args_.real_page_table.rows_from(row, tokens_);
      if (rows > 0) pages_.store(args_.real_page_table, row, rows, begin_, end_, args_.page_size_divisor);
    }
  }

 private:
  const Args<Form>& args_;
  int place_;  ///< of the warp among those of the request
  int request_;
  Request lengths_;
  Words pool_index_;
  int32_t tokens_;
  bool of_slots_;
  int begin_, end_;  ///< of the unit; nothing to do where it ends at 0
  SlotUnit<Size::kVectors> slots_;
  PageUnit<Size::kPages> pages_;
};

/// Of many requests, no warp has one for its own.
struct NoUnit {
  template <class Form>
  __device__ NoUnit(const Args<Form>&, unsigned) {}
  __device__ void load() {}
  template <class RowOf>
  __device__ void store(RowOf) const {}
};

/// What a request's own warps leave over: slots first_slot .. slots-1 and pages first_page .. pages-1 of its rows.
template <class Size>
struct alignas(16) LeftUnits {
  int32_t first_slot, slots;
  int32_t first_page, pages;
  int32_t pool_row;
  int32_t rows;  ///< at most as many as some table holds
  int32_t count;

  LeftUnits() = default;

  template <class Form>
  __device__ LeftUnits(const Args<Form>& args, int32_t kv, int32_t pool_row, int32_t tokens)
      : pool_row(pool_row), rows(min(tokens, args.table_rows)) {
    const bool tall = is_tall(args, tokens);
    slots = args.live_slots(kv);
    pages = args.live_pages(kv);
    first_slot = tall ? 0 : min(args.own_part.slots, slots);
    first_page = tall ? 0 : min(args.own_part.pages, pages);
    count = rows > 0 ? slot_units() + page_units() : 0;
    if (tall) count *= (rows + (kUnitRows - 1)) / kUnitRows;
  }

  __device__ int32_t slot_units() const { return Size::slot_units(slots - first_slot); }
  __device__ int32_t page_units() const { return Size::page_units(pages - first_page); }

  __device__ LeftUnits from_lane(int lane) const {
    LeftUnits result;
    result.first_slot = __shfl_sync(kAllLanes, first_slot, lane);
    result.slots = __shfl_sync(kAllLanes, slots, lane);
    result.first_page = __shfl_sync(kAllLanes, first_page, lane);
    result.pages = __shfl_sync(kAllLanes, pages, lane);
    result.pool_row = __shfl_sync(kAllLanes, pool_row, lane);
    result.rows = __shfl_sync(kAllLanes, rows, lane);
    result.count = __shfl_sync(kAllLanes, count, lane);
    return result;
  }

  /// One warp does one of them; `row` is that of the request's first token.
  template <class Form>
  __device__ void fill(const Args<Form>& args, int32_t row, int32_t unit) const {
    int32_t part_rows = rows;
    if (is_tall(args, rows)) {
      const int32_t each = slot_units() + page_units();
      const int32_t part = unit / each;
      unit -= part * each;
      row = rules::saturating_add(row, part * kUnitRows);
      part_rows = min(rows - part * kUnitRows, kUnitRows);
    }
    const Source source(args, pool_row);
    const int32_t page_unit = unit - slot_units();
    if (page_unit < 0) {
      const int begin = first_slot + unit * Size::kUnitSlots, end = min(begin + Size::kUnitSlots, slots);
      if (Form::kAligned || args.aligned) {
        copy<SlotUnit<Size::kVectors>>(args, source, row, part_rows, begin, end);
      } else {
        copy<OddSlotUnit<Size::kVectors>>(args, source, row, part_rows, begin, end);
      }
    } else {
      const int begin = first_page + page_unit * Size::kUnitPages, end = min(begin + Size::kUnitPages, pages);
      part_rows = args.real_page_table.rows_from(row, part_rows);
      if (part_rows <= 0) return;
      PageUnit<Size::kPages> read;
      read.load(source, begin, end, args.page_size);
      read.store(args.real_page_table, row, part_rows, begin, end, args.page_size_divisor);
    }
  }

 private:
  template <class Unit, class Form>
  __device__ static void copy(const Args<Form>& args, const Source& source, int32_t row, int32_t rows, int begin,
                              int end) {
    rows = args.page_table.rows_from(row, rows);
    if (rows <= 0) return;
    Unit unit;
    unit.load(source, begin, end);
    unit.store(args.page_table, row, rows, begin, end);
  }
};

/// The tables of up to one warp's width of requests, each of which every warp sees in one of its lanes.
template <class Size, class LeftSize, class Form>
__device__ void fill_few_tables(const Args<Form>& args, unsigned block) {
  const int lane = threadIdx.x % kWarp, last = args.bs - 1, seen = min(lane, last);
  // All that does not wait for another read is read first.
  OwnUnit<Size, Form> own(args, block);
  const Request request_seen = args.read(seen);
  const int32_t kv_seen = args.kv(request_seen), tokens_seen = args.tokens(request_seen);
  own.load();
  const auto row_of = [&](int request) {
    if (!args.ragged()) return args.uniform_tokens_before(request);
    return warp_sum(lane < request ? tokens_seen : 0);
  };
  if (__any_sync(kAllLanes, leaves_units(args, kv_seen, tokens_seen))) {
    const LeftUnits<LeftSize> left(args, kv_seen, args.pool_row(args.req_pool_indices.read(seen)),
                                   lane <= last ? tokens_seen : 0);
    const int ring = args.table_blocks * (blockDim.x / kWarp);
    const int unit = ring_distance(args, lane, table_warp(args, block), ring);
#pragma unroll 1
    for (unsigned found = __ballot_sync(kAllLanes, unit < left.count); found != 0; found &= found - 1) {
      const int of = __ffs(found) - 1;
      const LeftUnits<LeftSize> left_of = left.from_lane(of);
      const int32_t row = row_of(of);
#pragma unroll 1
      for (int u = __shfl_sync(kAllLanes, unit, of); u < left_of.count; u += ring) left_of.fill(args, row, u);
    }
  }
  own.store(row_of);
}

/// The last warps of a block, which have the fewest units of their own, look at all requests of a tile for the block.
constexpr int kScouts = 8;

constexpr int log2_of(int power_of_two) { return power_of_two == 1 ? 0 : 1 + log2_of(power_of_two / 2); }

/// The requests of a tile of which a block does units that are left over, in any order.
template <class Size, int kTile>
struct Found {
  LeftUnits<Size> left[kTile];
  int32_t unit[kTile];     ///< first of them
  int32_t request[kTile];  ///< of the tile
  int count;
};

/// The warps of a block do the units that it found. First come the scouts that see nothing of up to 128 requests, then
/// the warps before them, for the first have more units of their own; last come the other scouts. Where the block found
/// few requests, a power of two of warps divides the units of one.
template <class Size, int kTile, class Form, class RowOf>
__device__ void fill_found(const Args<Form>& args, const Found<Size, kTile>& found, RowOf row_of) {
  constexpr int kWarps = kTile / kWarp, kWarpsLog2 = log2_of(kWarps);
  const int warp = (kWarps - 1 - kScouts / 2 - static_cast<int>(threadIdx.x / kWarp)) & (kWarps - 1);
  const int ring = args.table_blocks;
  const int each_log2 = max(kWarpsLog2 - (kWarp - __clz(found.count - 1)), 0);
  const int step = ring << each_log2, first = (warp & ((1 << each_log2) - 1)) * ring;
#pragma unroll 1
  for (int i = warp >> each_log2; i < found.count; i += 1 << kWarpsLog2 >> each_log2) {
    const LeftUnits<Size> left = found.left[i];
    const int32_t row = row_of(found.request[i]);
#pragma unroll 1
    for (int u = found.unit[i] + first; u < left.count; u += step) left.fill(args, row, u);
  }
}

/// What one warp sees of a tile, where it is a scout: a few requests in each lane.
template <int kTile, class Form>
class Scout {
 public:
  /// Starts to read the lengths.
  __device__ Scout(const Args<Form>& args, const Tile& tile)
      : args_(args), tile_(tile), scout_(kTile / kWarp - 1 - static_cast<int>(threadIdx.x / kWarp)) {
    if (scout_ >= kScouts) return;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      if (sees(i)) seen_[i] = args.read(tile.begin + min(place(i), tile.requests - 1));
    }
  }

  /// Tells how many rows each request has, where they are ragged, and which units that are left over are the block's.
  template <class Size>
  __device__ void report(unsigned block, SumBefore<kTile, Form::kMany>& rows, Found<Size, kTile>& found) const {
    if (scout_ >= kScouts) return;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      if (!sees(i)) continue;
      const bool exists = place(i) < tile_.requests;
      const int32_t kv = args_.kv(seen_[i]), tokens = exists ? args_.tokens(seen_[i]) : 0;
      if (args_.ragged()) rows.set(place(i), tokens);
      if (!exists || !leaves_units(args_, kv, tokens)) continue;
      const Words pool_index = args_.req_pool_indices.read(tile_.begin + place(i));
      const LeftUnits<Size> left(args_, kv, args_.pool_row(pool_index), tokens);
      const int unit = ring_distance(args_, place(i), block, args_.table_blocks);
      if (unit >= left.count) continue;
      const int at = atomicAdd(&found.count, 1);
      found.left[at] = left;
      found.unit[at] = unit;
      found.request[at] = place(i);
    }
  }

 private:
  static constexpr int kEach = kTile / kWarp / kScouts;
  static_assert(kEach * kScouts * kWarp == kTile);

  /// Places in the tile: of lane 0's request, which tells whether the warp sees any, and of this lane's.
  __device__ int first_place(int i) const { return (i * kScouts + scout_) * kWarp; }
  __device__ int place(int i) const { return first_place(i) + threadIdx.x % kWarp; }
  __device__ bool sees(int i) const { return first_place(i) < tile_.requests; }

  const Args<Form>& args_;
  const Tile& tile_;
  int scout_;
  Request seen_[kEach];
};

/// The tables of any number of requests.
template <class Size, class LeftSize, int kTile, class Form>
__device__ void fill_tables(const Args<Form>& args, unsigned block) {
  constexpr bool kMany = Form::kMany;
  __shared__ Found<LeftSize, kTile> found;
  __shared__ typename SumBefore<kTile, kMany>::Shared shared;
  SumBefore<kTile, kMany> rows(shared);
  for_each_tile<kTile, kMany>(args.bs, 0, 1, [&](const Tile& tile) {
    // All that does not wait for another read is read before anything waits.
    std::conditional_t<kMany, NoUnit, OwnUnit<Size, Form>> own(args, block);
    const Scout<kTile, Form> scout(args, tile);
    if (args.ragged()) {
      rows.enter(
          tile, [&](int earlier) { return args.read(earlier); },
          [&](const Request& request) { return args.tokens(request); });
    }
    if (threadIdx.x == 0) found.count = 0;
    __syncthreads();
    scout.report(block, rows, found);
    own.load();
    __syncthreads();
    const auto row_of = [&](int request) {
      return args.ragged() ? rows.before(request) : args.uniform_tokens_before(tile.begin + request);
    };
    if (found.count > 0) fill_found(args, found, row_of);
    own.store(row_of);
    if constexpr (kMany) __syncthreads();
  });
}

}  // namespace nsa_kernel::cuda
