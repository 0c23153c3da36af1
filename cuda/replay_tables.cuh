// The tables of replay.
//
// The live part of each request's rows is cut into units, of which one warp does one at a time: a span of slots, or of
// pages. In ragged batches, a unit covers up to kUnitRows rows.
#pragma once

#include "replay_args.cuh"

namespace nsa_kernel::cuda {

constexpr int kUnitPages = kWarp;
constexpr int kUnitRows = kShort;

/// Slots of a unit in which each lane makes kVectors 16-byte accesses.
template <int kVectors>
constexpr int kUnitSlots = kWarp * 4 * kVectors;

/// The live part of one request's rows.
struct Live {
  int32_t slots;
  int32_t pages;

  template <class Form>
  static constexpr Live of(const Args<Form>& args, int32_t kv) {
    const int32_t width = args.req_to_token.width;
    return {rules::live_slots(kv, width, args.page_table.width),
            rules::live_pages(kv, width, args.real_page_table.width, args.page_size_divisor)};
  }

  template <int kVectors>
  constexpr unsigned slot_units() const {
    return (slots + (kUnitSlots<kVectors> - 1u)) / kUnitSlots<kVectors>;
  }
  template <int kVectors>
  constexpr unsigned units() const {
    return slot_units<kVectors>() + (pages + (kUnitPages - 1u)) / kUnitPages;
  }
};

/// What a warp needs of a request to do one of its units, but for the row of its first token.
struct alignas(16) TableRequest {
  Live live;
  int32_t pool_row;  ///< -1: outside the pool
  int32_t rows;      ///< at most as many as some table holds
  unsigned units;
  unsigned unit;    ///< first of those that this block does
  int32_t in_tile;  ///< place of the request in its tile

  template <int kVectors, class Form>
  __device__ static TableRequest of(const Args<Form>& args, int32_t kv, int64_t index, int32_t tokens) {
    TableRequest request{};
    request.live = Live::of(args, kv);
    const bool in_pool = static_cast<uint64_t>(index) < static_cast<uint64_t>(args.req_to_token.rows);
    request.pool_row = in_pool ? static_cast<int32_t>(index) : -1;
    request.rows = min(tokens, args.table_rows);
    request.units = request.live.units<kVectors>();
    if constexpr (Form::kCounts == TokenCounts::uniform) {
      if (request.rows <= 0) request.units = 0;
    } else {
      request.units *= (request.rows + (kUnitRows - 1u)) / kUnitRows;
    }
    return request;
  }
};

/// The elements c .. c+3 of `source` (null: zeros) that are before `end`.
__device__ inline int4 load_vector(const int32_t* source, int c, int end) {
  int4 vector{};
  if (source == nullptr) return vector;
  if (c + 4 <= end) return *reinterpret_cast<const int4*>(source + c);
  if (c < end) vector.x = source[c];
  if (c + 1 < end) vector.y = source[c + 1];
  if (c + 2 < end) vector.z = source[c + 2];
  return vector;
}

__device__ inline void store_vector(int32_t* out, int c, int end, const int4& vector) {
  if (c + 4 <= end) {
    *reinterpret_cast<int4*>(out + c) = vector;
    return;
  }
  if (c < end) out[c] = vector.x;
  if (c + 1 < end) out[c + 1] = vector.y;
  if (c + 2 < end) out[c + 2] = vector.z;
}

/// One warp copies slots begin .. end-1, at most a unit, of aligned `source` (null: zeros) to `rows` aligned rows.
template <int kVectors>
__device__ void copy_aligned_slots(const int32_t* source, int32_t* out, uint64_t stride, int rows, int begin, int end) {
  const int c = begin + threadIdx.x % kWarp * 4;
  int4 vectors[kVectors];
#pragma unroll
  for (int i = 0; i < kVectors; ++i) vectors[i] = load_vector(source, c + kWarp * 4 * i, end);
#pragma unroll 1
  for (int r = 0; r < rows; ++r, out += stride) {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) store_vector(out, c + kWarp * 4 * i, end, vectors[i]);
  }
}

