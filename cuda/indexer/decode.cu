// indexer_decode on the device: one launch, in which some blocks write the lengths, others the block table or schedule.
#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "check.h"
#include "enqueue.cuh"
#include "grid.h"
#include "indexer_batch.h"
#include "kernels.h"
#include "launch.h"
#include "rules.h"
#include "scan.cuh"
#include "schedule.cuh"
#include "tables/assignment.cuh"
#include "tables/launch.cuh"
#include "views.cuh"

namespace nsa_kernel::cuda {
namespace {

constexpr const char* kOp = "fill_indexer_decode_metadata";
constexpr int kSmallBatchBlocksPerMultiprocessor = 6;
using SmallBatchShape = CopyShape<2, 4>;
constexpr int kWideTile = 1024;  // of layout `native`, which takes few registers: as many threads as a block may have

/// For a schedule of the lengths that consumers read.
template <class Traits>
using IndexerSchedule = std::conditional_t<Traits::kSchedules, ScheduleArguments<rules::FinalSplits>, Absent>;

/// What the kernels of layout `rows` read. What a warp of tables reads first stands first.
template <class Traits_>
struct IndexerRowsArguments {
  using Traits = Traits_;

  Roles roles;
  rules::Divisor bs_divisor;
  uint32_t start_stride;                      ///< of overflow tasks, see tables/assignment.cuh
  IndexerBatch<typename Traits::Step> batch;  ///< its capacity is the number of rows
  rules::ContextShard shard;
  rules::WideDivisor compress_ratio;
  rules::WideDivisor page_size;
  /// The block table: as slots where its rows are aligned, and as pages of one slot where they are not.
  Tables<Traits> tables;
  SmallBatchWarps small_batch;
  TokenArray global_seq_lens;
  TokenArray decode_seq_lens;  ///< up to its end, beyond the rows
  TokenArray decode_lens;
  TokenArray indices;
  TableRows<int32_t, typename Traits::Stride> expanded_block_table;
  int32_t* per_req_lens;  ///< may be null
  [[no_unique_address]] IndexerSchedule<Traits> schedules;

  using Request = typename decltype(batch)::Request;

  /// Columns of the block table that show a request.
  __device__ int32_t entries(const Request& request) const {
    return rules::live_blocks(rules::final_states(batch.kv(request), shard, compress_ratio), page_size);
  }

  __device__ void store_tokens(int32_t b, int32_t tokens) const {
    if (per_req_lens != nullptr) per_req_lens[b] = tokens;
  }

  __device__ void store_row(int32_t t, int64_t seqlen, int32_t index) const {
    global_seq_lens.store(t, rules::saturated(seqlen));
    decode_seq_lens.store(t, rules::final_length(seqlen, shard, compress_ratio));
    decode_lens.store(t, 1);
    indices.store(t, index);
  }

