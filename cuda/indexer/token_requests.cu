// token_requests on the device.
#include <cuda_runtime.h>

#include <cstdint>

#include "batch.h"
#include "check.h"
#include "enqueue.cuh"
#include "indexer/starts.cuh"
#include "kernels.h"
#include "launch.h"
#include "rules.h"
#include "scan.cuh"

namespace nsa_kernel::cuda {
namespace {

constexpr const char* kOp = "fill_token_requests";

/// What the kernel reads.
struct TokenRequestsArguments {
  IndexArray<> query_start_loc;
  int32_t n;  ///< requests
  int32_t mapped;
  int32_t* out;
  int32_t size;
};

/// A request starts where all before it have ended, and the last one has no end. Without requests, all map
/// to 0.
__global__ __launch_bounds__(kSearchTile, kSearchBlocksPerMultiprocessor) void token_requests_kernel(
    const __grid_constant__ TokenRequestsArguments args) {
  using Scan = CumulativeScan<kSearchTile, true, Largest>;
  __shared__ Scan::Shared shared;
  __shared__ Starts starts;
  await_stream();
  Scan scan(shared);
  const auto read = [&](int b) { return args.query_start_loc.read(b + 1); };
  const auto end_of = [&](const RawIndex& raw) {
    return Largest{rules::saturating_offset(args.query_start_loc.length32(raw), 0)};
  };
  for_each_tile<kSearchTile, true>(args.n, blockIdx.x, gridDim.x, [&](const Tile& tile) {
    const int place = threadIdx.x;
    const bool mine = place < tile.requests;
    RawIndex raw{};
    if (mine) raw = read(tile.begin + place);
    scan.enter(tile, read, end_of);
    const Scanned<Largest> scanned = scan.exclusive(mine ? end_of(raw) : Largest{0});
    starts.of[place] = mine || place == 0 ? scanned.before.value : static_cast<int32_t>(rules::kMaxStored);
    __syncthreads();
    const int32_t end = tile.last ? args.mapped : min(scanned.total.value, args.mapped);
    for_each_element(tile, starts.of[0], end,
                     [&](int32_t token) { args.out[token] = tile.begin + starts.place_of(token); });
    if (tile.last) for_each_element(tile, args.mapped, args.size, [&](int32_t token) { args.out[token] = 0; });
  });
}

Kernels kernels(kOp, {reinterpret_cast<const void*>(token_requests_kernel)});

}  // namespace

void fill_token_requests(const TokenRequests& buffers, Stream stream) {
  if (buffers.out.size == 0) return;
  const DeviceGuard guard(buffers.device, kOp);
  const Target target = kernels.ready(buffers.device);
  const TokenRequestsArguments args{
      .query_start_loc = IndexArray<>(buffers.query_start_loc),
      .n = static_cast<int32_t>(buffers.query_start_loc.size - 1),
      .mapped = static_cast<int32_t>(*buffers.num_mapped),
      .out = buffers.out.data,
      .size = static_cast<int32_t>(buffers.out.size),
  };
  const Grid grid = search_grid(args.n, args.size, target.multiprocessors);
  enqueue(kOp, token_requests_kernel, dim3(grid.shares, grid.rows), kSearchTile, target,
          static_cast<cudaStream_t>(stream), args);
}

}  // namespace nsa_kernel::cuda
