// replay on the device: one launch, in which some blocks write the lengths and the others the tables.
#include <cuda_runtime.h>

#include "check.h"
#include "grid.h"
#include "kernels.h"
#include "launch.h"
#include "rules.h"
#include "scan.cuh"

namespace nsa_kernel::cuda {
namespace {

constexpr const char* kOp = "fill_replay_metadata";

/// What the kernels read. Sizes of absent outputs are 0.
struct Args {
  LengthView seq_lens;
  LengthView extend_seq_lens;  ///< given: tokens are ragged
  LengthView req_pool_indices;
  TableView<const int32_t> req_to_token;
  TableView<int32_t> page_table;
  TableView<int32_t> real_page_table;
  TableView<int32_t> ctx_lens_2d;
  View<int32_t> seqlens_expanded;
  View<int32_t> nsa_cache_seqlens;
  View<int32_t> nsa_cu_seqlens_k;
  int32_t* cache_seqlens;  ///< this one and the next two may be null
  int32_t* cu_seqlens_k;
  int32_t* num_tokens;
  rules::Divisor page_size_divisor;
  int64_t capacity;        ///< tokens that the longest per-token output holds
  int32_t page_size;
  int32_t bs;
  int32_t topk;
  int32_t uniform_tokens;  ///< tokens of each request, where they are not ragged
  int32_t uncounted;       ///< tokens of each request that seq_lens does not count yet
  int32_t table_rows;      ///< rows of the longer table
  int32_t source_width;
  int32_t slots_width;     ///< of page_table
  int32_t pages_width;     ///< of real_page_table
  unsigned length_shares;  ///< blocks that write the lengths of a tile; those after them write its tables
  bool wide;               ///< every row of req_to_token and page_table starts at a multiple of 16 bytes