  /// Rows that no token fills, and what lies beyond the rows: the elements `first`, `first + step` and so on of each.
  __device__ void store_padding(int32_t total, int first, int step) const {
#pragma unroll 1
    for (int32_t t = min(total, batch.capacity) + first; t < batch.capacity; t += step) {
      store_row(t, 0, batch.bs + (t - total));
      if (t < expanded_block_table.rows) *expanded_block_table.row(t) = 0;
    }
  }
  __device__ void store_end(int first, int step) const {
#pragma unroll 4
    for (int32_t t = batch.capacity + first; t < decode_seq_lens.size; t += step) decode_seq_lens.data[t] = 0;
  }
};

/// The tokens of one request that the rows hold.
struct IndexerTokens {
  int64_t first;  ///< KV length that the first one sees
  int32_t tokens;
  int32_t at;  ///< of the first
  int32_t request;
};

/// One value a token; the blocks of a tile share its tokens.
template <class Traits>
__device__ void fill_tokens(const IndexerRowsArguments<Traits>& args, unsigned share) {
  constexpr bool kMany = Traits::kMany;
  using Scan = CumulativeScan<kTile, kMany, Sums<1>>;
  __shared__ typename Scan::Shared shared;
  Scan scan(shared);
  const auto& batch = args.batch;
  for_each_tile<kTile, kMany>(batch.bs, share, args.roles.token_blocks(), [&](const Tile& tile) {
    const int b = tile.begin + threadIdx.x;
    const bool mine = threadIdx.x < tile.requests;
    typename IndexerRowsArguments<Traits>::Request request{};
    if (mine) request = batch.read(b);
    scan.enter(
        tile, [&](int earlier) { return batch.read_tokens(earlier); },
        [&](const auto& raw) { return Sums<1>{{batch.tokens(raw)}}; });
    const int32_t tokens = mine ? batch.tokens(request) : 0;
    if (mine && share == 0) args.store_tokens(b, tokens);
    const Scanned<Sums<1>> scanned = scan.exclusive({{tokens}});
    const int32_t at = scanned.before.value[0];
    const IndexerTokens span{batch.first_seqlen(request), batch.held_tokens(at, tokens), at, b};
    for_each_token(tile, span, [&](const IndexerTokens& of, int32_t j) {
      args.store_row(of.at + j, rules::expanded_seqlen(of.first, j), of.request);
    });
    if (!tile.last) return;
    const int first = static_cast<int>(share * kTile + threadIdx.x), step = static_cast<int>(tile.shares * kTile);
    args.store_padding(scanned.total.value[0], first, step);
    args.store_end(first, step);
  });
}

/// The same for up to one warp's width of requests, each of which has warps for its tokens.
template <class Traits>
__device__ void fill_lengths_of_small_batch(const IndexerRowsArguments<Traits>& args, unsigned warp) {
  const auto& batch = args.batch;
  const int lane = threadIdx.x % kWarp;
  const bool mine = lane < batch.bs;
  typename IndexerBatch<typename Traits::Step>::Tokens raw{};
  if (warp < args.small_batch.tokens) {
    const int share = args.bs_divisor.quotient(warp), b = warp - share * batch.bs;
    const auto request = batch.read(b);
    if (mine) raw = batch.read_tokens(lane);
    const int32_t at = batch.ragged() ? warp_sum(lane < b ? batch.tokens(raw) : 0) : batch.uniform_tokens_before(b);
    const int32_t held = batch.held_tokens(at, batch.tokens(request));
    const int64_t first = batch.first_seqlen(request);
#pragma unroll 1
    for (int32_t j = share * kWarp + lane; j < held; j += args.small_batch.token_shares * kWarp) {
      args.store_row(at + j, rules::expanded_seqlen(first, j), b);
    }
    return;
  }
  warp -= args.small_batch.tokens;
  const int first = warp * kWarp + lane, step = args.small_batch.padding * kWarp;
  if (mine) raw = batch.read_tokens(lane);
  args.store_end(first, step);
  const int32_t tokens = mine ? batch.tokens(raw) : 0;
  if (mine && warp == 0) args.store_tokens(lane, tokens);
  args.store_padding(batch.ragged() ? warp_sum(tokens) : batch.uniform_tokens_before(batch.bs), first, step);
}

template <class Traits>
__global__ __launch_bounds__(kSmallBatchBlock) void indexer_rows_small_batch_kernel(
    const __grid_constant__ IndexerRowsArguments<Traits> args) {
  if constexpr (is_left_out<Traits>()) return;
  await_stream();
  const unsigned block = blockIdx.x;
  if (block < args.roles.tables) {
    fill_lengths_of_small_batch(args, block * (kSmallBatchBlock / kWarp) + threadIdx.x / kWarp);
  } else if (writes_tables(args, block)) {
    fill_tables_of_small_batch<SmallBatchShape, OverflowShape>(args, block - args.roles.tables);
  } else if constexpr (Traits::kSchedules) {
    fill_schedule_of_small_batch(args, block - args.roles.schedule);
  }
}

/// Blocks that a multiprocessor holds at once, at least: a scan of many tiles for a schedule takes more registers.
template <class Traits, int kThreads = kTile>
constexpr int kResidentBlocks =
    kThreads > kTile || (Traits::kMany && Traits::kSchedules) ? 1 : kBlocksPerMultiprocessor;

template <class Traits>
__global__ __launch_bounds__(kTile, kResidentBlocks<Traits>) void indexer_rows_kernel(
    const __grid_constant__ IndexerRowsArguments<Traits> args) {
  if constexpr (is_left_out<Traits>()) return;
  await_stream();
  const unsigned block = blockIdx.x;
  if (block < args.roles.tables) {
    fill_tokens(args, block);
  } else if (writes_tables(args, block)) {
    fill_tables<LargeBatchShape, OverflowShape, kTile>(args, block - args.roles.tables);
  } else if constexpr (Traits::kSchedules) {
    fill_schedule<kTile>(args);
  }
}

/// What the kernels of layout `native` read. Each output may be null.
template <class Traits_>
struct IndexerNativeArguments {
  using Traits = Traits_;

