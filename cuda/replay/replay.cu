// replay on the device: one launch, in which some blocks write the lengths and the others the tables.
#include <cuda_runtime.h>

#include <cstddef>

#include "check.h"
#include "enqueue.cuh"
#include "grid.h"
#include "kernels.h"
#include "launch.h"
#include "replay/arguments.cuh"
#include "replay/lengths.cuh"
#include "replay_batch.h"
#include "tables/assignment.cuh"
#include "tables/launch.cuh"

namespace nsa_kernel::cuda {
namespace {

constexpr const char* kOp = "fill_replay_metadata";

// Of a small batch, large tables take least time where each task has a warp of its own, small ones where tasks are
// small.
template <class Traits>
constexpr int kSmallBatchBlocksPerMultiprocessor = Traits::kCounts == TokenCounts::lengths ? 5 : 6;
template <class Traits>
using SmallBatchShape = CopyShape<Traits::kCounts == TokenCounts::lengths ? 4 : 3, 2>;

template <class Traits>
__global__ __launch_bounds__(kSmallBatchBlock) void replay_small_batch_kernel(
    const __grid_constant__ ReplayArguments<Traits> args) {
  if constexpr (is_left_out<Traits>()) return;
  await_stream();
  const unsigned block = blockIdx.x;
  if (block < args.roles.tables) {
    unsigned first = 0;
    if constexpr (Traits::kSchedules) {
      first = args.roles.tokens;
      if (block < first) return fill_topk_plan_of_small_batch(args);
    }
    fill_lengths_of_small_batch(args, (block - first) * (kSmallBatchBlock / kWarp) + threadIdx.x / kWarp);
  } else if (writes_tables(args, block)) {
    fill_tables_of_small_batch<SmallBatchShape<Traits>, OverflowShape>(args, block - args.roles.tables);
  } else if constexpr (Traits::kSchedules) {
    fill_schedule_of_small_batch(args, block - args.roles.schedule);
  }
}

template <class Traits>
__global__ __launch_bounds__(kTile, kBlocksPerMultiprocessor) void replay_kernel(
    const __grid_constant__ ReplayArguments<Traits> args) {
  if constexpr (is_left_out<Traits>()) return;
  await_stream();
  const unsigned block = blockIdx.x;
  if (block < args.roles.tokens) {
    if constexpr (Traits::kSchedules) {
      if (args.schedules.topk_plan != nullptr && block + 1 == args.roles.tokens) return fill_topk_plan<kTile>(args);
    }
    fill_requests<kTile>(args);
  } else if (block < args.roles.tables) {
    fill_tokens<kTile>(args, block - args.roles.tokens);
  } else if (writes_tables(args, block)) {
    fill_tables<LargeBatchShape, OverflowShape, kTile>(args, block - args.roles.tables);
  } else if constexpr (Traits::kSchedules) {
    fill_schedule<kTile>(args);
  }
}

template <class Kernel>
const void* address(Kernel* kernel) {
  return reinterpret_cast<const void*>(kernel);
}

template <bool kSchedules>
using UniformTraits = FastTraits<TokenCounts::uniform, kSchedules>;
template <bool kSchedules>
using RaggedTraits = FastTraits<TokenCounts::lengths, kSchedules>;
template <bool kSchedules>
using UnboundedTraits = GenericTraits<TokenCounts::uniform_or_lengths, kSchedules>;
static_assert(offsetof(ReplayArguments<RaggedTraits<false>>, tables) + offsetof(Tables<RaggedTraits<false>>, aligned) <=
                  3 * 64 - 16,
              "an H100 lays arguments out from byte 16 of a line on");

template <bool kSchedules>
Kernels kernels(kOp, {address(replay_small_batch_kernel<UniformTraits<kSchedules>>),
                      address(replay_kernel<UniformTraits<kSchedules>>),
                      address(replay_small_batch_kernel<RaggedTraits<kSchedules>>),
                      address(replay_kernel<RaggedTraits<kSchedules>>),
                      address(replay_kernel<UnboundedTraits<kSchedules>>)});

Extent max_extent(const Replay& buffers, const rules::Divisor& page_size) {
  const auto kv = static_cast<int32_t>(rules::kMaxStored);
  const int32_t source_width = rules::saturated(buffers.req_to_token.cols);
  return {rules::live_slots(kv, source_width, rules::saturated(buffers.page_table.cols)),
          rules::live_pages(kv, source_width, rules::saturated(buffers.real_page_table.cols), page_size)};
}

/// The warps for the lengths of a small batch, in whole blocks.
SmallBatchWarps small_batch_warps(int64_t bs, bool any_request, bool ragged, int64_t capacity, int multiprocessors) {
  constexpr int64_t kWarps = kSmallBatchBlock / kWarp, kTokensOfWarp = 2048;
  const int64_t shares = rules::min(rules::ceil_div(capacity, kTokensOfWarp), multiprocessors);
  const int64_t token_shares = ragged ? shares : rules::min(shares, 1);  // uniform requests are short
  const int64_t requests = any_request ? bs : 0, busy = token_shares * bs + requests;
  const int64_t blocks = rules::ceil_div(busy, kWarps) + rules::max(shares, 1);
  return {.tokens = static_cast<unsigned>(token_shares * bs),
          .token_shares = static_cast<unsigned>(token_shares),
          .requests = static_cast<unsigned>(requests),
          .padding = static_cast<unsigned>(blocks * kWarps - busy)};
}

bool tables_are_aligned(const Replay& buffers) {
  return rows_are_aligned(buffers.req_to_token) && rows_are_aligned(buffers.page_table);
}

/// Whether the assumptions of FastTraits hold. In a large batch, fetching the instructions of the generic kernel does
/// not count.
bool is_fast(const Replay& buffers) {
  return buffers.seq_lens.size <= kTile && (buffers.extend_seq_lens || *buffers.num_draft_tokens <= kMaxTaskRows) &&
         tables_are_aligned(buffers) && is_near(buffers.req_to_token) && is_near(buffers.page_table) &&
         is_near(buffers.real_page_table) && is_near(buffers.ctx_lens_2d) && is_near(buffers.seq_lens) &&
         is_near(buffers.req_pool_indices) && is_near(buffers.extend_seq_lens);
}

bool writes_requests(const Replay& buffers) {
  return buffers.cache_seqlens || buffers.cu_seqlens_k || buffers.ctx_lens_2d;
}

bool writes_schedules(const Replay& buffers) { return buffers.schedule || buffers.topk_plan; }

bool writes_tokens(const Replay& buffers) {
  return buffers.seqlens_expanded || buffers.nsa_cache_seqlens || buffers.nsa_cu_seqlens_k || buffers.num_tokens;
}

/// What a schedule and a top-k plan of the batch take.
template <class Traits>
auto schedule_arguments(const Replay& buffers, const Batch<Traits::kCounts, typename Traits::Step>& batch) {
  if constexpr (Traits::kSchedules) {
    const ScheduleFormat format = buffers.schedule_format.value_or(ScheduleFormat::deepgemm_sm90);
    const rules::ScheduleRule rule(format, buffers.schedule_rows, *buffers.schedule_atoms);
    return TopkPlanArguments<rules::SeqlenSplits>{
        {buffers.schedule, rule, rules::SeqlenSplits(rule.split()), batch},
        reinterpret_cast<Pair*>(buffers.topk_plan.data),
        rules::TopkPlanRule(buffers.topk_plan_format.value_or(TopkPlanFormat::sglang_topk_v2_sm90)),
    };
  } else {
    return Absent();
  }
}

/// What the buffers say of the launch; who does what is still open.
template <class Traits>
ReplayArguments<Traits> arguments(const Replay& buffers) {
  using Stride = typename Traits::Stride;
  const rules::Divisor page_size(buffers.page_size);
  const auto batch = batch_of<Traits::kCounts, typename Traits::Step>(buffers);
  return {
      .roles = {},
      .bs_divisor = rules::Divisor(rules::max(batch.bs, 1)),
      .start_stride = start_stride(rules::min(batch.bs, kTile)),
      .batch = batch,
      .tables = {.assignment = {},
                 .max_extent = max_extent(buffers, page_size),
                 .page_size = static_cast<uint32_t>(buffers.page_size),
                 .source = TableRows<const int32_t, Stride>(buffers.req_to_token),
                 .page_size_divisor = page_size,
                 .slots = TableRows<int32_t, Stride>(buffers.page_table),
                 .pages = TableRows<int32_t, Stride>(buffers.real_page_table),
                 .static_extent = {},
                 .aligned = tables_are_aligned(buffers)},
      .small_batch = {},
      .topk = static_cast<int32_t>(*buffers.nsa_index_topk),
      .seqlens_expanded = TokenArray(buffers.seqlens_expanded),
      .nsa_cache_seqlens = TokenArray(buffers.nsa_cache_seqlens),
      .nsa_cu_seqlens_k = TokenArray(buffers.nsa_cu_seqlens_k, 1),
      .nsa_cu_seqlens_k_start = buffers.nsa_cu_seqlens_k.size > 0 ? buffers.nsa_cu_seqlens_k.data : nullptr,
      .num_tokens = buffers.num_tokens.data,
      .cache_seqlens = buffers.cache_seqlens.data,
      .cu_seqlens_k = buffers.cu_seqlens_k.data,
      .ctx_lens_2d = TableRows<int32_t, Stride>(buffers.ctx_lens_2d),
      .schedules = schedule_arguments<Traits>(buffers, batch),
  };
}

template <class Traits>
void launch_small_batch(const Replay& buffers, const Target& target, cudaStream_t stream) {
  ReplayArguments<Traits> args = arguments<Traits>(buffers);
  constexpr int kWarps = kSmallBatchBlock / kWarp;
  RoleBlocks blocks;
  if (writes_requests(buffers) || writes_tokens(buffers)) {
    args.small_batch = small_batch_warps(args.batch.bs, writes_requests(buffers), args.batch.ragged(),
                                         args.batch.capacity, target.multiprocessors);
    blocks.tokens = args.small_batch.all() / kWarps;
  }
  if (buffers.schedule) blocks.schedule = small_batch_schedule_blocks(buffers.schedule.rows, kSmallBatchBlock);
  if (buffers.topk_plan) blocks.topk_plan = 1;
  if (args.batch.bs > 0 && args.tables.rows() > 0) {
    const int64_t at_once = int64_t{target.multiprocessors} * kSmallBatchBlocksPerMultiprocessor<Traits>;
    blocks.tables = table_blocks<SmallBatchShape<Traits>>(args, kWarps, table_block_limit(at_once, blocks.all()));
  }
  const unsigned grid = blocks.assign(args);
  if (grid > 0) enqueue(kOp, replay_small_batch_kernel<Traits>, grid, kSmallBatchBlock, target, stream, args);
}

template <class Traits>
void launch(const Replay& buffers, const Target& target, cudaStream_t stream) {
  ReplayArguments<Traits> args = arguments<Traits>(buffers);
  const int64_t at_once = int64_t{target.multiprocessors} * kBlocksPerMultiprocessor;
  const Grid lengths(args.batch.bs, kTile, useful_token_blocks(args.batch.capacity, args.batch.bs), at_once);
  RoleBlocks blocks;
  if (writes_requests(buffers)) blocks.requests = 1;
  if (writes_tokens(buffers)) blocks.tokens = lengths.shares;
  if (buffers.schedule) blocks.schedule = 1;
  if (buffers.topk_plan) blocks.topk_plan = 1;
  if (args.batch.bs > 0 && args.tables.rows() > 0) {
    const int64_t limit = table_block_limit(at_once, blocks.all() * lengths.rows);
    blocks.tables = table_blocks<LargeBatchShape>(args, kTile / kWarp, limit);
  }
  const unsigned grid = blocks.assign(args);
  if (grid > 0) enqueue(kOp, replay_kernel<Traits>, dim3(grid, lengths.rows), kTile, target, stream, args);
}

template <class Traits>
void launch_fast(const Replay& buffers, const Target& target, cudaStream_t stream) {
  if (buffers.seq_lens.size <= kWarp) return launch_small_batch<Traits>(buffers, target, stream);
  launch<Traits>(buffers, target, stream);
}

template <bool kSchedules>
void launch_any(const Replay& buffers, cudaStream_t stream) {
  const Target target = kernels<kSchedules>.ready(buffers.device);
  if (!target.has_fast || !is_fast(buffers)) return launch<UnboundedTraits<kSchedules>>(buffers, target, stream);
  if (buffers.extend_seq_lens) return launch_fast<RaggedTraits<kSchedules>>(buffers, target, stream);
  launch_fast<UniformTraits<kSchedules>>(buffers, target, stream);
}

}  // namespace

void fill_replay(const Replay& buffers, Stream stream) {
  const DeviceGuard guard(buffers.device, kOp);
  const auto on = static_cast<cudaStream_t>(stream);
  if (writes_schedules(buffers)) return launch_any<true>(buffers, on);
  launch_any<false>(buffers, on);
}

}  // namespace nsa_kernel::cuda
