// replay on the device: one launch, in which some blocks write the lengths and the others the tables.
#include <cuda_runtime.h>

#include <type_traits>

#include "check.h"
#include "grid.h"
#include "kernels.h"
#include "launch.h"
#include "rules.h"
#include "scan.cuh"

namespace nsa_kernel::cuda {
namespace {

constexpr const char* kOp = "fill_replay_metadata";

/// A table as the kernels read it.
template <class T>
struct Rows {
  T* data;
  uint64_t row_stride;
  int32_t rows;

  explicit Rows(const TableView<T>& table)
      : data(table.data), row_stride(static_cast<uint64_t>(table.row_stride)), rows(rules::saturated(table.rows)) {}

  __device__ T* row(int32_t i) const { return data + static_cast<uint32_t>(i) * row_stride; }
};

/// One value a token, for the first `size` of them.
struct Tokens {
  int32_t* data;
  int32_t size;

  explicit Tokens(const View<int32_t>& view, int64_t skipped = 0)
      : data(view.data + skipped), size(rules::saturated(rules::max(view.size - skipped, 0))) {}

  __device__ void store(int32_t t, int32_t value) const {
    if (t < size) data[t] = value;
  }
};

/// What the kernels read. Sizes of absent outputs are 0. Lengths is Packed or LengthView.
template <class Lengths>
struct Args {
  Lengths seq_lens;
  Lengths extend_seq_lens;  ///< given: tokens are ragged
  Lengths req_pool_indices;
  int32_t bs;
  int32_t uniform_tokens;  ///< tokens of each request, where they are not ragged
  int32_t uncounted;       ///< tokens of each request that seq_lens does not count yet
  unsigned length_shares;  ///< blocks that write the lengths of a tile; those after them write its tables
  // Tables.
  int32_t source_width;
  int32_t slots_width;  ///< of page_table
  int32_t pages_width;  ///< of real_page_table
  int32_t table_rows;   ///< rows of the longer table
  rules::Divisor page_size_divisor;
  int32_t page_size;
  bool wide;  ///< every row of req_to_token and page_table starts at a multiple of 16 bytes
  Rows<const int32_t> req_to_token;
  Rows<int32_t> page_table;
  Rows<int32_t> real_page_table;
  // Lengths.
  int32_t topk;
  int32_t capacity;  ///< tokens that the longest per-token output holds
  Tokens seqlens_expanded;
  Tokens nsa_cache_seqlens;
  Tokens nsa_cu_seqlens_k;  ///< from its second element on
  int32_t* cache_seqlens;   ///< this one and the next three may be null
  int32_t* cu_seqlens_k;
  int32_t* nsa_cu_seqlens_k_start;
  int32_t* num_tokens;
  Rows<int32_t> ctx_lens_2d;