  unsigned schedule_begin = 0;  ///< the first block in a row of the grid that writes the schedule
  int32_t columns;              ///< `max_query_len`
  rules::Divisor columns_divisor;
  IndexerBatch<typename Traits::Step> batch;   ///< of rows
  IndexerBatch<typename Traits::Step> counts;  ///< the same requests with their own tokens
  rules::ContextShard shard;
  rules::WideDivisor compress_ratio;
  int32_t* decode_seq_lens;
  int32_t elements;  ///< of `decode_seq_lens`
  int32_t* decode_lens;
  int32_t* per_req_lens;
  [[no_unique_address]] IndexerSchedule<Traits> schedules;

  using Request = typename decltype(batch)::Request;
};

/// One thread an element, or a few.
template <int kThreads, class Traits>
__device__ void fill_native(const IndexerNativeArguments<Traits>& args) {
  const auto& batch = args.batch;
  const int blocks = static_cast<int>(args.schedule_begin * gridDim.y);
  const int block = static_cast<int>(blockIdx.y * args.schedule_begin + blockIdx.x);
#pragma unroll 1
  for (int i = block * kThreads + threadIdx.x; i < max(args.elements, batch.bs); i += blocks * kThreads) {
    if (i < batch.bs) {
      const int32_t tokens = args.counts.tokens(args.counts.read_tokens(i));
      if (args.decode_lens != nullptr) args.decode_lens[i] = tokens;
      if (args.per_req_lens != nullptr) args.per_req_lens[i] = tokens;
    }
    if (i < args.elements) {
      const int32_t b = args.columns_divisor.quotient(i), j = i - b * args.columns;
      const int64_t seqlen = rules::expanded_seqlen(batch.first_seqlen(batch.read(b)), j);
      args.decode_seq_lens[i] = rules::final_length(seqlen, args.shard, args.compress_ratio);
    }
  }
}

template <class Traits>
__global__ __launch_bounds__(kSmallBatchBlock) void indexer_native_small_batch_kernel(
    const __grid_constant__ IndexerNativeArguments<Traits> args) {
  if constexpr (is_left_out<Traits>()) return;
  await_stream();
  if constexpr (Traits::kSchedules) {
    if (blockIdx.x >= args.schedule_begin) return fill_schedule_of_small_batch(args, blockIdx.x - args.schedule_begin);
  }
  fill_native<kSmallBatchBlock>(args);
}

template <class Traits, int kThreads>
__global__ __launch_bounds__(kThreads, kResidentBlocks<Traits, kThreads>) void indexer_native_kernel(
    const __grid_constant__ IndexerNativeArguments<Traits> args) {
  if constexpr (is_left_out<Traits>()) return;
  await_stream();
  if constexpr (Traits::kSchedules) {
    if (blockIdx.x >= args.schedule_begin) return fill_schedule<kThreads>(args);
  }
  fill_native<kThreads>(args);
}

template <class Kernel>
const void* address(Kernel* kernel) {
  return reinterpret_cast<const void*>(kernel);
}

template <bool kSchedules>
using BoundedTraits = FastTraits<TokenCounts::any, kSchedules>;
template <bool kSchedules>
using UnboundedTraits = GenericTraits<TokenCounts::any, kSchedules>;

template <bool kSchedules>
Kernels kernels(kOp, {address(indexer_rows_small_batch_kernel<BoundedTraits<kSchedules>>),
                      address(indexer_rows_kernel<BoundedTraits<kSchedules>>),
                      address(indexer_rows_kernel<UnboundedTraits<kSchedules>>),
                      address(indexer_native_small_batch_kernel<BoundedTraits<kSchedules>>),
                      address(indexer_native_kernel<BoundedTraits<kSchedules>, kTile>),
                      address(indexer_native_kernel<BoundedTraits<kSchedules>, kWideTile>),
                      address(indexer_native_kernel<UnboundedTraits<kSchedules>, kTile>)});

/// Whether the assumptions of FastTraits hold but for the number of requests.
bool all_near(const IndexerDecode& buffers) {
  return is_near(buffers.seq_lens) && is_near(buffers.query_start_loc) && is_near(buffers.query_lens) &&
         is_near(buffers.block_table) && is_near(buffers.expanded_block_table);
}

/// The first rows of a table, or none.
TableView<int32_t> first_rows(TableView<int32_t> table, int64_t rows) {
  table.rows = rules::min(table.rows, rows);
  return table;
}

template <class Traits>
Tables<Traits> tables_of(const IndexerDecode& buffers) {
  using Stride = typename Traits::Stride;
  const TableView<int32_t> expanded = first_rows(buffers.expanded_block_table, *buffers.num_tokens);
  const bool aligned = rows_are_aligned(buffers.block_table) && rows_are_aligned(expanded);
  const int32_t columns = rules::saturated(rules::min(buffers.block_table.cols, expanded.cols));
  return {.assignment = {},
          .max_extent = {.slots = aligned ? columns : 0, .pages = aligned ? 0 : columns},
          .page_size = 1,
          .source = TableRows<const int32_t, Stride>(buffers.block_table),
          .page_size_divisor = rules::Divisor(1),
          .slots = TableRows<int32_t, Stride>(first_rows(expanded, aligned ? expanded.rows : 0)),
          .pages = TableRows<int32_t, Stride>(first_rows(expanded, aligned ? 0 : expanded.rows)),
          .static_extent = {},
          .aligned = aligned};
}

template <class Traits, class Batch>
IndexerSchedule<Traits> schedule_of(const IndexerDecode& buffers, const Batch& batch) {
  if constexpr (Traits::kSchedules) {
    return {buffers.schedule, schedule_rule_of(buffers), splits_of(buffers), batch};
  } else {
    return {};
  }
}

/// What the buffers say of the launch; who does what is still open.
template <class Traits>
IndexerRowsArguments<Traits> rows_arguments(const IndexerDecode& buffers) {
  const int64_t rows = *buffers.num_tokens;
  const auto batch = batch_of<typename Traits::Step>(buffers);
  const TableView<int32_t>& expanded = buffers.expanded_block_table;
  const auto held = [&](const View<int32_t>& view) {
    return TokenArray(View<int32_t>{view.data, rules::min(view.size, rows)});
  };
  return {
      .roles = {},
      .bs_divisor = rules::Divisor(rules::max(batch.bs, 1)),
      .start_stride = start_stride(rules::min(batch.bs, kTile)),
      .batch = batch,
      .shard = shard_of(buffers),
      .compress_ratio = rules::WideDivisor(buffers.compress_ratio),
      .page_size = rules::WideDivisor(buffers.page_size),
      .tables = tables_of<Traits>(buffers),
      .small_batch = {},
      .global_seq_lens = held(buffers.global_seq_lens),
      .decode_seq_lens = TokenArray(buffers.decode_seq_lens),
      .decode_lens = held(buffers.decode_lens),
      .indices = held(buffers.indices),
      .expanded_block_table =
          TableRows<int32_t, typename Traits::Stride>(first_rows(expanded, expanded.cols > 0 ? rows : 0)),
      .per_req_lens = buffers.per_req_lens.data,
      .schedules = schedule_of<Traits>(buffers, batch),
  };
}

/// Elements of the longest output that has one a token.
template <class Traits>
int64_t longest(const IndexerRowsArguments<Traits>& args) {
  return rules::max(args.batch.capacity, args.decode_seq_lens.size);
}

/// The warps for the lengths of a small batch, in whole blocks.
SmallBatchWarps small_batch_warps(int64_t bs, int64_t rows, int64_t elements, int multiprocessors) {
  constexpr int64_t kWarps = kSmallBatchBlock / kWarp, kTokensOfWarp = 2048, kPaddingOfWarp = 512;
  const int64_t token_shares = rules::min(rules::ceil_div(rows, kTokensOfWarp), multiprocessors);
  const int64_t tokens = token_shares * bs;
  const int64_t padding = rules::min(rules::ceil_div(elements, kPaddingOfWarp), multiprocessors * kWarps);
  const int64_t blocks = rules::ceil_div(tokens + rules::max(padding, 1), kWarps);
  return {.tokens = static_cast<unsigned>(tokens),
          .token_shares = static_cast<unsigned>(token_shares),
          .requests = 0,
          .padding = static_cast<unsigned>(blocks * kWarps - tokens)};
}

bool writes_lengths(const IndexerDecode& buffers) {
  return buffers.decode_seq_lens || buffers.global_seq_lens || buffers.decode_lens || buffers.per_req_lens ||
         buffers.indices || buffers.expanded_block_table;
}

template <class Traits>
bool has_tables(const IndexerRowsArguments<Traits>& args) {
  return args.batch.bs > 0 && args.tables.rows() > 0;
}

template <class Traits>
void launch_small_batch(const IndexerDecode& buffers, const Target& target, cudaStream_t stream) {
  IndexerRowsArguments<Traits> args = rows_arguments<Traits>(buffers);
  constexpr int kWarps = kSmallBatchBlock / kWarp;
  RoleBlocks blocks;
  if (writes_lengths(buffers)) {
    args.small_batch = small_batch_warps(args.batch.bs, args.batch.capacity, longest(args), target.multiprocessors);
    blocks.tokens = args.small_batch.all() / kWarps;
  }
  if (buffers.schedule) blocks.schedule = small_batch_schedule_blocks(buffers.schedule.rows, kSmallBatchBlock);
  if (has_tables(args)) {
    const int64_t at_once = int64_t{target.multiprocessors} * kSmallBatchBlocksPerMultiprocessor;
    blocks.tables = table_blocks<SmallBatchShape>(args, kWarps, table_block_limit(at_once, blocks.all()));
  }
  const unsigned grid = blocks.assign(args);
  if (grid > 0) enqueue(kOp, indexer_rows_small_batch_kernel<Traits>, grid, kSmallBatchBlock, target, stream, args);
}

template <class Traits>
void launch_rows(const IndexerDecode& buffers, const Target& target, cudaStream_t stream) {
  IndexerRowsArguments<Traits> args = rows_arguments<Traits>(buffers);
  const int64_t at_once = int64_t{target.multiprocessors} * kResidentBlocks<Traits>;
  const Grid lengths(args.batch.bs, kTile, useful_token_blocks(longest(args), args.batch.bs), at_once);
  RoleBlocks blocks;
  if (writes_lengths(buffers)) blocks.tokens = lengths.shares;
  if (buffers.schedule) blocks.schedule = 1;
  if (has_tables(args)) {
    const int64_t limit = table_block_limit(at_once, blocks.all() * lengths.rows);
    blocks.tables = table_blocks<LargeBatchShape>(args, kTile / kWarp, limit);
  }
  const unsigned grid = blocks.assign(args);
  if (grid > 0) enqueue(kOp, indexer_rows_kernel<Traits>, dim3(grid, lengths.rows), kTile, target, stream, args);
}

template <class Traits>
IndexerNativeArguments<Traits> native_arguments(const IndexerDecode& buffers) {
  using Step = typename Traits::Step;
  const int64_t columns = buffers.max_query_len.value_or(0);
  const auto batch = native_rows_of<Step>(buffers);
  return {
      .columns = static_cast<int32_t>(columns),
      .columns_divisor = rules::Divisor(rules::max(columns, 1)),
      .batch = batch,
      .counts = batch_of<Step>(buffers),
      .shard = shard_of(buffers),
      .compress_ratio = rules::WideDivisor(buffers.compress_ratio),
      .decode_seq_lens = buffers.decode_seq_lens.data,
      .elements = static_cast<int32_t>(buffers.decode_seq_lens ? *buffers.num_tokens : 0),
      .decode_lens = buffers.decode_lens.data,
      .per_req_lens = buffers.per_req_lens.data,
      .schedules = schedule_of<Traits>(buffers, batch),
  };
}

/// Blocks of layout `native` for lengths, of so many threads.
template <class Traits>
int64_t native_blocks(const IndexerNativeArguments<Traits>& args, int threads, int64_t limit) {
  const bool counts = args.decode_lens != nullptr || args.per_req_lens != nullptr;
  const int64_t elements = rules::max(args.elements, counts ? args.batch.bs : 0);
  return rules::min(rules::ceil_div(elements, threads), limit);
}

template <class Traits>
void launch_native_small_batch(const IndexerDecode& buffers, const Target& target, cudaStream_t stream) {
  IndexerNativeArguments<Traits> args = native_arguments<Traits>(buffers);
  const int64_t limit = int64_t{target.multiprocessors} * kSmallBatchBlocksPerMultiprocessor;
  args.schedule_begin = static_cast<unsigned>(native_blocks(args, kSmallBatchBlock, limit));
  const int64_t grid = args.schedule_begin +
                       (buffers.schedule ? small_batch_schedule_blocks(buffers.schedule.rows, kSmallBatchBlock) : 0);
  if (grid == 0) return;
  enqueue(kOp, indexer_native_small_batch_kernel<Traits>, static_cast<unsigned>(grid), kSmallBatchBlock, target, stream,
          args);
}

template <class Traits, int kThreads = kTile>
void launch_native(const IndexerDecode& buffers, const Target& target, cudaStream_t stream) {
  IndexerNativeArguments<Traits> args = native_arguments<Traits>(buffers);
  const int64_t limit = int64_t{target.multiprocessors} * kResidentBlocks<Traits, kThreads>;
  const int64_t blocks = native_blocks(args, kThreads, limit);
  const unsigned rows = buffers.schedule ? Grid(args.batch.bs, kThreads, 1, limit).rows : 1;
  args.schedule_begin = static_cast<unsigned>(rules::ceil_div(blocks, rows));
  const unsigned grid = args.schedule_begin + (buffers.schedule ? 1 : 0);
  if (grid == 0) return;
  enqueue(kOp, indexer_native_kernel<Traits, kThreads>, dim3(grid, rows), kThreads, target, stream, args);
}

template <bool kSchedules>
void launch_any(const IndexerDecode& buffers, cudaStream_t stream) {
  using Bounded = BoundedTraits<kSchedules>;
  using Unbounded = UnboundedTraits<kSchedules>;
  const Target target = kernels<kSchedules>.ready(buffers.device);
  const int64_t bs = target.has_fast && all_near(buffers) ? buffers.seq_lens.size : rules::kMaxStored;
  if (buffers.layout == IndexerLayout::native) {
    if (bs <= kWarp) return launch_native_small_batch<Bounded>(buffers, target, stream);
    if (bs <= kTile) return launch_native<Bounded>(buffers, target, stream);
    if (bs <= kWideTile) return launch_native<Bounded, kWideTile>(buffers, target, stream);
    return launch_native<Unbounded>(buffers, target, stream);
  }
  if (bs <= kWarp) return launch_small_batch<Bounded>(buffers, target, stream);
  if (bs <= kTile) return launch_rows<Bounded>(buffers, target, stream);
  launch_rows<Unbounded>(buffers, target, stream);
}

}  // namespace

void fill_indexer_decode(const IndexerDecode& buffers, Stream stream) {
  const DeviceGuard guard(buffers.device, kOp);
  const auto on = static_cast<cudaStream_t>(stream);
  if (buffers.schedule) return launch_any<true>(buffers, on);
  launch_any<false>(buffers, on);
}

}  // namespace nsa_kernel::cuda
