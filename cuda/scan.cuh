// How blocks share the requests of a batch, one thread a request, and the in-block scan that both ops use.
//
// These kernels run for a microsecond, in which fetching their instructions counts: what a batch of one tile needs is
// kept short and free of divisions, and what only larger batches need is left out of its kernels at compile time.
#pragma once

#include <cstdint>

#include "nsa_kernel/types.h"
#include "rules.h"

namespace nsa_kernel::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = ~0u;

/// Lengths or indices as kernels read them: by their 32-bit words, so that code for both types has no branch.
struct Elements {
  const int32_t* words;  ///< null: not given
  int64_t step;          ///< words from one element to the next
  int32_t last;          ///< word of an element that holds its sign: 0 of int32, 1 of int64

  explicit Elements(const LengthView& view)
      : words(view.int64 != nullptr ? reinterpret_cast<const int32_t*>(view.int64) : view.int32),
        step(view.stride * (view.int64 != nullptr ? 2 : 1)),
        last(view.int64 != nullptr ? 1 : 0) {}

  __device__ explicit operator bool() const { return words != nullptr; }
  __device__ int64_t operator[](int b) const {
    const int32_t* at = words + b * step;
    const int32_t low = at[0], high = at[last];
    return static_cast<int64_t>(last == 0 ? high >> 31 : high) << 32 | static_cast<uint32_t>(low);
  }
};

/// One tile of requests, as one of the blocks that share it sees it.
struct Tile {
  int begin;  ///< first request
  int requests;
  bool first;  ///< of the batch
  bool last;   ///< of the batch
  unsigned share;
  unsigned shares;
};

/// Calls `visit(tile)` for each tile of the blocks in this row of the grid: row y walks tiles y, y + rows and so on.
/// Without kMany there is one tile, in one row. An empty batch has one empty tile.
template <int kThreads, bool kMany, class Visit>
__device__ void for_each_tile(int bs, unsigned share, unsigned shares, Visit visit) {
  if constexpr (kMany) {
    const int tiles = max((bs + (kThreads - 1)) / kThreads, 1);
    for (int index = blockIdx.y; index < tiles; index += gridDim.y) {
      const int begin = index * kThreads;
      visit(Tile{begin, min(bs - begin, kThreads), index == 0, index + 1 == tiles, share, shares});
    }
  } else {
    visit(Tile{0, bs, true, true, share, shares});
  }
}

/// N running sums, added together. They saturate as they are stored.
template <int N>
struct Sums {
  int32_t value[N];

  __device__ Sums& operator+=(const Sums& other) {
#pragma unroll
    for (int i = 0; i < N; ++i) value[i] = rules::saturating_add(value[i], other.value[i]);
    return *this;
  }
};

template <int N>
__device__ Sums<N> shuffle_up(const Sums<N>& sums, int delta) {
  Sums<N> result;
#pragma unroll
  for (int i = 0; i < N; ++i) result.value[i] = __shfl_up_sync(kAllLanes, sums.value[i], delta);
  return result;
}

template <int N>
__device__ Sums<N> from_lane(const Sums<N>& sums, int lane) {
  Sums<N> result;
#pragma unroll
  for (int i = 0; i < N; ++i) result.value[i] = __shfl_sync(kAllLanes, sums.value[i], lane);
  return result;
}

/// The sum over this lane and those before it.
template <int N>
__device__ Sums<N> warp_inclusive(Sums<N> sums) {
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int delta = 1; delta < kWarp; delta *= 2) {
    const Sums<N> other = shuffle_up(sums, delta);
    if (lane >= delta) sums += other;
  }
  return sums;
}

template <int N>
struct Scanned {
  Sums<N> before;  ///< over the threads before this one
  Sums<N> total;   ///< over all threads
};

/// Scans over a block of kThreads threads; of one warp's width, over each warp alone.
template <int kThreads, int N>
class Scan {
 public:
  struct Shared {
    Sums<N> warp_total[kThreads / kWarp];
  };

  __device__ explicit Scan(Shared& shared) : shared_(shared) {}