  __device__ bool ragged() const { return static_cast<bool>(extend_seq_lens); }
  __device__ int64_t added(int64_t b) const { return ragged() ? length_at(extend_seq_lens, b) : uniform_tokens; }
  __device__ int32_t tokens(int64_t b) const { return rules::saturated(added(b)); }
};

// Lengths.

enum LengthSum { kTokens, kKv, kClipped, kLengthSums };

struct LengthRequest {
  Sums<kLengthSums> sums;
  int32_t first;  ///< KV length that its first token sees
};

__device__ LengthRequest load_lengths(const Args& args, int b) {
  const int64_t added = args.added(b);
  const int32_t tokens = rules::saturated(added);
  const int64_t seq_len = length_at(args.seq_lens, b);
  const int32_t first = rules::first_seqlen(seq_len, args.uncounted, added);
  const int64_t clipped = rules::clipped_sum(first, tokens, args.topk);
  return {{{tokens, rules::kv_length(seq_len, args.uncounted), rules::saturated(clipped)}}, first};
}

__device__ void store_request(const Args& args, int b, int32_t kv, int32_t kv_sum) {
  if (args.cache_seqlens != nullptr) args.cache_seqlens[b] = kv;
  if (args.cu_seqlens_k != nullptr) args.cu_seqlens_k[b + 1] = kv_sum;
  if (args.ctx_lens_2d) {
    for (int j = 0; j < args.uniform_tokens; ++j) args.ctx_lens_2d.row(b)[j] = kv;
  }
}

__device__ void store_token(const Args& args, int64_t t, int32_t seqlen, int32_t clipped, int32_t running_sum) {
  if (t < args.seqlens_expanded.size) args.seqlens_expanded.data[t] = seqlen;
  if (t < args.nsa_cache_seqlens.size) args.nsa_cache_seqlens.data[t] = clipped;
  if (t + 1 < args.nsa_cu_seqlens_k.size) args.nsa_cu_seqlens_k.data[t + 1] = running_sum;
}

/// The tokens of one request that some output holds.
struct TokenSpan {
  int32_t tokens;
  int32_t at;  ///< of the first
  int32_t first;
  int32_t clipped_before;
};

__device__ void fill_tokens(const Args& args, const TokenSpan& span, int32_t j, int32_t step) {
  int32_t running = span.clipped_before;
  for (; j < span.tokens; j += step) {
    const int32_t seqlen = rules::expanded_seqlen(span.first, j);
    const int32_t clipped = rules::clipped_seqlen(seqlen, args.topk);
    running = step == 1 ? rules::saturating_add(running, clipped)
                        : rules::saturated(span.clipped_before +
                                           rules::clipped_sum(span.first, j + int64_t{1}, args.topk));
    store_token(args, int64_t{span.at} + j, seqlen, clipped, running);
  }
}

template <int kThreads, bool kMany>
__device__ void fill_lengths(const Args& args) {
  if (threadIdx.x >= kThreads) return;
  __shared__ typename RunningScan<kThreads, kMany, kLengthSums>::Shared shared;
  RunningScan<kThreads, kMany, kLengthSums> scan(shared);
  for_each_tile<kThreads, kMany>(args.bs, blockIdx.x, args.length_shares, [&](const Tile& tile) {
    const int b = tile.begin + threadIdx.x;
    const bool mine = threadIdx.x < tile.requests;
    const LengthRequest request = mine ? load_lengths(args, b) : LengthRequest{};
    const Scanned<kLengthSums> scanned =
        scan.next(tile, request.sums, [&](int earlier) { return load_lengths(args, earlier).sums; });
    const int32_t at = scanned.before.value[kTokens];
    if (tile.share == 0) {
      const int32_t kv = request.sums.value[kKv];
      if (mine) store_request(args, b, kv, rules::saturating_add(scanned.before.value[kKv], kv));
      if (threadIdx.x == 0) {
        if (tile.first && args.cu_seqlens_k != nullptr) args.cu_seqlens_k[0] = 0;
        if (tile.first && args.nsa_cu_seqlens_k.size > 0) args.nsa_cu_seqlens_k.data[0] = 0;
        if (tile.last && args.num_tokens != nullptr) *args.num_tokens = scanned.total.value[kTokens];
      }
    }
    const int64_t room = rules::max(args.capacity - at, 0);
    const TokenSpan span{static_cast<int32_t>(rules::min(request.sums.value[kTokens], room)), at, request.first,
                         scanned.before.value[kClipped]};
    fill_spans(tile, span, [&](const TokenSpan& of, int32_t j, int32_t step) { fill_tokens(args, of, j, step); });
    if (!tile.last) return;
    int64_t t = int64_t{scanned.total.value[kTokens]} + tile.share * kThreads + threadIdx.x;
    for (; t < args.capacity; t += tile.shares * kThreads) store_token(args, t, 0, 0, scanned.total.value[kClipped]);
  });
}

// Tables.
//
// The live part of each request's rows is cut into units, of which one warp does one at a time: a span of slots, or of
// pages, for up to kUnitRows rows. The units of all requests form one list that the warps of a tile walk together, so
// that a long request is shared by many and nothing is spent on what is not live.

constexpr int kVectors = 2;  // 16-byte accesses that a lane has in flight
constexpr int kUnitSlots = kWarp * 4 * kVectors;
constexpr int kUnitPages = kWarp;
constexpr int kUnitRows = 16;

/// The live part of one request's rows.
struct Live {
  int32_t slots;
  int32_t pages;

  constexpr Live(const Args& args, int32_t kv)
      : slots(rules::live_slots(kv, args.source_width, args.slots_width)),
        pages(rules::live_pages(kv, args.source_width, args.pages_width, args.page_size_divisor)) {}