/// The same of any alignment.
template <int kVectors>
__device__ void copy_slots(const int32_t* source, int32_t* out, uint64_t stride, int rows, int begin, int end) {
  constexpr int kSlots = kUnitSlots<kVectors> / kWarp;
  const int c = begin + threadIdx.x % kWarp;
  int32_t slots[kSlots] = {};
#pragma unroll
  for (int i = 0; i < kSlots; ++i) {
    if (source != nullptr && c + kWarp * i < end) slots[i] = source[c + kWarp * i];
  }
#pragma unroll 1
  for (int r = 0; r < rows; ++r, out += stride) {
#pragma unroll
    for (int i = 0; i < kSlots; ++i) {
      if (c + kWarp * i < end) out[c + kWarp * i] = slots[i];
    }
  }
}

/// One warp gathers pages begin .. end-1, at most one a lane, of `source` (null: zeros) to `rows` rows.
template <class Form>
__device__ void gather_pages(const Args<Form>& args, const int32_t* source, int row, int rows, int begin, int end) {
  const int p = begin + threadIdx.x % kWarp;
  if (p >= end) return;
  const int32_t slot = source != nullptr ? source[int64_t{p} * args.page_size] : 0;
  const int32_t page = rules::page_id(slot, args.page_size_divisor);
  int32_t* to = args.real_page_table.row(row) + p;
#pragma unroll 1
  for (int r = 0; r < rows; ++r, to += args.real_page_table.row_stride) *to = page;
}

/// One warp does one unit of a request whose first token has `row`, which some table holds.
template <int kVectors, class Form>
__device__ void fill_unit(const Args<Form>& args, const TableRequest& request, int row, unsigned unit) {
  const Live& live = request.live;
  int rows = request.rows;
  if (Form::kCounts != TokenCounts::uniform && __builtin_expect(rows > kUnitRows, false)) {
    const unsigned part = unit / live.units<kVectors>();
    unit -= part * live.units<kVectors>();
    row += part * kUnitRows;
    rows = min(rows - static_cast<int>(part) * kUnitRows, kUnitRows);
  }
  const int32_t* source = request.pool_row >= 0 ? args.req_to_token.row(request.pool_row) : nullptr;
  if (unit < live.slot_units<kVectors>()) {
    constexpr int kSlots = kUnitSlots<kVectors>;
    const int begin = unit * kSlots, end = begin + min(kSlots, live.slots - begin);
    const auto& table = args.page_table;
    rows = min(rows, table.rows - row);
    if (Form::kAligned || args.aligned) {
      copy_aligned_slots<kVectors>(source, table.row(row), table.row_stride, rows, begin, end);
    } else {
      copy_slots<kVectors>(source, table.row(row), table.row_stride, rows, begin, end);
    }
  } else {
    const int begin = (unit - live.slot_units<kVectors>()) * kUnitPages;
    rows = min(rows, args.real_page_table.rows - row);
    gather_pages(args, source, row, rows, begin, begin + min(kUnitPages, live.pages - begin));
  }
}

/// Asks for the source slots of a unit, for a `fill_unit` that comes later.
template <int kVectors, class Form>
__device__ void prefetch_unit(const Args<Form>& args, const TableRequest& request, unsigned unit) {
  if (unit >= request.live.slot_units<kVectors>() || request.pool_row < 0) return;
  const int c = unit * kUnitSlots<kVectors> + threadIdx.x % kWarp * (kUnitSlots<kVectors> / kWarp);
  if (c >= request.live.slots) return;
  asm volatile("prefetch.global.L2 [%0];" ::"l"(args.req_to_token.row(request.pool_row) + c));
}

