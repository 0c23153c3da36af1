// replay on the device: one launch, in which some blocks write the lengths and the others the tables.
#include <cuda_runtime.h>

#include <cstddef>
#include <numeric>

#include "check.h"
#include "enqueue.cuh"
#include "grid.h"
#include "kernels.h"
#include "launch.h"
#include "replay_args.cuh"
#include "replay_lengths.cuh"
#include "replay_tables.cuh"

namespace nsa_kernel::cuda {
namespace {

constexpr const char* kOp = "fill_replay_metadata";

// Up to one warp's width of requests. Large tables take least time where each unit has a warp of its own, small ones
// where units are small.
constexpr int kFewBlock = 128;
template <class Form>
constexpr int kFewBlocksPerMultiprocessor = Form::kCounts == TokenCounts::ragged ? 5 : 6;
template <class Form>
using FewSize = UnitSize<Form::kCounts == TokenCounts::ragged ? 4 : 3, 2>;
// More.
constexpr int kTile = 512;
constexpr int kBlocksPerMultiprocessor = 2;
using ManySize = UnitSize<3, 2>;
// What is left over of either. ReplayPlan refuses tables that would have more than 2**31 of these units.
using LeftSize = UnitSize<2, 1>;
static_assert(LeftSize::kUnitSlots >= 256 && LeftSize::kUnitPages >= 32 && kUnitRows >= 16);

template <class Form>
__global__ __launch_bounds__(kFewBlock) void replay_few_kernel(const __grid_constant__ Args<Form> args) {
  await_stream();
  if (blockIdx.x >= args.length_blocks) {
    fill_few_tables<FewSize<Form>, LeftSize>(args, blockIdx.x - args.length_blocks);
  } else {
    fill_few_lengths(args, blockIdx.x * (kFewBlock / kWarp) + threadIdx.x / kWarp);
  }
}

template <class Form>
__global__ __launch_bounds__(kTile,
                             kBlocksPerMultiprocessor) void replay_kernel(const __grid_constant__ Args<Form> args) {
  await_stream();
  if (blockIdx.x >= args.length_blocks) {
    fill_tables<ManySize, LeftSize, kTile>(args, blockIdx.x - args.length_blocks);
  } else if (blockIdx.x >= args.request_blocks) {
    fill_tokens<kTile>(args, blockIdx.x - args.request_blocks);
  } else {
    fill_requests<kTile>(args);
  }
}

template <class Kernel>
const void* address(Kernel* kernel) {
  return reinterpret_cast<const void*>(kernel);
}

using Uniform = Plain<TokenCounts::uniform>;
using Ragged = Plain<TokenCounts::ragged>;
static_assert(offsetof(Args<Ragged>, aligned) <= 3 * 64 - 16, "an H100 lays arguments out from byte 16 of a line on");

Kernels kernels(kOp,
                {address(replay_few_kernel<Uniform>), address(replay_kernel<Uniform>),
                 address(replay_few_kernel<Ragged>), address(replay_kernel<Ragged>), address(replay_kernel<General>)});

/// Where the home of the second request of a tile is, as a part of 2**32 of the ring: homes are evenly spaced, and
/// those of consecutive requests far apart.
uint32_t home_step(int64_t requests) {
  int64_t apart = requests * 5 / 8;
  while (std::gcd(apart, requests) > 1) ++apart;
  return static_cast<uint32_t>((apart << 32) / rules::max(requests, 1));
}

Part widest_rows(const Replay& buffers, const rules::Divisor& page_size) {
  const auto kv = static_cast<int32_t>(rules::kMaxStored);
  const int32_t source_width = rules::saturated(buffers.req_to_token.cols);
  return {rules::live_slots(kv, source_width, rules::saturated(buffers.page_table.cols)),
          rules::live_pages(kv, source_width, rules::saturated(buffers.real_page_table.cols), page_size)};
}

/// Divides up to about `warps` warps among the requests: as many for each as its widest rows can use.
template <class Size, class Form>
void divide_warps(Args<Form>& args, int64_t warps) {
  const int64_t slot_units = Size::slot_units(args.widest.slots), page_units = Size::page_units(args.widest.pages);
  const int64_t units = slot_units + page_units;
  const int64_t each = rules::min(rules::max(warps / args.bs, 2), units);
  const int64_t page_warps = rules::min(rules::ceil_div(each * page_units, rules::max(units, 1)), page_units);
  const int64_t slot_warps = each - page_warps;
  const int64_t slots = slot_warps * Size::kUnitSlots, pages = page_warps * Size::kUnitPages;
  const int64_t slots_kv = slot_warps < slot_units ? slots : rules::kMaxStored;
  const int64_t pages_kv = page_warps < page_units ? pages * args.page_size : rules::kMaxStored;
  args.own = {static_cast<int32_t>(each), static_cast<int32_t>(slot_warps),
              static_cast<int32_t>(rules::min(slots_kv, pages_kv))};
  args.own_part = {static_cast<int32_t>(slots), static_cast<int32_t>(pages)};
}

/// Units of the tables of a tile of requests for which there must be blocks beside those of the own warps, at most: all
/// of a large batch, those of tall requests of any other.
template <class Form>
int64_t most_left_units(const Args<Form>& args) {
  const int64_t each = LeftSize::slot_units(args.widest.slots) + LeftSize::page_units(args.widest.pages);
  if constexpr (Form::kMany) return each * (rules::min(args.bs, kTile) + args.table_rows / kUnitRows);
  return Form::kCounts == TokenCounts::ragged ? each * (args.table_rows / kUnitRows) : 0;
}

/// The warps for the lengths of a few requests, in whole blocks.
FewWarps few_warps(int64_t bs, bool any_request, bool ragged, int64_t capacity, int multiprocessors) {
  constexpr int64_t kWarps = kFewBlock / kWarp, kTokensOfWarp = 2048;
  const int64_t shares = rules::min(rules::ceil_div(capacity, kTokensOfWarp), multiprocessors);
  const int64_t token_shares = ragged ? shares : rules::min(shares, 1);  // uniform requests are short
  const int64_t requests = any_request ? bs : 0, busy = token_shares * bs + requests;
  const int64_t blocks = rules::ceil_div(busy, kWarps) + rules::max(shares, 1);
  return {static_cast<unsigned>(token_shares * bs), static_cast<unsigned>(token_shares),
          static_cast<unsigned>(requests), static_cast<unsigned>(blocks * kWarps - busy)};
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
  const int64_t bytes = Rows<T, uint32_t>::bytes_apart(table);
  return bytes >= 0 && bytes < int64_t{1} << 32;
}

bool is_near(const LengthView& view) {
  const int64_t bytes = Elements<>::bytes_apart(view);
  return bytes >= 0 && bytes <= rules::kMaxStored;
}

/// Whether kernels for Plain may be used. In a large batch, fetching the instructions of the general kernel does not
/// count.
bool is_plain(const Replay& buffers) {
  return buffers.seq_lens.size <= kTile && (buffers.extend_seq_lens || *buffers.num_draft_tokens <= kUnitRows) &&
         rows_are_aligned(buffers) && is_near(buffers.req_to_token) && is_near(buffers.page_table) &&
         is_near(buffers.real_page_table) && is_near(buffers.ctx_lens_2d) && is_near(buffers.seq_lens) &&
         is_near(buffers.req_pool_indices) && is_near(buffers.extend_seq_lens);
}

template <class Form>
void launch(const Replay& buffers, const Target& target, cudaStream_t stream) {
  using Step = typename Form::Step;
  using Stride = typename Form::Stride;
  const int multiprocessors = target.multiprocessors;
  const int32_t uniform_tokens = buffers.extend_seq_lens ? 0 : static_cast<int32_t>(*buffers.num_draft_tokens);
  const bool any_request = buffers.cache_seqlens || buffers.cu_seqlens_k || buffers.ctx_lens_2d;
  const bool any_token =
      buffers.seqlens_expanded || buffers.nsa_cache_seqlens || buffers.nsa_cu_seqlens_k || buffers.num_tokens;
  const int64_t capacity = rules::max(rules::max(buffers.seqlens_expanded.size, buffers.nsa_cache_seqlens.size),
                                      rules::max(buffers.nsa_cu_seqlens_k.size - 1, 0));
  const int64_t bs = buffers.seq_lens.size;
  const int64_t table_rows = bs > 0 ? rules::max(buffers.page_table.rows, buffers.real_page_table.rows) : 0;
  const rules::Divisor page_size(buffers.page_size);
  Args<Form> args{0,
                  0,
                  static_cast<int32_t>(bs),
                  rules::Divisor(rules::max(bs, 1)),
                  uniform_tokens,
                  Elements<Step>(buffers.seq_lens),
                  Elements<Step>(buffers.req_pool_indices),
                  Elements<Step>(buffers.extend_seq_lens),
                  buffers.mode == Mode::target_verify ? uniform_tokens : 0,
                  OwnWarps(),
                  widest_rows(buffers, page_size),
                  Rows<const int32_t, Stride>(buffers.req_to_token),
                  static_cast<uint32_t>(buffers.page_size),
                  page_size,
                  rules::saturated(table_rows),
                  Rows<int32_t, Stride>(buffers.page_table),
                  Rows<int32_t, Stride>(buffers.real_page_table),
                  Part(),
                  home_step(rules::min(bs, kTile)),
                  rows_are_aligned(buffers),
                  0,
                  FewWarps(),
                  static_cast<int32_t>(buffers.nsa_index_topk),
                  rules::saturated(capacity),
                  Tokens(buffers.seqlens_expanded),
                  Tokens(buffers.nsa_cache_seqlens),
                  Tokens(buffers.nsa_cu_seqlens_k, 1),
                  buffers.nsa_cu_seqlens_k.size > 0 ? buffers.nsa_cu_seqlens_k.data : nullptr,
                  buffers.num_tokens.data,
                  buffers.cache_seqlens.data,
                  buffers.cu_seqlens_k.data,
                  Rows<int32_t, Stride>(buffers.ctx_lens_2d)};
  if (!any_request && !any_token && table_rows == 0) return;
  const bool few = !Form::kMany && bs <= kWarp;
  const unsigned threads = few ? kFewBlock : kTile;
  const int64_t at_once = multiprocessors * (few ? kFewBlocksPerMultiprocessor<Form> : kBlocksPerMultiprocessor);
  const Grid lengths(bs, kTile, useful_token_blocks(capacity, bs), at_once);
  if (few) {
    args.few = few_warps(bs, any_request, static_cast<bool>(buffers.extend_seq_lens), capacity, multiprocessors);
    args.length_blocks = any_request || any_token ? args.few.all() / (kFewBlock / kWarp) : 0;
  } else {
    args.request_blocks = any_request ? 1 : 0;
    args.length_blocks = args.request_blocks + (any_token ? lengths.shares : 0);
  }
  if (table_rows > 0) {
    // Not many more blocks than run at once, with those of lengths: one that has to wait for another takes twice the
    // time.
    const int64_t limit = rules::max(at_once - int64_t{args.length_blocks} * lengths.rows, at_once / 2);
    const int64_t warps = threads / kWarp;
    int64_t own_blocks = 1;
    if constexpr (!Form::kMany) {
      if (few) {
        divide_warps<FewSize<Form>>(args, limit * warps);
      } else {
        divide_warps<ManySize>(args, limit * warps);
      }
      own_blocks = rules::ceil_div(args.own.each * bs, warps);
    }
    const Grid left(bs, kTile, rules::ceil_div(most_left_units(args), warps), limit);
    args.table_blocks = static_cast<unsigned>(rules::max(own_blocks, left.shares));
  }
  const dim3 grid(args.length_blocks + args.table_blocks, lengths.rows);
  if constexpr (!Form::kMany) {
    if (few) return enqueue(kOp, replay_few_kernel<Form>, grid, threads, target, stream, args);
  }
  enqueue(kOp, replay_kernel<Form>, grid, threads, target, stream, args);
}

}  // namespace

void fill_replay(const Replay& buffers, Stream stream) {
  const DeviceGuard guard(buffers.device, kOp);
  const Target target = kernels.ready(buffers.device);
  const auto on = static_cast<cudaStream_t>(stream);
  if (!is_plain(buffers)) {
    launch<General>(buffers, target, on);
  } else if (buffers.extend_seq_lens) {
    launch<Ragged>(buffers, target, on);
  } else {
    launch<Uniform>(buffers, target, on);
  }
}

}  // namespace nsa_kernel::cuda