  constexpr int slot_units() const { return static_cast<int>((slots + (kUnitSlots - 1u)) / kUnitSlots); }
  constexpr int units() const { return slot_units() + static_cast<int>((pages + (kUnitPages - 1u)) / kUnitPages); }
};

/// What a warp needs of a request to do one of its units.
struct alignas(16) TableRequest {
  int32_t kv;
  int32_t pool_row;  ///< -1: outside the pool
  int32_t row;       ///< of its first token
  int32_t rows;      ///< that some table holds
};

/// One warp copies elements begin .. end-1 of `source` (null: zeros) to `rows` rows.
template <class Word>
__device__ void copy_span(const Word* source, Word* out, int64_t stride, int rows, int begin, int end) {
  for (int c = begin + threadIdx.x % kWarp; c < end; c += kWarp * kVectors) {
    Word words[kVectors] = {};
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      if (source != nullptr && c + kWarp * i < end) words[i] = source[c + kWarp * i];
    }
    Word* to = out + c;
    for (int r = 0; r < rows; ++r, to += stride) {
#pragma unroll
      for (int i = 0; i < kVectors; ++i) {
        if (c + kWarp * i < end) to[kWarp * i] = words[i];
      }
    }
  }
}

__device__ void copy_slots(const Args& args, const int32_t* source, int row, int rows, int begin, int end) {
  int32_t* out = args.page_table.row(row);
  const int64_t stride = args.page_table.row_stride;
  if (args.wide) {
    copy_span(reinterpret_cast<const int4*>(source), reinterpret_cast<int4*>(out), stride / 4, rows, begin / 4, end / 4);
    begin = max(begin, end / 4 * 4);
  }
  copy_span(source, out, stride, rows, begin, end);
}

/// One warp gathers pages begin .. end-1, at most one a lane, of `source` (null: zeros) to `rows` rows.
__device__ void gather_pages(const Args& args, const int32_t* source, int row, int rows, int begin, int end) {
  const int p = begin + threadIdx.x % kWarp;
  if (p >= end) return;
  const int32_t slot = source != nullptr ? source[int64_t{p} * args.page_size] : 0;
  const int32_t page = rules::page_id(slot, args.page_size_divisor);
  int32_t* to = args.real_page_table.row(row) + p;
  for (int r = 0; r < rows; ++r, to += args.real_page_table.row_stride) *to = page;
}

__device__ void fill_unit(const Args& args, const TableRequest& request, int unit) {
  const Live live(args, request.kv);
  int row = request.row, rows = request.rows;
  if (rows > kUnitRows) {
    const int part = unit / live.units();
    unit -= part * live.units();
    row += part * kUnitRows;
    rows = min(rows - part * kUnitRows, kUnitRows);
  }
  const int32_t* source = request.pool_row >= 0 ? args.req_to_token.row(request.pool_row) : nullptr;
  if (unit < live.slot_units()) {
    const int begin = unit * kUnitSlots;
    const int rows_here = static_cast<int>(rules::min(rows, args.page_table.rows - row));
    copy_slots(args, source, row, rows_here, begin, begin + min(kUnitSlots, live.slots - begin));
  } else {
    const int begin = (unit - live.slot_units()) * kUnitPages;
    const int rows_here = static_cast<int>(rules::min(rows, args.real_page_table.rows - row));
    gather_pages(args, source, row, rows_here, begin, begin + min(kUnitPages, live.pages - begin));
  }
}

/// The requests of a tile, for its warps to find their units in. One warp's width of them stays in registers.
template <int kThreads>
class TableRequests {
 public:
  struct Shared {
    int32_t units_before[kThreads];
    TableRequest requests[kThreads];
  };

  __device__ TableRequests(Shared& shared, const TableRequest& request, const Scanned<1>& units) : shared_(shared) {
    if constexpr (kThreads == kWarp) {
      request_ = request;
      units_before_ = units.before.value[0];
    } else {
      shared.units_before[threadIdx.x] = units.before.value[0];
      shared.requests[threadIdx.x] = request;
      units_before_ = shuffle_up(units.warps, 1).value[0];
      if (threadIdx.x % kWarp == 0) units_before_ = 0;
      __syncthreads();
    }
  }

