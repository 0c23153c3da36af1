// indexer_prefill on the device.
#include <cuda_runtime.h>

#include <cstdint>

#include "check.h"
#include "enqueue.cuh"
#include "indexer/starts.cuh"
#include "indexer_batch.h"
#include "kernels.h"
#include "launch.h"
#include "rules.h"
#include "scan.cuh"
#include "views.cuh"

namespace nsa_kernel::cuda {
namespace {

constexpr const char* kOp = "fill_indexer_prefill_metadata";

/// What the kernel reads.
struct IndexerPrefillArguments {
  IndexerBatch<> batch;  ///< its capacity is that of `token_to_seq`
  rules::WideDivisor compress_ratio;
  rules::ContextShard shard;
  int32_t first_row;
  int32_t end_row;       ///< at most as many rows as some output holds
  int32_t* cu_seq_lens;  ///< this one and the next two may be null
  int32_t* local_cu_seq_lens;
  int32_t* token_to_seq;
  TokenArray cu_seqlen_ks;
  TokenArray cu_seqlen_ke;

  using Request = IndexerBatch<>::Request;

  __device__ void store_sums(int i, int32_t states, int32_t local_states) const {
    if (cu_seq_lens != nullptr) cu_seq_lens[i] = states;
    if (local_cu_seq_lens != nullptr) local_cu_seq_lens[i] = local_states;
  }
};

enum Sum { kStates, kLocalStates, kRows, kSums };

__device__ Sums<kSums> sums_of(const IndexerPrefillArguments& args, const IndexerPrefillArguments::Request& request) {
  const int64_t states = args.compress_ratio.quotient(args.batch.kv(request));
  return {{rules::saturated(states), rules::saturated(args.shard.local(states)), args.batch.tokens(request)}};
}

__global__ __launch_bounds__(kSearchTile, kSearchBlocksPerMultiprocessor) void indexer_prefill_kernel(
    const __grid_constant__ IndexerPrefillArguments args) {
  using Scan = CumulativeScan<kSearchTile, true, Sums<kSums>>;
  __shared__ Scan::Shared shared;
  __shared__ Starts states, rows;
  __shared__ int32_t local_states[kSearchTile];
  __shared__ int64_t first[kSearchTile];
  await_stream();
  Scan scan(shared);
  for_each_tile<kSearchTile, true>(args.batch.bs, blockIdx.x, gridDim.x, [&](const Tile& tile) {
    const int place = threadIdx.x, b = tile.begin + place;
    const bool mine = place < tile.requests;
    IndexerPrefillArguments::Request request{};
    if (mine) request = args.batch.read(b);
    scan.enter(
        tile, [&](int earlier) { return args.batch.read(earlier); },
        [&](const auto& earlier) { return sums_of(args, earlier); });
    Sums<kSums> sums{};
    if (mine) sums = sums_of(args, request);
    const Scanned<Sums<kSums>> scanned = scan.exclusive(sums);
    constexpr int32_t kNowhere = static_cast<int32_t>(rules::kMaxStored);
    states.of[place] = mine ? scanned.before.value[kStates] : kNowhere;
    rows.of[place] = mine ? scanned.before.value[kRows] : kNowhere;
    local_states[place] = scanned.before.value[kLocalStates];
    first[place] = args.batch.first_seqlen(request);
    if (tile.share == 0) {
      if (tile.first && place == 0) args.store_sums(0, 0, 0);
      Sums<kSums> until = scanned.before;
      until += sums;
      if (mine) args.store_sums(b + 1, until.value[kStates], until.value[kLocalStates]);
    }
    __syncthreads();
    const int32_t end_state = min(scanned.total.value[kStates], args.batch.capacity);
    for_each_element(tile, states.of[0], end_state,
                     [&](int32_t state) { args.token_to_seq[state] = tile.begin + states.place_of(state); });
    const int32_t end_row = min(scanned.total.value[kRows], args.end_row);
    for_each_element(tile, max(rows.of[0], args.first_row), end_row, [&](int32_t row) {
      const int of = rows.place_of(row);
      const int32_t start = local_states[of];
      const int64_t seqlen = rules::expanded_seqlen(first[of], row - rows.of[of]);
      const int32_t length = rules::saturated(args.shard.local(args.compress_ratio.quotient(seqlen)));
      args.cu_seqlen_ks.store(row - args.first_row, start);
      args.cu_seqlen_ke.store(row - args.first_row, rules::saturating_add(start, length));
    });
  });
}

Kernels kernels(kOp, {reinterpret_cast<const void*>(indexer_prefill_kernel)});

}  // namespace

void fill_indexer_prefill(const IndexerPrefill& buffers, Stream stream) {
  const DeviceGuard guard(buffers.device, kOp);
  const Target target = kernels.ready(buffers.device);
  const int64_t rows = rules::min(*buffers.end_row - buffers.first_row,
                                  rules::max(buffers.cu_seqlen_ks.size, buffers.cu_seqlen_ke.size));
  const int32_t first_row = rules::saturated(buffers.first_row);
  const IndexerPrefillArguments args{
      .batch = batch_of(buffers),
      .compress_ratio = rules::WideDivisor(buffers.compress_ratio),
      .shard = shard_of(buffers),
      .first_row = first_row,
      .end_row = rules::saturated(first_row + rows),
      .cu_seq_lens = buffers.cu_seq_lens.data,
      .local_cu_seq_lens = buffers.local_cu_seq_lens.data,
      .token_to_seq = buffers.token_to_seq.data,
      .cu_seqlen_ks = TokenArray(buffers.cu_seqlen_ks),
      .cu_seqlen_ke = TokenArray(buffers.cu_seqlen_ke),
  };
  const bool any = args.cu_seq_lens || args.local_cu_seq_lens || args.token_to_seq || rows > 0;
  if (!any) return;
  const Grid grid = search_grid(args.batch.bs, rules::max(args.batch.capacity, rows), target.multiprocessors);
  enqueue(kOp, indexer_prefill_kernel, dim3(grid.shares, grid.rows), kSearchTile, target,
          static_cast<cudaStream_t>(stream), args);
}

}  // namespace nsa_kernel::cuda
