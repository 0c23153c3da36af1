// draft_extend on the device: three variants of one result.
#include <cuda_runtime.h>

#include "check.h"
#include "count.h"
#include "draft_extend_batch.h"
#include "enqueue.cuh"
#include "grid.h"
#include "kernels.h"
#include "launch.h"
#include "rules.h"
#include "scan.cuh"

namespace nsa_kernel::cuda {
namespace {

constexpr const char* kOp = "fill_draft_extend_metadata";
constexpr int kBlocksPerMultiprocessor = 2;

/// What the kernels read.
struct DraftExtendArguments {
  DraftExtendBatch batch;
  int32_t* seqlens_expanded;
  int32_t* nsa_cache_seqlens;
  volatile int32_t* count;  ///< where the number of tokens goes, on the device or in pinned host memory; may be null
  int32_t topk;

  using Request = DraftExtendBatch::Request;
  using RequestTokens = DraftExtendBatch::Tokens;

  __device__ void store_count(int32_t total) const {
    if (count != nullptr) *count = total;
  }

  __device__ void store_token(int32_t t, int32_t seqlen) const {
    seqlens_expanded[t] = seqlen;
    nsa_cache_seqlens[t] = rules::clipped_seqlen(seqlen, topk);
  }
};

/// The tokens of one request that fit.
struct TokenSpan {
  int32_t tokens;
  int32_t at;  ///< of the first
  int32_t first;
};

/// Starts a scan on a tile.
template <class Scan>
__device__ void enter(Scan& scan, const Tile& tile, const DraftExtendArguments& args) {
  scan.enter(
      tile, [&](int b) { return args.batch.read_tokens(b); },
      [&](const DraftExtendArguments::RequestTokens& raw) { return Sums<1>{{args.batch.tokens(raw)}}; });
}

/// Blocks that a multiprocessor holds at once, at least; one of 1024 threads fills some.
template <bool kMany>
constexpr int kResidentBlocks = kMany ? kBlocksPerMultiprocessor : 1;

template <int kThreads, bool kMany>
__global__ __launch_bounds__(kThreads, kResidentBlocks<kMany>) void draft_extend_optimized_kernel(
    const __grid_constant__ DraftExtendArguments args) {
  __shared__ typename CumulativeScan<kThreads, kMany, Sums<1>>::Shared shared;
  await_stream();
  CumulativeScan<kThreads, kMany, Sums<1>> scan(shared);
  for_each_tile<kThreads, kMany>(args.batch.bs, blockIdx.x, gridDim.x, [&](const Tile& tile) {
    DraftExtendArguments::Request request{};
    if (threadIdx.x < tile.requests) request = args.batch.read(tile.begin + threadIdx.x);
    enter(scan, tile, args);
    const int32_t tokens = args.batch.tokens(request), first = args.batch.first_seqlen(request);
    const Scanned<Sums<1>> scanned = scan.exclusive({{tokens}});
    if (tile.last && tile.share == 0 && threadIdx.x == 0) args.store_count(scanned.total.value[0]);
    const int32_t at = scanned.before.value[0];
    const TokenSpan span{args.batch.held_tokens(at, tokens), at, first};
    for_each_token(tile, span, [&](const TokenSpan& of, int32_t j) {
      args.store_token(of.at + j, rules::expanded_seqlen(of.first, j));
    });
  });
}

constexpr int kBlock = kBlockSize;

/// Writes the number of tokens before each request.
__global__ __launch_bounds__(kBlock, kBlocksPerMultiprocessor) void draft_extend_prefix_sum_kernel(
    const __grid_constant__ DraftExtendArguments args, int32_t* tokens_before) {
  await_stream();
  __shared__ CumulativeScan<kBlock, true, Sums<1>>::Shared shared;
  CumulativeScan<kBlock, true, Sums<1>> scan(shared);
  for_each_tile<kBlock, true>(args.batch.bs, blockIdx.x, gridDim.x, [&](const Tile& tile) {
    const bool mine = threadIdx.x < tile.requests;
    const int b = tile.begin + threadIdx.x;
    DraftExtendArguments::RequestTokens raw{};
    if (mine) raw = args.batch.read_tokens(b);
    enter(scan, tile, args);
    const Scanned<Sums<1>> scanned = scan.exclusive({{args.batch.tokens(raw)}});
    if (tile.last && threadIdx.x == 0) args.store_count(scanned.total.value[0]);
    if (mine) tokens_before[b] = scanned.before.value[0];
  });
}

struct BinarySearch {
  __device__ static int request_of(const int32_t* tokens_before, int bs, int32_t t) {
    int low = 0, high = bs;
    while (high - low > 1) {
      const int middle = low + (high - low) / 2;
      (tokens_before[middle] <= t ? low : high) = middle;
    }
    return low;
  }
};

struct LinearSearch {
  __device__ static int request_of(const int32_t* tokens_before, int bs, int32_t t) {
    int b = 0;
    while (b + 1 < bs && tokens_before[b + 1] <= t) ++b;
    return b;
  }
};

/// One thread a token.
template <class Search>
__global__ __launch_bounds__(kBlock, kBlocksPerMultiprocessor) void draft_extend_search_kernel(
    const __grid_constant__ DraftExtendArguments args, const int32_t* tokens_before) {
  await_stream();
  const int last = args.batch.bs - 1;
  const int32_t total = rules::saturating_add(tokens_before[last], args.batch.tokens(args.batch.read_tokens(last)));
  const int32_t end = min(total, args.batch.capacity);
  for (int64_t t = int64_t{blockIdx.x} * kBlock + threadIdx.x; t < end; t += int64_t{gridDim.x} * kBlock) {
    const int b = Search::request_of(tokens_before, args.batch.bs, static_cast<int32_t>(t));
    const int32_t j = static_cast<int32_t>(t) - tokens_before[b];
    const int32_t first = args.batch.first_seqlen(args.batch.read(b));
    args.store_token(static_cast<int32_t>(t), rules::expanded_seqlen(first, j));
  }
}

template <int kThreads, bool kMany>
const void* optimized() {
  return reinterpret_cast<const void*>(draft_extend_optimized_kernel<kThreads, kMany>);
}

Kernels kernels(kOp,
                {optimized<32, false>(), optimized<128, false>(), optimized<512, false>(), optimized<1024, false>(),
                 optimized<512, true>(), reinterpret_cast<const void*>(draft_extend_prefix_sum_kernel),
                 reinterpret_cast<const void*>(draft_extend_search_kernel<BinarySearch>),
                 reinterpret_cast<const void*>(draft_extend_search_kernel<LinearSearch>)});

int64_t most_blocks(const Target& target) { return int64_t{target.multiprocessors} * kBlocksPerMultiprocessor; }

template <int kThreads, bool kMany>
void launch_tiles(const DraftExtendArguments& args, const Target& target, cudaStream_t stream) {
  const Grid grid(args.batch.bs, kThreads, useful_token_blocks(args.batch.capacity, args.batch.bs),
                  most_blocks(target));
  const dim3 blocks(grid.shares, grid.rows);
  enqueue(kOp, draft_extend_optimized_kernel<kThreads, kMany>, blocks, kThreads, target, stream, args);
}

void launch_optimized(const DraftExtendArguments& args, const Target& target, cudaStream_t stream) {
  if (args.batch.bs <= 32) return launch_tiles<32, false>(args, target, stream);
  if (args.batch.bs <= 128) return launch_tiles<128, false>(args, target, stream);
  if (args.batch.bs <= 512) return launch_tiles<512, false>(args, target, stream);
  if (args.batch.bs <= 1024) return launch_tiles<1024, false>(args, target, stream);
  return launch_tiles<512, true>(args, target, stream);
}

void launch_searched(const DraftExtendArguments& args, Variant variant, int32_t* workspace, const Target& target,
                     cudaStream_t stream) {
  const Grid grid(args.batch.bs, kBlock, 1, most_blocks(target));
  enqueue(kOp, draft_extend_prefix_sum_kernel, dim3(grid.shares, grid.rows), kBlock, target, stream, args, workspace);
  if (args.batch.bs == 0 || args.batch.capacity == 0) return;
  const auto blocks =
      static_cast<unsigned>(rules::min(rules::ceil_div(args.batch.capacity, kBlock), most_blocks(target)));
  const bool linear = variant == Variant::adaptive && args.batch.bs <= kLinearSearchRequests;
  const auto kernel = linear ? draft_extend_search_kernel<LinearSearch> : draft_extend_search_kernel<BinarySearch>;
  enqueue(kOp, kernel, blocks, kBlock, target, stream, args, workspace);
}

/// Memory ordered on a stream, for a scope.
class StreamMemory {
 public:
  StreamMemory(int64_t elements, cudaStream_t stream) : stream_(stream) {
    check(cudaMallocAsync(&data_, elements * sizeof(int32_t), stream), kOp);
  }
  ~StreamMemory() { cudaFreeAsync(data_, stream_); }
  StreamMemory(const StreamMemory&) = delete;
  StreamMemory& operator=(const StreamMemory&) = delete;

