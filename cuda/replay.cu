// replay on the device: one launch, in which some blocks write the lengths and the others the tables.
#include <cuda_runtime.h>

#include <numeric>
#include <type_traits>

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

// Up to one warp's width of requests.
constexpr int kFewBlock = 128;
constexpr int kFewBlocksPerMultiprocessor = 4;
constexpr int kFewVectors = 2;
// More.
constexpr int kTile = 512;
constexpr int kTilesPerMultiprocessor = 2;
constexpr int kVectors = 4;

template <class Form>
__global__ __launch_bounds__(kFewBlock) void replay_few_kernel(const __grid_constant__ Args<Form> args) {
  await_stream();
  const unsigned length_blocks = args.request_blocks + args.token_blocks;
  if (blockIdx.x >= length_blocks) {
    fill_tables_of_one<kFewVectors>(args, blockIdx.x - length_blocks);
  } else if (threadIdx.x >= kWarp) {
    return;
  } else if (blockIdx.x >= args.request_blocks) {
    fill_tokens<kWarp, false>(args, blockIdx.x - args.request_blocks);
  } else {
    fill_requests<kWarp, false>(args);
  }
}

template <class Form, bool kMany>
__global__ __launch_bounds__(kTile) void replay_kernel(const __grid_constant__ Args<Form> args) {
  await_stream();
  const unsigned length_blocks = args.request_blocks + args.token_blocks;
  if (blockIdx.x >= length_blocks) {
    fill_tables<kVectors, kTile, kMany>(args, blockIdx.x - length_blocks);
  } else if (blockIdx.x >= args.request_blocks) {
    fill_tokens<kTile, kMany>(args, blockIdx.x - args.request_blocks);
  } else {
    fill_requests<kTile, kMany>(args);
  }
}

template <class Kernel>
const void* address(Kernel* kernel) {
  return reinterpret_cast<const void*>(kernel);
}

using Uniform = Plain<TokenCounts::uniform>;
using Ragged = Plain<TokenCounts::ragged>;

Kernels kernels(kOp, {address(replay_few_kernel<Uniform>), address(replay_kernel<Uniform, false>),
                      address(replay_few_kernel<Ragged>), address(replay_kernel<Ragged, false>),
                      address(replay_kernel<General, true>)});

/// Where the home of the second request of a tile is, as a part of 2**32 of the ring: homes are evenly spaced, and
/// those of consecutive requests far apart.
uint32_t home_step(int64_t requests) {
  int64_t apart = requests * 5 / 8;
  while (std::gcd(apart, requests) > 1) ++apart;
  return static_cast<uint32_t>((apart << 32) / rules::max(requests, 1));
}

/// Units of the tables of all requests of a tile, at most.
template <int kUnitVectors, class Form>
int64_t most_units(const Args<Form>& args, int64_t requests) {
  const int64_t each = Live::of(args, static_cast<int32_t>(rules::kMaxStored)).template units<kUnitVectors>();
  return each * (requests + args.table_rows / kUnitRows);
}

/// Blocks that share the tables of one of up to one warp's width of requests.
template <class Form>
int64_t few_table_blocks(const Args<Form>& args, int multiprocessors) {
  if (args.table_rows == 0) return 0;
  const int64_t useful = rules::ceil_div(most_units<kFewVectors>(args, 1), kFewBlock / kWarp);
  const int64_t limit = multiprocessors * kFewBlocksPerMultiprocessor / args.bs;
  return rules::max(rules::min(useful, limit), 1);
}

/// Blocks that share the tables of a tile of requests.
template <class Form>
int64_t tile_table_blocks(const Args<Form>& args, int multiprocessors) {
  if (args.table_rows == 0) return 0;
  const int64_t units = most_units<kVectors>(args, rules::min(args.bs, kTile));
  return Grid(args.bs, kTile, rules::ceil_div(units, kTile / kWarp), multiprocessors * kTilesPerMultiprocessor).shares;
}

template <class T>
bool starts_aligned(const TableView<T>& table) {
  return reinterpret_cast<uintptr_t>(table.data) % 16 == 0 && (table.row_stride % 4 == 0 || table.rows <= 1);
}

bool rows_are_aligned(const Replay& buffers) {
  return starts_aligned(buffers.req_to_token) && starts_aligned(buffers.page_table);
}

