// replay on the device: one launch, in which some blocks write the lengths and the others the tables.
#include <cuda_runtime.h>

#include <numeric>
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
  LengthView req_pool_indices;
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
  uint32_t home_step;  ///< between the homes of two requests of a tile, as a part of 2**32 of the ring
  bool wide;           ///< every row of req_to_token and page_table starts at a multiple of 16 bytes
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

template <class Lengths>
__device__ LengthRequest load_lengths(const Args<Lengths>& args, int b) {
  const auto added = args.added(b);
  const auto seq_len = rules::length(args.seq_lens[b]);
  const int32_t tokens = rules::saturated(added);
  const int32_t first = rules::first_seqlen(seq_len, args.uncounted, added);
  return {{{tokens, rules::kv_length(seq_len, args.uncounted), rules::clipped_sum(first, tokens, args.topk)}}, first};
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
    for_each_token(tile, span, [&](const TokenSpan& of, int32_t j) {
      const int32_t seqlen = rules::expanded_seqlen(of.first, j);
      const int32_t running = rules::saturating_add(of.clipped_before, rules::clipped_sum(of.first, j + 1, args.topk));
      store_token(args, of.at + j, seqlen, rules::clipped_seqlen(seqlen, args.topk), running);
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
// pages, for up to kUnitRows rows. The blocks that share a tile form a ring. Each request has a home in it, from where
// its units go round, one a block. Homes are apart, so the units of like requests are spread evenly, those of a long
// request over all blocks, and no block needs to know more than its own.

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
  uint32_t unit;     ///< first of those that this block does
  uint32_t units;    ///< of all blocks
};

/// The elements c .. c+3 of `source` (null: zeros) that are before `end`.
__device__ int4 load_vector(const int32_t* source, int c, int end) {
  int4 vector{};
  if (source == nullptr) return vector;
  if (c + 4 <= end) return *reinterpret_cast<const int4*>(source + c);
  if (c < end) vector.x = source[c];
  if (c + 1 < end) vector.y = source[c + 1];
  if (c + 2 < end) vector.z = source[c + 2];
  return vector;
}

__device__ void store_vector(int32_t* out, int c, int end, const int4& vector) {
  if (c + 4 <= end) {
    *reinterpret_cast<int4*>(out + c) = vector;
    return;
  }
  if (c < end) out[c] = vector.x;
  if (c + 1 < end) out[c + 1] = vector.y;
  if (c + 2 < end) out[c + 2] = vector.z;
}

/// One warp copies slots begin .. end-1, at most kUnitSlots, of `source` (null: zeros) to `rows` rows.
__device__ void copy_slots(const int32_t* source, int32_t* out, uint64_t stride, int rows, int begin, int end,
                           bool wide) {
  const int lane = threadIdx.x % kWarp;
  if (wide) {
    const int c = begin + lane * 4;
    int4 vectors[kVectors];
#pragma unroll
    for (int i = 0; i < kVectors; ++i) vectors[i] = load_vector(source, c + kWarp * 4 * i, end);
#pragma unroll 1
    for (int r = 0; r < rows; ++r, out += stride) {
#pragma unroll
      for (int i = 0; i < kVectors; ++i) store_vector(out, c + kWarp * 4 * i, end, vectors[i]);
    }
    return;
  }
  constexpr int kSlots = kUnitSlots / kWarp;
  const int c = begin + lane;
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
    const int part = static_cast<int>(static_cast<unsigned>(unit) / static_cast<unsigned>(live.units()));
    unit -= part * live.units();
    row += part * kUnitRows;
    rows = min(rows - part * kUnitRows, kUnitRows);
  }
  const int32_t* source = request.pool_row >= 0 ? args.req_to_token.row(request.pool_row) : nullptr;
  if (unit < live.slot_units()) {
    const int begin = unit * kUnitSlots;
    copy_slots(source, args.page_table.row(row), args.page_table.row_stride, min(rows, args.page_table.rows - row),
               begin, begin + min(kUnitSlots, live.slots - begin), args.wide);
  } else {
    const int begin = (unit - live.slot_units()) * kUnitPages;
    gather_pages(args, source, row, min(rows, args.real_page_table.rows - row), begin,
                 begin + min(kUnitPages, live.pages - begin));
  }
}

constexpr int log2_of(int power_of_two) { return power_of_two == 1 ? 0 : 1 + log2_of(power_of_two / 2); }

template <int kBlockThreads, int kThreads, bool kMany, class Lengths>
__device__ void fill_tables(const Args<Lengths>& args) {
  constexpr int kWarpsLog2 = log2_of(kBlockThreads / kWarp);
  __shared__ TableRequest found[kThreads];  // requests of which this block does units, in any order
  __shared__ int count;
  __shared__ typename RunningScan<kThreads, kMany, 1>::Shared row_shared;
  RunningScan<kThreads, kMany, 1> row_scan(row_shared);
  const unsigned shares = gridDim.x - args.length_shares;
  for_each_tile<kThreads, kMany>(args.bs, blockIdx.x - args.length_shares, shares, [&](const Tile& tile) {
    const int b = tile.begin + threadIdx.x;
    const bool mine = threadIdx.x < tile.requests;
    const int32_t kv = mine ? rules::kv_length(rules::length(args.seq_lens[b]), args.uncounted) : 0;
    const int64_t pool_row = mine ? args.req_pool_indices[b] : -1;
    TableRequest request{};
    request.rows = mine ? args.tokens(b) : 0;
    if (threadIdx.x == 0) count = 0;
    if (args.ragged()) {
      const auto rows_of = [&](int earlier) { return Sums<1>{{args.tokens(earlier)}}; };
      request.row = row_scan.next(tile, {{request.rows}}, rows_of).before.value[0];
    } else {
      request.row = rules::saturated(int64_t{b} * args.uniform_tokens);
    }
    __syncthreads();
    request.rows = min(request.rows, args.table_rows - min(request.row, args.table_rows));
    request.live = Live::of(args, kv);
    request.units = request.live.units() * static_cast<int>((request.rows + (kUnitRows - 1u)) / kUnitRows);
    const unsigned home = __umulhi(threadIdx.x * args.home_step, shares);
    request.unit = tile.share - home + (tile.share < home ? shares : 0);
    if (request.unit < request.units) {
      request.pool_row = pool_row >= 0 && pool_row < args.req_to_token.rows ? static_cast<int32_t>(pool_row) : -1;
      found[atomicAdd(&count, 1)] = request;
    }
    __syncthreads();
    // The warps divide the requests found; where these are few, a power of two of warps divides the units of one.
    const int warp = threadIdx.x / kWarp;
    const int each_log2 = max(kWarpsLog2 - (kWarp - __clz(max(count, 1) - 1)), 0);
    const unsigned step = static_cast<unsigned>(shares) << each_log2;
    for (int i = warp >> each_log2; i < count; i += 1 << kWarpsLog2 >> each_log2) {
      const TableRequest of = found[i];
      for (unsigned unit = of.unit + (warp & ((1 << each_log2) - 1)) * shares; unit < of.units; unit += step) {
        fill_unit(args, of, static_cast<int>(unit));
      }
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
    fill_tables<kBlockThreads, kThreads, kMany>(args);
  }
}

template <class Lengths, int kBlockThreads, int kThreads, bool kMany>
const void* kernel() {
  return reinterpret_cast<const void*>(replay_kernel<Lengths, kBlockThreads, kThreads, kMany>);
}

Kernels kernels(kOp,
                {kernel<Packed<int32_t>, kFewBlock, kWarp, false>(), kernel<Packed<int32_t>, kBlock, kBlock, false>(),
                 kernel<Packed<int64_t>, kFewBlock, kWarp, false>(), kernel<Packed<int64_t>, kBlock, kBlock, false>(),
                 kernel<LengthView, kBlock, kBlock, true>()});

/// Where the home of the second request of a tile is, as a part of 2**32 of the ring: homes are evenly spaced, and those
/// of consecutive requests far apart.
uint32_t home_step(int64_t requests) {
  int64_t apart = requests * 5 / 8;
  while (std::gcd(apart, requests) > 1) ++apart;
  return static_cast<uint32_t>((apart << 32) / rules::max(requests, 1));
}

template <int kBlockThreads, int kThreads, bool kMany, class Lengths>
void launch_tiles(Args<Lengths> args, bool any_length, int limit, cudaStream_t stream) {
  const bool any_table = args.table_rows > 0 && args.bs > 0;
  const Grid lengths(args.bs, kThreads, useful_token_blocks(args.capacity, args.bs), limit);
  args.length_shares = any_length ? lengths.power_of_two_shares() : 0;
  args.home_step = home_step(rules::min(args.bs, kThreads));
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
void launch(const Replay& buffers, Lengths seq_lens, Lengths extend_seq_lens, int multiprocessors, cudaStream_t stream) {
  const int32_t uniform_tokens = buffers.extend_seq_lens ? 0 : static_cast<int32_t>(*buffers.num_draft_tokens);
  const Args<Lengths> args{
      seq_lens,
      extend_seq_lens,
      buffers.req_pool_indices,
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
      0,
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
  if constexpr (std::is_same_v<Lengths, LengthView>) {
    launch_tiles<kBlock, kBlock, true>(args, any_length, multiprocessors * kBlocksPerMultiprocessor, stream);
  } else if (args.bs <= kWarp) {
    launch_tiles<kFewBlock, kWarp, false>(args, any_length, multiprocessors * kFewBlocksPerMultiprocessor, stream);
  } else {
    launch_tiles<kBlock, kBlock, false>(args, any_length, multiprocessors * kBlocksPerMultiprocessor, stream);
  }
}

template <class T>
bool all_packed(const Replay& buffers) {
  const auto fits = [](const LengthView& view) { return !view || is_packed<T>(view); };
  return fits(buffers.seq_lens) && fits(buffers.extend_seq_lens);
}

}  // namespace

void fill_replay(const Replay& buffers, Stream stream) {
  const DeviceGuard guard(buffers.device, kOp);
  const int multiprocessors = kernels.ready(buffers.device);
  const auto on = static_cast<cudaStream_t>(stream);
  const LengthView &s = buffers.seq_lens, &q = buffers.extend_seq_lens;
  // In a larger batch, fetching the instructions of the general kernel does not count.
  const bool few = s.size <= kBlock;
  if (few && all_packed<int32_t>(buffers)) {
    launch(buffers, Packed<int32_t>{s.int32}, Packed<int32_t>{q.int32}, multiprocessors, on);
  } else if (few && all_packed<int64_t>(buffers)) {
    launch(buffers, Packed<int64_t>{s.int64}, Packed<int64_t>{q.int64}, multiprocessors, on);
  } else {
    launch(buffers, s, q, multiprocessors, on);
  }
}

}  // namespace nsa_kernel::cuda