  __device__ Scanned<N> exclusive(const Sums<N>& mine) {
    const int lane = threadIdx.x % kWarp;
    const Sums<N> inclusive = warp_inclusive(mine);
    Sums<N> before = shuffle_up(inclusive, 1);
    if (lane == 0) before = {};
    if constexpr (kThreads == kWarp) {
      const Sums<N> total = from_lane(inclusive, kWarp - 1);
      return {before, total};
    }
    constexpr int kWarps = kThreads / kWarp;
    const int warp = threadIdx.x / kWarp;
    if (lane == kWarp - 1) shared_.warp_total[warp] = inclusive;
    __syncthreads();
    Sums<N> warps{};
    if (lane < kWarps) warps = shared_.warp_total[lane];
    warps = warp_inclusive(warps);
    if (warp > 0) before += from_lane(warps, warp - 1);
    return {before, from_lane(warps, kWarp - 1)};
  }

  /// The sum of `of(b)` over requests begin .. end-1, in every thread.
  template <class Of>
  __device__ Sums<N> sum(int begin, int end, Of of) {
    Sums<N> mine{};
#pragma unroll 8
    for (int b = begin + threadIdx.x % kThreads; b < end; b += kThreads) mine += of(b);
    const Sums<N> total = exclusive(mine).total;
    __syncthreads();
    return total;
  }

 private:
  Shared& shared_;
};

/// A scan that runs on from tile to tile, over the requests of skipped tiles too.
template <int kThreads, bool kMany, int N>
class RunningScan {
 public:
  using Shared = typename Scan<kThreads, N>::Shared;

  __device__ explicit RunningScan(Shared& shared) : scan_(shared) {}

  /// The sums before this thread's request and after the tile. `of(b)` reads the sums of an earlier request.
  template <class Of>
  __device__ Scanned<N> next(const Tile& tile, const Sums<N>& mine, Of of) {
    if constexpr (!kMany) return scan_.exclusive(mine);
    if (tile.begin > scanned_) carried_ += scan_.sum(scanned_, tile.begin, of);
    Scanned<N> result = scan_.exclusive(mine);
    __syncthreads();
    result.before += carried_;
    carried_ += result.total;
    result.total = carried_;
    scanned_ = tile.begin + kThreads;
    return result;
  }

 private:
  Scan<kThreads, N> scan_;
  Sums<N> carried_{};
  int scanned_ = 0;
};

/// Up to this many tokens, a request is the work of one thread.
constexpr int kShort = 16;

/// Calls `store(span, j)` for each token j of the span of every thread. The tokens of a short span are spread over the
/// blocks that share the tile, in the thread that holds it; those of a long one over the lanes of its warp too.
/// Span is a struct of int32_t that has `tokens`. With kUpToShort, all spans are short.
template <bool kUpToShort = false, class Span, class Store>
__device__ void for_each_token(const Tile& tile, const Span& span, Store store) {
  const int tokens = kUpToShort || span.tokens <= kShort ? span.tokens : 0;
#pragma unroll 1
  for (int j = tile.share; j < tokens; j += tile.shares) store(span, j);
  if constexpr (kUpToShort) return;
  const unsigned long_spans = __ballot_sync(kAllLanes, span.tokens > kShort);
#pragma unroll 1
  for (unsigned pending = long_spans; pending != 0; pending &= pending - 1) {
    const int lane = __ffs(pending) - 1;
    constexpr int kWords = sizeof(Span) / sizeof(int32_t);
    union {
      Span value;
      int32_t words[kWords];
    } of_lane{span};
#pragma unroll
    for (int i = 0; i < kWords; ++i) of_lane.words[i] = __shfl_sync(kAllLanes, of_lane.words[i], lane);
    const int step = static_cast<int>(tile.shares * kWarp);
#pragma unroll 1
    for (int j = tile.share * kWarp + threadIdx.x % kWarp; j < of_lane.value.tokens; j += step) {
      store(of_lane.value, j);
    }
  }
}

}  // namespace nsa_kernel::cuda