bool fits_32_bits(int64_t stride) { return stride < int64_t{1} << 32; }

/// Whether kernels for Plain may be used. In a large batch, fetching the instructions of the general kernel does not
/// count.
bool is_plain(const Replay& buffers) {
  return buffers.seq_lens.size <= kTile && (buffers.extend_seq_lens || *buffers.num_draft_tokens <= kShort) &&
         rows_are_aligned(buffers) && fits_32_bits(buffers.req_to_token.row_stride) &&
         fits_32_bits(buffers.page_table.row_stride) && fits_32_bits(buffers.real_page_table.row_stride) &&
         fits_32_bits(buffers.ctx_lens_2d.row_stride);
}

template <class Form>
void launch(const Replay& buffers, const Target& target, cudaStream_t stream) {
  const int multiprocessors = target.multiprocessors;
  const int32_t uniform_tokens = buffers.extend_seq_lens ? 0 : static_cast<int32_t>(*buffers.num_draft_tokens);
  const bool any_request = buffers.cache_seqlens || buffers.cu_seqlens_k || buffers.ctx_lens_2d;
  const bool any_token =
      buffers.seqlens_expanded || buffers.nsa_cache_seqlens || buffers.nsa_cu_seqlens_k || buffers.num_tokens;
  const int64_t capacity = rules::max(rules::max(buffers.seqlens_expanded.size, buffers.nsa_cache_seqlens.size),
                                      rules::max(buffers.nsa_cu_seqlens_k.size - 1, 0));
  const int64_t bs = buffers.seq_lens.size;
  const Grid tiles(bs, kTile, useful_token_blocks(capacity, bs), multiprocessors * kTilesPerMultiprocessor);
  const int64_t table_rows = bs > 0 ? rules::max(buffers.page_table.rows, buffers.real_page_table.rows) : 0;
  Args<Form> args{Elements(buffers.seq_lens),
                  Elements(buffers.extend_seq_lens),
                  Elements(buffers.req_pool_indices),
                  static_cast<int32_t>(bs),
                  uniform_tokens,
                  buffers.mode == Mode::target_verify ? uniform_tokens : 0,
                  any_request ? 1u : 0u,
                  any_token ? tiles.shares : 0u,
                  0,
                  rules::Divisor(1),
                  home_step(rules::min(bs, kTile)),
                  rows_are_aligned(buffers),
                  rules::saturated(table_rows),
                  static_cast<int32_t>(buffers.page_size),
                  rules::Divisor(buffers.page_size),
                  Rows<const int32_t, typename Form::Stride>(buffers.req_to_token),
                  Rows<int32_t, typename Form::Stride>(buffers.page_table),
                  Rows<int32_t, typename Form::Stride>(buffers.real_page_table),
                  static_cast<int32_t>(buffers.nsa_index_topk),
                  rules::saturated(capacity),
                  Tokens(buffers.seqlens_expanded),
                  Tokens(buffers.nsa_cache_seqlens),
                  Tokens(buffers.nsa_cu_seqlens_k, 1),
                  buffers.nsa_cu_seqlens_k.size > 0 ? buffers.nsa_cu_seqlens_k.data : nullptr,
                  buffers.num_tokens.data,
                  buffers.cache_seqlens.data,
                  buffers.cu_seqlens_k.data,
                  Rows<int32_t, typename Form::Stride>(buffers.ctx_lens_2d)};
  if (!any_request && !any_token && table_rows == 0) return;
  const unsigned length_blocks = args.request_blocks + args.token_blocks;
  if constexpr (!std::is_same_v<Form, General>) {
    if (bs <= kWarp) {
      args.table_blocks = static_cast<unsigned>(few_table_blocks(args, multiprocessors));
      args.table_blocks_divisor = rules::Divisor(rules::max(args.table_blocks, 1));
      const unsigned blocks = length_blocks + args.table_blocks * static_cast<unsigned>(bs);
      return enqueue(kOp, replay_few_kernel<Form>, blocks, kFewBlock, target, stream, args);
    }
  }
  args.table_blocks = static_cast<unsigned>(tile_table_blocks(args, multiprocessors));
  const dim3 grid(length_blocks + args.table_blocks, tiles.rows);
  enqueue(kOp, replay_kernel<Form, std::is_same_v<Form, General>>, grid, kTile, target, stream, args);
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