  int32_t* data() const { return static_cast<int32_t*>(data_); }

 private:
  cudaStream_t stream_;
  void* data_ = nullptr;
};

void launch(const DraftExtend& buffers, Variant variant, int32_t* workspace, volatile int32_t* count,
            cudaStream_t stream) {
  const Target target = kernels.ready(buffers.device);
  const DraftExtendArguments args{
      .batch = batch_of(buffers),
      .seqlens_expanded = buffers.out_seqlens_expanded.data,
      .nsa_cache_seqlens = buffers.out_nsa_cache_seqlens.data,
      .count = count,
      .topk = static_cast<int32_t>(buffers.nsa_index_topk),
  };
  if (variant == Variant::optimized) {
    launch_optimized(args, target, stream);
  } else if (workspace != nullptr || args.batch.bs == 0) {
    launch_searched(args, variant, workspace, target, stream);
  } else {
    const StreamMemory borrowed(args.batch.bs, stream);
    launch_searched(args, variant, borrowed.data(), target, stream);
  }
}

}  // namespace

void fill_draft_extend(const DraftExtend& args, Variant variant, int32_t* workspace, Stream stream) {
  const DeviceGuard guard(args.device, kOp);
  launch(args, variant, workspace, args.out_num_tokens.data, static_cast<cudaStream_t>(stream));
}

int64_t fill_draft_extend_and_count(const DraftExtend& args, Variant variant, Stream stream) {
  const DeviceGuard guard(args.device, kOp);
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  refuse_capture(cuda_stream, kOp);
  kernels.ready(args.device);  // what can fail before the launch, before a slot is taken
  HostCount count(kOp);
  launch(args, variant, nullptr, count.device_address(), cuda_stream);
  return count.wait(cuda_stream);
}

std::shared_ptr<int32_t> allocate_workspace(Device device, int64_t bs) {
  const DeviceGuard guard(device, kOp);
  const RelaxedCapture relaxed;
  void* memory = nullptr;
  check(cudaMalloc(&memory, rules::max(bs, 1) * sizeof(int32_t)), kOp);
  return {static_cast<int32_t*>(memory), [device](int32_t* workspace) {
            try {
              const DeviceGuard guard(device, kOp);
              const RelaxedCapture relaxed;
              cudaFree(workspace);
            } catch (const CudaError&) {
              // A device that is lost has no memory to free.
            }
          }};
}

}  // namespace nsa_kernel::cuda