  __device__ void fill(const Args& args, int unit) const {
    // Requests without units repeat their successor's number, so the last lane that is not past the unit has it.
    const int lane = last_lane_at_most(units_before_, unit);
    if constexpr (kThreads == kWarp) {
      const TableRequest request{__shfl_sync(kAllLanes, request_.kv, lane), __shfl_sync(kAllLanes, request_.pool_row, lane),
                                 __shfl_sync(kAllLanes, request_.row, lane), __shfl_sync(kAllLanes, request_.rows, lane)};
      fill_unit(args, request, unit - __shfl_sync(kAllLanes, units_before_, lane));
    } else {
      const int32_t* in_warp = shared_.units_before + lane * kWarp;
      const int found = last_lane_at_most(in_warp[threadIdx.x % kWarp], unit);
      fill_unit(args, shared_.requests[lane * kWarp + found], unit - in_warp[found]);
    }
  }

 private:
  __device__ static int last_lane_at_most(int32_t sorted, int32_t value) {
    return __popc(__ballot_sync(kAllLanes, sorted <= value)) - 1;
  }

  Shared& shared_;
  TableRequest request_;
  int32_t units_before_;
};

template <int kThreads, bool kMany>
__device__ void fill_tables(const Args& args) {
  __shared__ typename TableRequests<kThreads>::Shared shared;
  __shared__ typename RunningScan<kThreads, kMany, 1>::Shared row_shared;
  __shared__ typename Scan<kThreads, 1>::Shared unit_shared;
  RunningScan<kThreads, kMany, 1> row_scan(row_shared);
  const unsigned shares = gridDim.x - args.length_shares;
  for_each_tile<kThreads, kMany>(args.bs, blockIdx.x - args.length_shares, shares, [&](const Tile& tile) {
    const int local = threadIdx.x % kThreads;
    const int b = tile.begin + local;
    TableRequest request{};
    if (local < tile.requests) {
      const int64_t pool_row = args.req_pool_indices[b];
      request.kv = rules::kv_length(length_at(args.seq_lens, b), args.uncounted);
      request.pool_row = pool_row >= 0 && pool_row < args.req_to_token.rows ? static_cast<int32_t>(pool_row) : -1;
      request.rows = args.tokens(b);
    }
    if (args.ragged()) {
      const auto rows_of = [&](int earlier) { return Sums<1>{{args.tokens(earlier)}}; };
      request.row = row_scan.next(tile, {{request.rows}}, rows_of).before.value[0];
    } else {
      request.row = rules::saturated(int64_t{b} * args.uniform_tokens);
    }
    request.rows = min(request.rows, args.table_rows - min(request.row, args.table_rows));
    const int64_t parts = request.rows > kUnitRows ? rules::ceil_div(request.rows, kUnitRows) : request.rows > 0;
    const Sums<1> mine{{rules::saturated(Live(args, request.kv).units() * parts)}};
    const Scanned<1> units = Scan<kThreads, 1>(unit_shared).exclusive(mine);
    const TableRequests<kThreads> requests(shared, request, units);
    const unsigned warps = shares * (blockDim.x / kWarp);
    for (unsigned unit = threadIdx.x / kWarp * shares + tile.share; unit < units.total.value[0]; unit += warps) {
      requests.fill(args, unit);
    }
    if constexpr (kMany) __syncthreads();
  });
}

// Launch.

constexpr int kFewBlock = 256;
constexpr int kBlock = 1024;
constexpr int kBlocksPerMultiprocessor = 1;

template <int kBlockThreads, int kThreads, bool kMany>
__global__ __launch_bounds__(kBlockThreads) void replay_kernel(const __grid_constant__ Args args) {
  if (blockIdx.x < args.length_shares) {
    fill_lengths<kThreads, kMany>(args);
  } else {
    fill_tables<kThreads, kMany>(args);
  }
}

Kernels kernels(kOp, {reinterpret_cast<const void*>(replay_kernel<kFewBlock, kWarp, false>),
                      reinterpret_cast<const void*>(replay_kernel<kBlock, kBlock, false>),
                      reinterpret_cast<const void*>(replay_kernel<kBlock, kBlock, true>)});

template <int kBlockThreads, int kThreads, bool kMany>
void launch(Args args, bool any_length, int limit, cudaStream_t stream) {
  constexpr int kTokensPerBlock = 4096;  // fewer are not worth another block
  const bool any_table = args.table_rows > 0 && args.bs > 0;
  const Grid lengths(args.bs, kThreads, rules::ceil_div(args.capacity, kTokensPerBlock), limit);
  args.length_shares = any_length ? lengths.shares : 0;
  unsigned table_shares = 0;
  if (any_table) {
    const int64_t most = Live(args, static_cast<int32_t>(rules::kMaxStored)).units();
    const int64_t units = most * (rules::min(args.bs, kThreads) + args.table_rows / kUnitRows);
    const int64_t useful = rules::ceil_div(units, kBlockThreads / kWarp);
    table_shares = Grid(args.bs, kThreads, useful, rules::max(limit - int64_t{args.length_shares} * lengths.rows, 1)).shares;
  }
  const unsigned shares = args.length_shares + table_shares;
  if (shares == 0) return;
  replay_kernel<kBlockThreads, kThreads, kMany><<<dim3(shares, lengths.rows), kBlockThreads, 0, stream>>>(args);
  check(cudaGetLastError(), kOp);
}

template <class T>
bool rows_are_wide(const TableView<T>& table) {
  return reinterpret_cast<uintptr_t>(table.data) % 16 == 0 && (table.row_stride % 4 == 0 || table.rows <= 1);
}

}  // namespace