  __device__ bool ragged() const { return static_cast<bool>(extend_seq_lens); }
  __device__ auto added(int b) const {
    return ragged() ? rules::length(extend_seq_lens[b]) : decltype(rules::length(extend_seq_lens[b])){uniform_tokens};
  }
  __device__ int32_t tokens(int b) const { return rules::saturated(added(b)); }
};

// Lengths.

enum LengthSum { kTokens, kKv, kClipped, kLengthSums };

struct LengthRequest {
  Sums<kLengthSums> sums;
  int32_t first;  ///< KV length that its first token sees
};

/// Sum of the clipped lengths of a request; a few tokens are added up in less code than the formula takes.
__device__ int32_t clipped_total(int32_t first, int32_t tokens, int32_t topk) {
  if (tokens > kShort) return rules::saturated(rules::clipped_sum(first, tokens, topk));
  int32_t sum = 0;
#pragma unroll 1
  for (int32_t j = 0; j < tokens; ++j) {
    sum = rules::saturating_add(sum, rules::clipped_seqlen(rules::expanded_seqlen(first, j), topk));
  }
  return sum;
}

template <class Lengths>
__device__ LengthRequest load_lengths(const Args<Lengths>& args, int b) {
  const auto added = args.added(b);
  const auto seq_len = rules::length(args.seq_lens[b]);
  const int32_t tokens = rules::saturated(added);
  const int32_t first = rules::first_seqlen(seq_len, args.uncounted, added);
  return {{{tokens, rules::kv_length(seq_len, args.uncounted), clipped_total(first, tokens, args.topk)}}, first};
}

template <class Lengths>
__device__ void store_request(const Args<Lengths>& args, int b, int32_t kv, int32_t kv_sum) {
  if (args.cache_seqlens != nullptr) args.cache_seqlens[b] = kv;
  if (args.cu_seqlens_k != nullptr) args.cu_seqlens_k[b + 1] = kv_sum;
  if (args.ctx_lens_2d.data != nullptr) {
#pragma unroll 1
    for (int j = 0; j < args.uniform_tokens; ++j) args.ctx_lens_2d.row(b)[j] = kv;
  }
}

template <class Lengths>
__device__ void store_token(const Args<Lengths>& args, int32_t t, int32_t seqlen, int32_t clipped,
                            int32_t running_sum) {
  args.seqlens_expanded.store(t, seqlen);
  args.nsa_cache_seqlens.store(t, clipped);
  args.nsa_cu_seqlens_k.store(t, running_sum);
}

/// The tokens of one request that some output holds.
struct TokenSpan {
  int32_t tokens;
  int32_t at;  ///< of the first
  int32_t first;
  int32_t clipped_before;
};

template <int kThreads, bool kMany, class Lengths>
__device__ void fill_lengths(const Args<Lengths>& args) {
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
    if (mine && tile.owns()) {
      const int32_t kv = request.sums.value[kKv];
      store_request(args, b, kv, rules::saturating_add(scanned.before.value[kKv], kv));
    }
    if (threadIdx.x == 0 && tile.share == 0) {
      if (tile.first && args.cu_seqlens_k != nullptr) *args.cu_seqlens_k = 0;
      if (tile.first && args.nsa_cu_seqlens_k_start != nullptr) *args.nsa_cu_seqlens_k_start = 0;
      if (tile.last && args.num_tokens != nullptr) *args.num_tokens = scanned.total.value[kTokens];
    }
    const TokenSpan span{min(request.sums.value[kTokens], args.capacity - min(at, args.capacity)), at, request.first,
                         scanned.before.value[kClipped]};
    int32_t running = span.clipped_before;
    for_each_token<Order::sequential>(tile, span, [&](const TokenSpan& of, int32_t j, auto order) {
      const int32_t seqlen = rules::expanded_seqlen(of.first, j);
      const int32_t clipped = rules::clipped_seqlen(seqlen, args.topk);
      if constexpr (order == Order::sequential) {
        running = rules::saturating_add(running, clipped);
      } else {
        running = rules::saturated(of.clipped_before + rules::clipped_sum(of.first, j + int64_t{1}, args.topk));
      }
      store_token(args, of.at + j, seqlen, clipped, running);
    });
    if (!tile.last) return;
    const int32_t filled = min(scanned.total.value[kTokens], args.capacity);
    const int step = static_cast<int>(tile.shares * kThreads);
#pragma unroll 1
    for (int32_t left = args.capacity - filled - (tile.share * kThreads + threadIdx.x); left > 0; left -= step) {
      store_token(args, args.capacity - left, 0, 0, scanned.total.value[kClipped]);
    }
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

  template <class Lengths>
  static constexpr Live of(const Args<Lengths>& args, int32_t kv) {
    return {rules::live_slots(kv, args.source_width, args.slots_width),
            rules::live_pages(kv, args.source_width, args.pages_width, args.page_size_divisor)};
  }

  constexpr int slot_units() const { return static_cast<int>((slots + (kUnitSlots - 1u)) / kUnitSlots); }
  constexpr int units() const { return slot_units() + static_cast<int>((pages + (kUnitPages - 1u)) / kUnitPages); }
};

/// What a warp needs of a request to do one of its units.
struct alignas(16) TableRequest {
  Live live;
  int32_t pool_row;  ///< -1: outside the pool
  int32_t row;       ///< of its first token
  int32_t rows;      ///< that some table holds
};

/// One warp copies elements begin .. end-1 of `source` (null: zeros) to `rows` rows.
template <class Word>
__device__ void copy_span(const Word* source, Word* out, uint64_t stride, int rows, int begin, int end) {
#pragma unroll 1
  for (int c = begin + threadIdx.x % kWarp; c < end; c += kWarp * kVectors) {
    Word words[kVectors] = {};
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      if (source != nullptr && c + kWarp * i < end) words[i] = source[c + kWarp * i];
    }
    Word* to = out + c;
#pragma unroll 2
    for (int r = 0; r < rows; ++r, to += stride) {
#pragma unroll
      for (int i = 0; i < kVectors; ++i) {
        if (c + kWarp * i < end) to[kWarp * i] = words[i];
      }
    }
  }
}

template <class Lengths>
__device__ void copy_slots(const Args<Lengths>& args, const int32_t* source, int row, int rows, int begin, int end) {
  int32_t* out = args.page_table.row(row);
  const uint64_t stride = args.page_table.row_stride;
  if (args.wide) {
    copy_span(reinterpret_cast<const int4*>(source), reinterpret_cast<int4*>(out), stride / 4, rows, begin / 4,
              end / 4);
    begin = max(begin, end / 4 * 4);
  }
  if (begin < end) copy_span(source, out, stride, rows, begin, end);
}

/// One warp gathers pages begin .. end-1, at most one a lane, of `source` (null: zeros) to `rows` rows.
template <class Lengths>
__device__ void gather_pages(const Args<Lengths>& args, const int32_t* source, int row, int rows, int begin, int end) {
  const int p = begin + threadIdx.x % kWarp;
  if (p >= end) return;
  const int32_t slot = source != nullptr ? source[int64_t{p} * args.page_size] : 0;
  const int32_t page = rules::page_id(slot, args.page_size_divisor);
  int32_t* to = args.real_page_table.row(row) + p;
#pragma unroll 1
  for (int r = 0; r < rows; ++r, to += args.real_page_table.row_stride) *to = page;
}

template <class Lengths>
__device__ void fill_unit(const Args<Lengths>& args, const TableRequest& request, int unit) {
  const Live& live = request.live;
  int row = request.row, rows = request.rows;
  if (__builtin_expect(rows > kUnitRows, false)) {
    const int part = unit / live.units();
    unit -= part * live.units();
    row += part * kUnitRows;
    rows = min(rows - part * kUnitRows, kUnitRows);
  }
  const int32_t* source = request.pool_row >= 0 ? args.req_to_token.row(request.pool_row) : nullptr;
  if (__builtin_expect(unit < live.slot_units(), true)) {
    const int begin = unit * kUnitSlots;
    const int rows_here = min(rows, args.page_table.rows - row);
    copy_slots(args, source, row, rows_here, begin, begin + min(kUnitSlots, live.slots - begin));
  } else {
    const int begin = (unit - live.slot_units()) * kUnitPages;
    const int rows_here = min(rows, args.real_page_table.rows - row);
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

  template <class Lengths>
  __device__ void fill(const Args<Lengths>& args, int unit) const {
    // Requests without units repeat their successor's number, so the last lane that is not past the unit has it.
    const int lane = last_lane_at_most(units_before_, unit);
    if constexpr (kThreads == kWarp) {
      TableRequest request;
      request.live.slots = __shfl_sync(kAllLanes, request_.live.slots, lane);
      request.live.pages = __shfl_sync(kAllLanes, request_.live.pages, lane);
      request.pool_row = __shfl_sync(kAllLanes, request_.pool_row, lane);
      request.row = __shfl_sync(kAllLanes, request_.row, lane);
      request.rows = __shfl_sync(kAllLanes, request_.rows, lane);
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

template <int kThreads, bool kMany, class Lengths>
__device__ void fill_tables(const Args<Lengths>& args) {
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
      request.live = Live::of(args, rules::kv_length(rules::length(args.seq_lens[b]), args.uncounted));
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
    const int parts = static_cast<int>((request.rows + (kUnitRows - 1u)) / kUnitRows);
    const Sums<1> mine{{request.live.units() * parts}};
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

constexpr int kFewBlock = 128;
constexpr int kFewBlocksPerMultiprocessor = 8;
constexpr int kBlock = 512;
constexpr int kBlocksPerMultiprocessor = 2;

template <class Lengths, int kBlockThreads, int kThreads, bool kMany>
__global__ __launch_bounds__(kBlockThreads) void replay_kernel(const __grid_constant__ Args<Lengths> args) {
  if (blockIdx.x < args.length_shares) {
    fill_lengths<kThreads, kMany>(args);
  } else {
    fill_tables<kThreads, kMany>(args);
  }
}

template <class Lengths, int kBlockThreads, int kThreads, bool kMany>
const void* kernel() {
  return reinterpret_cast<const void*>(replay_kernel<Lengths, kBlockThreads, kThreads, kMany>);
}

Kernels kernels(kOp,
                {kernel<Packed<int32_t>, kFewBlock, kWarp, false>(), kernel<Packed<int32_t>, kBlock, kBlock, false>(),
                 kernel<Packed<int64_t>, kFewBlock, kWarp, false>(), kernel<Packed<int64_t>, kBlock, kBlock, false>(),
                 kernel<LengthView, kFewBlock, kWarp, false>(), kernel<LengthView, kBlock, kBlock, false>(),
                 kernel<LengthView, kBlock, kBlock, true>()});

template <int kBlockThreads, int kThreads, bool kMany, class Lengths>
void launch_tiles(Args<Lengths> args, bool any_length, int limit, cudaStream_t stream) {
  constexpr int kTokensPerBlock = 256;  // fewer are not worth another block
  const bool any_table = args.table_rows > 0 && args.bs > 0;
  const Grid lengths(args.bs, kThreads, rules::ceil_div(args.capacity, kTokensPerBlock), limit);
  args.length_shares = any_length ? lengths.power_of_two_shares() : 0;
  unsigned table_shares = 0;
  if (any_table) {
    const int64_t most = Live::of(args, static_cast<int32_t>(rules::kMaxStored)).units();
    const int64_t units = most * (rules::min(args.bs, kThreads) + args.table_rows / kUnitRows);
    const int64_t useful = rules::ceil_div(units, kBlockThreads / kWarp);
    const int64_t left = rules::max(limit - int64_t{args.length_shares} * lengths.rows, 1);
    table_shares = Grid(args.bs, kThreads, useful, left).shares;
  }
  const unsigned shares = args.length_shares + table_shares;
  if (shares == 0) return;
  replay_kernel<Lengths, kBlockThreads, kThreads, kMany>
      <<<dim3(shares, lengths.rows), kBlockThreads, 0, stream>>>(args);
  check(cudaGetLastError(), kOp);
}

template <class T>
bool rows_are_wide(const TableView<T>& table) {
  return reinterpret_cast<uintptr_t>(table.data) % 16 == 0 && (table.row_stride % 4 == 0 || table.rows <= 1);
}

template <class Lengths>
void launch(const Replay& buffers, Lengths seq_lens, Lengths extend_seq_lens, Lengths req_pool_indices,
            int multiprocessors, cudaStream_t stream) {
  const int32_t uniform_tokens = buffers.extend_seq_lens ? 0 : static_cast<int32_t>(*buffers.num_draft_tokens);
  const Args<Lengths> args{
      seq_lens,
      extend_seq_lens,
      req_pool_indices,
      static_cast<int32_t>(buffers.seq_lens.size),
      uniform_tokens,
      buffers.mode == Mode::target_verify ? uniform_tokens : 0,
      0,
      rules::saturated(buffers.req_to_token.cols),
      rules::saturated(buffers.page_table.cols),
      rules::saturated(buffers.real_page_table.cols),
      rules::saturated(rules::max(buffers.page_table.rows, buffers.real_page_table.rows)),
      rules::Divisor(buffers.page_size),
      static_cast<int32_t>(buffers.page_size),
      rows_are_wide(buffers.req_to_token) && rows_are_wide(buffers.page_table),
      Rows(buffers.req_to_token),
      Rows(buffers.page_table),
      Rows(buffers.real_page_table),
      static_cast<int32_t>(buffers.nsa_index_topk),
      rules::saturated(rules::max(rules::max(buffers.seqlens_expanded.size, buffers.nsa_cache_seqlens.size),
                                  rules::max(buffers.nsa_cu_seqlens_k.size - 1, 0))),
      Tokens(buffers.seqlens_expanded),
      Tokens(buffers.nsa_cache_seqlens),
      Tokens(buffers.nsa_cu_seqlens_k, 1),
      buffers.cache_seqlens.data,
      buffers.cu_seqlens_k.data,
      buffers.nsa_cu_seqlens_k.size > 0 ? buffers.nsa_cu_seqlens_k.data : nullptr,
      buffers.num_tokens.data,
      Rows(buffers.ctx_lens_2d)};
  const bool any_length = buffers.cache_seqlens || buffers.cu_seqlens_k || buffers.seqlens_expanded ||
                          buffers.nsa_cache_seqlens || buffers.nsa_cu_seqlens_k || buffers.ctx_lens_2d ||
                          buffers.num_tokens;
  if (args.bs <= kWarp) {
    launch_tiles<kFewBlock, kWarp, false>(args, any_length, multiprocessors * kFewBlocksPerMultiprocessor, stream);
  } else if (args.bs <= kBlock) {
    launch_tiles<kBlock, kBlock, false>(args, any_length, multiprocessors * kBlocksPerMultiprocessor, stream);
  } else if constexpr (std::is_same_v<Lengths, LengthView>) {
    launch_tiles<kBlock, kBlock, true>(args, any_length, multiprocessors * kBlocksPerMultiprocessor, stream);
  }
}

template <class T>
bool all_packed(const Replay& buffers) {
  const auto fits = [](const LengthView& view) { return !view || is_packed<T>(view); };
  return fits(buffers.seq_lens) && fits(buffers.extend_seq_lens) && fits(buffers.req_pool_indices);
}

}  // namespace

void fill_replay(const Replay& buffers, Stream stream) {
  const DeviceGuard guard(buffers.device, kOp);
  const int multiprocessors = kernels.ready(buffers.device);
  const auto on = static_cast<cudaStream_t>(stream);
  const LengthView &s = buffers.seq_lens, &q = buffers.extend_seq_lens, &pool = buffers.req_pool_indices;
  // In a larger batch, fetching the instructions of the general kernel does not count.
  const bool few = s.size <= kBlock;
  if (few && all_packed<int32_t>(buffers)) {
    launch(buffers, Packed<int32_t>{s.int32}, Packed<int32_t>{q.int32}, Packed<int32_t>{pool.int32}, multiprocessors,
           on);
  } else if (few && all_packed<int64_t>(buffers)) {
    launch(buffers, Packed<int64_t>{s.int64}, Packed<int64_t>{q.int64}, Packed<int64_t>{pool.int64}, multiprocessors,
           on);
  } else {
    launch(buffers, s, q, pool, multiprocessors, on);
  }
}

}  // namespace nsa_kernel::cuda
