// draft_extend on the device: three variants of one result.
#include <cuda_runtime.h>

#include "check.h"
#include "count.h"
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
struct Args {
  Elements<> extend_seq_lens;
  Elements<> seq_lens;
  int32_t* seqlens_expanded;
  int32_t* nsa_cache_seqlens;
  volatile int32_t* count;  ///< where the number of tokens goes, on the device or in pinned host memory; may be null
  int32_t topk;
  int32_t capacity;
  int32_t bs;

  /// KV length that the first token of a request sees, of which both lengths were read.
  __device__ int32_t first(const Words& extend_seq_len, const Words& seq_len) const {
    return rules::first_seqlen(rules::length(seq_lens.value(seq_len)), 0,
                               rules::length(extend_seq_lens.value(extend_seq_len)));
  }

  /// Tokens of a request, of which `extend_seq_len` was read.
  __device__ int32_t tokens(const Words& extend_seq_len) const {
    return rules::saturated(rules::length(extend_seq_lens.value(extend_seq_len)));
  }

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
__device__ void enter(Scan& scan, const Tile& tile, const Args& args) {
  scan.enter(
      tile, [&](int b) { return args.extend_seq_lens.read(b); },
      [&](const Words& q) { return Sums<1>{{args.tokens(q)}}; });
}

/// Blocks that a multiprocessor holds at once, at least; one of 1024 threads fills some.
template <bool kMany>
constexpr int kResidentBlocks = kMany ? kBlocksPerMultiprocessor : 1;

template <int kThreads, bool kMany>
__global__ __launch_bounds__(kThreads, kResidentBlocks<kMany>) void draft_extend_optimized_kernel(
    const __grid_constant__ Args args) {
  __shared__ typename RunningScan<kThreads, kMany, 1>::Shared shared;
  await_stream();
  RunningScan<kThreads, kMany, 1> scan(shared);
  for_each_tile<kThreads, kMany>(args.bs, blockIdx.x, gridDim.x, [&](const Tile& tile) {
    Words q{}, k{};
    if (threadIdx.x < tile.requests) {
      q = args.extend_seq_lens.read(tile.begin + threadIdx.x);
      k = args.seq_lens.read(tile.begin + threadIdx.x);
    }
    enter(scan, tile, args);
    const int32_t tokens = args.tokens(q), first = args.first(q, k);
    const Scanned<1> scanned = scan.exclusive({{tokens}});
    if (tile.last && tile.share == 0 && threadIdx.x == 0) args.store_count(scanned.total.value[0]);
    const int32_t at = scanned.before.value[0];
    const TokenSpan span{min(tokens, args.capacity - min(at, args.capacity)), at, first};
    for_each_token(tile, span, [&](const TokenSpan& of, int32_t j) {
      args.store_token(of.at + j, rules::expanded_seqlen(of.first, j));
    });
  });
}

constexpr int kBlock = kBlockSize;

/// Writes the number of tokens before each request.
__global__ __launch_bounds__(kBlock, kBlocksPerMultiprocessor) void draft_extend_prefix_sum_kernel(
    const __grid_constant__ Args args, int32_t* tokens_before) {
  await_stream();
  __shared__ RunningScan<kBlock, true, 1>::Shared shared;
  RunningScan<kBlock, true, 1> scan(shared);
  for_each_tile<kBlock, true>(args.bs, blockIdx.x, gridDim.x, [&](const Tile& tile) {
    const bool mine = threadIdx.x < tile.requests;
    const int b = tile.begin + threadIdx.x;
    Words q{};
    if (mine) q = args.extend_seq_lens.read(b);
    enter(scan, tile, args);
    const Scanned<1> scanned = scan.exclusive({{args.tokens(q)}});
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
    const __grid_constant__ Args args, const int32_t* tokens_before) {
  await_stream();
  const int last = args.bs - 1;
  const int32_t total = rules::saturating_add(tokens_before[last], args.tokens(args.extend_seq_lens.read(last)));
  const int32_t end = min(total, args.capacity);
  for (int64_t t = int64_t{blockIdx.x} * kBlock + threadIdx.x; t < end; t += int64_t{gridDim.x} * kBlock) {
    const int b = Search::request_of(tokens_before, args.bs, static_cast<int32_t>(t));
    const int32_t j = static_cast<int32_t>(t) - tokens_before[b];
    const int32_t first = args.first(args.extend_seq_lens.read(b), args.seq_lens.read(b));
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
void launch_tiles(const Args& args, const Target& target, cudaStream_t stream) {
  const Grid grid(args.bs, kThreads, useful_token_blocks(args.capacity, args.bs), most_blocks(target));
  const dim3 blocks(grid.shares, grid.rows);
  enqueue(kOp, draft_extend_optimized_kernel<kThreads, kMany>, blocks, kThreads, target, stream, args);
}

void launch_optimized(const Args& args, const Target& target, cudaStream_t stream) {
  if (args.bs <= 32) return launch_tiles<32, false>(args, target, stream);
  if (args.bs <= 128) return launch_tiles<128, false>(args, target, stream);
  if (args.bs <= 512) return launch_tiles<512, false>(args, target, stream);
  if (args.bs <= 1024) return launch_tiles<1024, false>(args, target, stream);
  return launch_tiles<512, true>(args, target, stream);
}

void launch_searched(const Args& args, Variant variant, int32_t* workspace, const Target& target, cudaStream_t stream) {
  const Grid grid(args.bs, kBlock, 1, most_blocks(target));
  enqueue(kOp, draft_extend_prefix_sum_kernel, dim3(grid.shares, grid.rows), kBlock, target, stream, args, workspace);
  if (args.bs == 0 || args.capacity == 0) return;
  const auto blocks = static_cast<unsigned>(rules::min(rules::ceil_div(args.capacity, kBlock), most_blocks(target)));
  const bool linear = variant == Variant::adaptive && args.bs <= kLinearSearchRequests;
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
  const int64_t capacity = rules::min(buffers.out_seqlens_expanded.size, buffers.out_nsa_cache_seqlens.size);
  const Args args{Elements<>(buffers.extend_seq_lens),
                  Elements<>(buffers.seq_lens),
                  buffers.out_seqlens_expanded.data,
                  buffers.out_nsa_cache_seqlens.data,
                  count,
                  static_cast<int32_t>(buffers.nsa_index_topk),
                  rules::saturated(capacity),
                  static_cast<int32_t>(buffers.extend_seq_lens.size)};
  if (variant == Variant::optimized) {
    launch_optimized(args, target, stream);
  } else if (workspace != nullptr || args.bs == 0) {
    launch_searched(args, variant, workspace, target, stream);
  } else {
    const StreamMemory borrowed(args.bs, stream);
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