/// The tables of one of up to one warp's width of requests, which each have blocks of their own.
template <int kVectors, class Form>
__device__ void fill_tables_of_one(const Args<Form>& args, unsigned block) {
  const int b = args.table_blocks_divisor.quotient(block);
  const unsigned share = block - b * args.table_blocks;
  const int32_t kv = args.kv(b);
  const int64_t index = args.req_pool_indices[b];
  int32_t row = args.uniform_tokens_before(b), tokens = args.uniform_tokens;
  if (args.ragged()) {
    const int lane = threadIdx.x % kWarp;
    const int32_t mine = lane <= b ? args.tokens(lane) : 0;
    const Sums<1> before = warp_inclusive(Sums<1>{{lane < b ? mine : 0}});
    row = from_lane(before, kWarp - 1).value[0];
    tokens = __shfl_sync(kAllLanes, mine, b);
  }
  if (row >= args.table_rows) return;
  const TableRequest request = TableRequest::of<kVectors>(args, kv, index, tokens);
  const unsigned step = blockDim.x / kWarp * args.table_blocks;
#pragma unroll 1
  for (unsigned unit = threadIdx.x / kWarp * args.table_blocks + share; unit < request.units; unit += step) {
    fill_unit<kVectors>(args, request, row, unit);
  }
}

constexpr int log2_of(int power_of_two) { return power_of_two == 1 ? 0 : 1 + log2_of(power_of_two / 2); }

/// The tables of any number of requests. The blocks that share a tile form a ring. Each request has a home in it, from
/// where its units go round, one a block. Homes are apart, so the units of like requests are spread evenly, those of a
/// long request over all blocks, and no block needs to know of the units of others.
template <int kVectors, int kTile, bool kMany, class Form>
__device__ void fill_tables(const Args<Form>& args, unsigned share) {
  constexpr int kWarpsLog2 = log2_of(kTile / kWarp);
  __shared__ TableRequest found[kTile];  // requests of which this block does units, in any order
  __shared__ int32_t row_of[Form::kCounts == TokenCounts::uniform ? 1 : kTile];
  __shared__ int count;
  __shared__ typename RunningScan<kTile, kMany, 1>::Shared row_shared;
  RunningScan<kTile, kMany, 1> row_scan(row_shared);
  const unsigned shares = args.table_blocks;
  for_each_tile<kTile, kMany>(args.bs, share, shares, [&](const Tile& tile) {
    const int b = tile.begin + threadIdx.x;
    const bool mine = threadIdx.x < tile.requests;
    const int32_t kv = mine ? args.kv(b) : 0;
    const int64_t index = mine ? args.req_pool_indices[b] : -1;
    const int32_t tokens = mine ? args.tokens(b) : 0;
    if (threadIdx.x == 0) count = 0;
    __syncthreads();
    TableRequest request = TableRequest::of<kVectors>(args, kv, index, tokens);
    const unsigned home = __umulhi(threadIdx.x * args.home_step, shares);
    request.unit = share - home + (share < home ? shares : 0);
    request.in_tile = threadIdx.x;
    if (request.unit < request.units) found[atomicAdd(&count, 1)] = request;
    __syncthreads();
    // The warps divide the requests found; where these are few, a power of two of warps divides the units of one.
    const int warp = threadIdx.x / kWarp;
    const int each_log2 = max(kWarpsLog2 - (kWarp - __clz(max(count, 1) - 1)), 0);
    const unsigned step = shares << each_log2, first = (warp & ((1 << each_log2) - 1)) * shares;
    const int begin = warp >> each_log2;
    if (args.ragged()) {
      // Rows are known after a scan, sources before it.
      if (begin < count) prefetch_unit<kVectors>(args, found[begin], found[begin].unit + first);
      const auto tokens_of = [&](int earlier) { return Sums<1>{{args.tokens(earlier)}}; };
      row_of[threadIdx.x] = row_scan.next(tile, {{tokens}}, tokens_of).before.value[0];
      __syncthreads();
    }
    for (int i = begin; i < count; i += 1 << kWarpsLog2 >> each_log2) {
      const TableRequest of = found[i];
      const int row = args.ragged() ? row_of[of.in_tile] : args.uniform_tokens_before(tile.begin + of.in_tile);
      if (row >= args.table_rows) continue;
#pragma unroll 1
      for (unsigned unit = of.unit + first; unit < of.units; unit += step) {
        fill_unit<kVectors>(args, of, row, unit);
      }
    }
    if constexpr (kMany) __syncthreads();
  });
}

}  // namespace nsa_kernel::cuda
