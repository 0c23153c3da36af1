// replay on the device: one launch, in which some blocks write the lengths and the others the tables.
#include <cuda_runtime.h>

#include <cstddef>
#include <numeric>

#include "check.h"
#include "enqueue.cuh"
#include "grid.h"
#include "kernels.h"
#include "launch.h"
#include "replay/arguments.cuh"
#include "replay/assignment.cuh"
#include "replay/lengths.cuh"
#include "replay_batch.h"

namespace nsa_kernel::cuda {
namespace {

constexpr const char* kOp = "fill_replay_metadata";

// A small batch, of up to one warp's width of requests. Large tables take least time where each task has a warp of its
// own, small ones where tasks are small.
constexpr int kSmallBatchBlock = 128;
template <class Traits>
constexpr int kSmallBatchBlocksPerMultiprocessor = Traits::kCounts == TokenCounts::lengths ? 5 : 6;
template <class Traits>
using SmallBatchShape = CopyShape<Traits::kCounts == TokenCounts::lengths ? 4 : 3, 2>;
// A larger one.
constexpr int kTile = 512;
constexpr int kBlocksPerMultiprocessor = 2;
using Shape = CopyShape<3, 2>;
// Overflow tasks of either. ReplayPlan refuses tables that would have more than 2**31 of them.
using OverflowShape = CopyShape<2, 1>;
static_assert(OverflowShape::kTaskSlots >= 256 && OverflowShape::kTaskPages >= 32 && kMaxTaskRows >= 16);

/// Whether a block beyond those of lengths writes tables: where no schedule is asked for, all do.
template <class Traits>
__device__ bool writes_tables(const ReplayArguments<Traits>& args, unsigned block) {
  return !Traits::kSchedules || block < args.roles.schedule;
}

template <class Traits>
__global__ __launch_bounds__(kSmallBatchBlock) void replay_small_batch_kernel(
    const __grid_constant__ ReplayArguments<Traits> args) {
  await_stream();
  const unsigned block = blockIdx.x;
  if (block < args.roles.tables) {
    fill_lengths_of_small_batch(args, block * (kSmallBatchBlock / kWarp) + threadIdx.x / kWarp);
  } else if (writes_tables(args, block)) {
    fill_tables_of_small_batch<SmallBatchShape<Traits>, OverflowShape>(args, block - args.roles.tables);
  } else if constexpr (Traits::kSchedules) {
    if (block < args.schedules.topk_plan_begin) {
      fill_schedule_of_small_batch(args, block - args.roles.schedule);
    } else {
      fill_topk_plan_of_small_batch(args);
    }
  }
}

template <class Traits>
__global__ __launch_bounds__(kTile, kBlocksPerMultiprocessor) void replay_kernel(
    const __grid_constant__ ReplayArguments<Traits> args) {
  await_stream();
  const unsigned block = blockIdx.x;
  if (block < args.roles.tokens) {
    fill_requests<kTile>(args);
  } else if (block < args.roles.tables) {
    fill_tokens<kTile>(args, block - args.roles.tokens);
  } else if (writes_tables(args, block)) {
    fill_tables<Shape, OverflowShape, kTile>(args, block - args.roles.tables);
  } else if constexpr (Traits::kSchedules) {
    if (block < args.schedules.topk_plan_begin) {
      fill_schedule<kTile>(args);
    } else {
      fill_topk_plan<kTile>(args);
    }
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
static_assert(offsetof(ReplayArguments<RaggedTraits<false>>, tables) + offsetof(Tables<RaggedTraits<false>>, aligned) <=
                  3 * 64 - 16,
              "an H100 lays arguments out from byte 16 of a line on");

template <bool kSchedules>
Kernels kernels(kOp,
                {address(replay_small_batch_kernel<UniformTraits<kSchedules>>),
                 address(replay_kernel<UniformTraits<kSchedules>>),
                 address(replay_small_batch_kernel<RaggedTraits<kSchedules>>),
                 address(replay_kernel<RaggedTraits<kSchedules>>), address(replay_kernel<GenericTraits<kSchedules>>)});

/// Where the overflow tasks of the second request of a tile start, as a part of 2**32 of all table warps: starts are
/// evenly spaced, and those of consecutive requests far apart.
uint32_t start_stride(int64_t requests) {
  int64_t apart = requests * 5 / 8;
  while (std::gcd(apart, requests) > 1) ++apart;
  return static_cast<uint32_t>((apart << 32) / rules::max(requests, 1));
}

Extent max_extent(const Replay& buffers, const rules::Divisor& page_size) {
  const auto kv = static_cast<int32_t>(rules::kMaxStored);
  const int32_t source_width = rules::saturated(buffers.req_to_token.cols);
  return {rules::live_slots(kv, source_width, rules::saturated(buffers.page_table.cols)),
          rules::live_pages(kv, source_width, rules::saturated(buffers.real_page_table.cols), page_size)};
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
/// all of a batch of many tiles, those of ragged requests that exceed the rows of a task in any other.
template <class Traits>
int64_t max_overflow_tasks(const Tables<Traits>& tables, int64_t bs) {
  const int64_t each =
      OverflowShape::slot_tasks(tables.max_extent.slots) + OverflowShape::page_tasks(tables.max_extent.pages);
  if constexpr (Traits::kMany) return each * (rules::min(bs, kTile) + tables.rows() / kMaxTaskRows);
  return Traits::kCounts == TokenCounts::lengths ? each * (tables.rows() / kMaxTaskRows) : 0;
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

template <class T>
bool starts_aligned(const TableView<T>& table) {
  return reinterpret_cast<uintptr_t>(table.data) % 16 == 0 && (table.row_stride % 4 == 0 || table.rows <= 1);
}

bool rows_are_aligned(const Replay& buffers) {
  return starts_aligned(buffers.req_to_token) && starts_aligned(buffers.page_table);
}

template <class T>
bool is_near(const TableView<T>& table) {
  const int64_t bytes = TableRows<T, uint32_t>::stride_bytes(table);
  return bytes >= 0 && bytes < int64_t{1} << 32;
}

bool is_near(const LengthView& view) {
  const int64_t bytes = IndexArray<>::step_bytes(view);
  return bytes >= 0 && bytes <= rules::kMaxStored;
}

/// Whether the assumptions of FastTraits hold. In a large batch, fetching the instructions of the generic kernel does
/// not count.
bool is_fast(const Replay& buffers) {
  return buffers.seq_lens.size <= kTile && (buffers.extend_seq_lens || *buffers.num_draft_tokens <= kMaxTaskRows) &&
         rows_are_aligned(buffers) && is_near(buffers.req_to_token) && is_near(buffers.page_table) &&
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
    const int64_t slots = rules::max(buffers.schedule.rows - 1, 1), rows = token_rows(batch);
    return ScheduleArguments<rules::SeqlenSplits>{
        .schedule = reinterpret_cast<Pair*>(buffers.schedule.data),
        .slots = static_cast<int32_t>(slots),
        .slots_divisor = rules::Divisor(slots),
        .rule = rule,
        .splits = rules::SeqlenSplits(rule.split()),
        .end = rule.end(batch.bs, rules::saturated(rows)),
        .topk_plan_begin = 0,
        .topk_plan = reinterpret_cast<Pair*>(buffers.topk_plan.data),
        .topk_plan_rule = rules::TopkPlanRule(buffers.topk_plan_format.value_or(TopkPlanFormat::sglang_topk_v2_sm90)),
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
                 .aligned = rows_are_aligned(buffers)},
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

/// Blocks for tables, where about `limit` run at once beside those of other roles.
template <class Shape, class Traits>
int64_t table_blocks(ReplayArguments<Traits>& args, int64_t warps_of_block, int64_t limit) {
  int64_t static_blocks = 1;
  if constexpr (!Traits::kMany) {
    assign_statically<Shape>(args.tables, args.batch.bs, limit * warps_of_block);
    static_blocks = rules::ceil_div(int64_t{args.tables.assignment.warps} * args.batch.bs, warps_of_block);
  }
  const int64_t overflow_tasks = max_overflow_tasks(args.tables, args.batch.bs);
  const Grid overflow(args.batch.bs, kTile, rules::ceil_div(overflow_tasks, warps_of_block), limit);
  return rules::max(static_blocks, overflow.shares);
}

/// Not many more blocks for tables than run at once beside the others: one that has to wait takes twice the time.
int64_t table_block_limit(int64_t at_once, int64_t other_blocks) {
  return rules::max(at_once - other_blocks, at_once / 2);
}

/// Blocks in a row of the grid for each role, in the order of the grid.
struct RoleBlocks {
  int64_t requests = 0;
  int64_t tokens = 0;
  int64_t tables = 0;
  int64_t schedule = 0;
  int64_t topk_plan = 0;

  /// Tells the kernel, and returns how many there are.
  template <class Traits>
  unsigned assign(ReplayArguments<Traits>& args) const {
    unsigned end = 0;
    const auto end_of = [&](int64_t blocks) { return end += static_cast<unsigned>(blocks); };
    args.roles.tokens = end_of(requests);
    args.roles.tables = end_of(tokens);
    args.roles.schedule = end_of(tables);
    end_of(schedule);
    if constexpr (Traits::kSchedules) args.schedules.topk_plan_begin = end;
    return end_of(topk_plan);
  }
};

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
  if (buffers.schedule) blocks.schedule = rules::ceil_div(buffers.schedule.rows, kSmallBatchBlock);
  if (buffers.topk_plan) blocks.topk_plan = 1;
  if (args.batch.bs > 0 && args.tables.rows() > 0) {
    const int64_t at_once = int64_t{target.multiprocessors} * kSmallBatchBlocksPerMultiprocessor<Traits>;
    const int64_t limit = table_block_limit(at_once, blocks.tokens + blocks.schedule + blocks.topk_plan);
    blocks.tables = table_blocks<SmallBatchShape<Traits>>(args, kWarps, limit);
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
    const int64_t others = blocks.requests + blocks.tokens + blocks.schedule + blocks.topk_plan;
    blocks.tables = table_blocks<Shape>(args, kTile / kWarp, table_block_limit(at_once, others * lengths.rows));
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
  if (!is_fast(buffers)) return launch<GenericTraits<kSchedules>>(buffers, target, stream);
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