void fill_replay(const Replay& buffers, Stream stream) {
  const DeviceGuard guard(buffers.device, kOp);
  const int multiprocessors = kernels.ready(buffers.device);
  const int32_t uniform_tokens = buffers.extend_seq_lens ? 0 : static_cast<int32_t>(*buffers.num_draft_tokens);
  const Args args{buffers.seq_lens,
                  buffers.extend_seq_lens,
                  buffers.req_pool_indices,
                  buffers.req_to_token,
                  buffers.page_table,
                  buffers.real_page_table,
                  buffers.ctx_lens_2d,
                  buffers.seqlens_expanded,
                  buffers.nsa_cache_seqlens,
                  buffers.nsa_cu_seqlens_k,
                  buffers.cache_seqlens.data,
                  buffers.cu_seqlens_k.data,
                  buffers.num_tokens.data,
                  rules::Divisor(buffers.page_size),
                  rules::max(rules::max(buffers.seqlens_expanded.size, buffers.nsa_cache_seqlens.size),
                             rules::max(buffers.nsa_cu_seqlens_k.size - 1, 0)),
                  static_cast<int32_t>(buffers.page_size),
                  static_cast<int32_t>(buffers.seq_lens.size),
                  static_cast<int32_t>(buffers.nsa_index_topk),
                  uniform_tokens,
                  buffers.mode == Mode::target_verify ? uniform_tokens : 0,
                  rules::saturated(rules::max(buffers.page_table.rows, buffers.real_page_table.rows)),
                  rules::saturated(buffers.req_to_token.cols),
                  rules::saturated(buffers.page_table.cols),
                  rules::saturated(buffers.real_page_table.cols),
                  0,
                  rows_are_wide(buffers.req_to_token) && rows_are_wide(buffers.page_table)};
  const bool any_length = buffers.cache_seqlens || buffers.cu_seqlens_k || buffers.seqlens_expanded ||
                          buffers.nsa_cache_seqlens || buffers.nsa_cu_seqlens_k || buffers.ctx_lens_2d ||
                          buffers.num_tokens;
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  if (args.bs <= kWarp) {
    launch<kFewBlock, kWarp, false>(args, any_length, multiprocessors * 4, cuda_stream);
  } else if (args.bs <= kBlock) {
    launch<kBlock, kBlock, false>(args, any_length, multiprocessors * kBlocksPerMultiprocessor, cuda_stream);
  } else {
    launch<kBlock, kBlock, true>(args, any_length, multiprocessors * kBlocksPerMultiprocessor, cuda_stream);
  }
}

}  // namespace nsa_kernel::cuda
