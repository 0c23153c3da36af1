// How blocks share the requests of a batch, and the scan over a block.
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

/// N cumulative sums, added together. They saturate as they are stored.
template <int N>
struct Sums {
  int32_t value[N];

  __device__ Sums& operator+=(const Sums& other) {
#pragma unroll
    for (int i = 0; i < N; ++i) value[i] = rules::saturating_add(value[i], other.value[i]);
    return *this;
  }
};

/// The largest of some numbers, of which none is negative, in a scan that adds nothing.
struct Largest {
  int32_t value;

  __device__ Largest& operator+=(const Largest& other) {
    value = max(value, other.value);
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

__device__ inline Largest shuffle_up(const Largest& largest, int delta) {
  return {__shfl_up_sync(kAllLanes, largest.value, delta)};
}

/// The value of another lane, of a type that consists of words.
template <class Value>
__device__ Value from_lane(const Value& value, int lane) {
  constexpr int kWords = sizeof(Value) / sizeof(int32_t);
  union {
    Value value;
    int32_t words[kWords];
  } of_lane{value};
#pragma unroll
  for (int i = 0; i < kWords; ++i) of_lane.words[i] = __shfl_sync(kAllLanes, of_lane.words[i], lane);
  return of_lane.value;
}

/// How many lanes have a value that is at most `bound`, where values are non-decreasing over the lanes and that of the
/// last exceeds it. Shuffles are independent within a round, so that two rounds take less time than five binary steps.
__device__ inline int lanes_at_most(int32_t bound, int32_t value) {
  constexpr int kGroup = 4;
  int lanes = 0;
#pragma unroll
  for (int last = kGroup - 1; last < kWarp - 1; last += kGroup) {
    if (__shfl_sync(kAllLanes, value, last) <= bound) lanes += kGroup;
  }
  int of_group = 0;
#pragma unroll
  for (int i = 0; i < kGroup - 1; ++i) {
    if (__shfl_sync(kAllLanes, value, lanes + i) <= bound) ++of_group;
  }
  return lanes + of_group;
}

/// This thread's part of the sum of `sums_of(read(b))` over the requests of whole tiles, begin .. end-1. As many as 16
/// registers hold are read before one is looked at.
template <int kTile, class Read, class SumsOf>
__device__ auto sum_tiles(int begin, int end, Read read, SumsOf sums_of) {
  constexpr int kAtOnce = 64 / static_cast<int>(sizeof(decltype(read(begin))));
  decltype(sums_of(read(begin))) result{};
  const auto add = [&](int tiles) {
    decltype(read(begin)) requests[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (i < tiles) requests[i] = read(begin + i * kTile + static_cast<int>(threadIdx.x));
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (i < tiles) result += sums_of(requests[i]);
    }
  };
#pragma unroll 1
  for (; end - begin >= kAtOnce * kTile; begin += kAtOnce * kTile) add(kAtOnce);
  if (begin < end) add((end - begin) / kTile);
  return result;
}

/// The sum over this lane and those before it.
template <class Value>
__device__ Value warp_inclusive(Value sums) {
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int delta = 1; delta < kWarp; delta *= 2) {
    const Value other = shuffle_up(sums, delta);
    if (lane >= delta) sums += other;
  }
  return sums;
}

/// The same, of the first `lanes` lanes; those after them get no such sum.
template <class Value>
__device__ Value warp_inclusive(Value sums, int lanes) {
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int delta = 1; delta < kWarp; delta *= 2) {
    if (delta >= lanes) break;
    const Value other = shuffle_up(sums, delta);
    if (lane >= delta) sums += other;
  }
  return sums;
}

/// The sum over the lanes of a warp, as it is stored; none is negative.
__device__ inline int32_t warp_sum(int32_t mine) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  // By halves, for a sum over all 32 bits may wrap.
  const uint32_t value = static_cast<uint32_t>(mine);
  const uint32_t low = __reduce_add_sync(kAllLanes, value & 0xffff);
  const uint32_t high = __reduce_add_sync(kAllLanes, value >> 16) + (low >> 16);
  return high > 0x7fff ? static_cast<int32_t>(rules::kMaxStored) : static_cast<int32_t>(high << 16 | (low & 0xffff));
#else
#pragma unroll
  for (int delta = kWarp / 2; delta > 0; delta /= 2) {
    mine = rules::saturating_add(mine, __shfl_xor_sync(kAllLanes, mine, delta));
  }
  return mine;
#endif
}

template <int N>
__device__ Sums<N> warp_sum(const Sums<N>& mine) {
  Sums<N> result;
#pragma unroll
  for (int i = 0; i < N; ++i) result.value[i] = warp_sum(mine.value[i]);
  return result;
}

__device__ inline Largest warp_sum(const Largest& mine) { return from_lane(warp_inclusive(mine), kWarp - 1); }

template <class Value>
struct Scanned {
  Value before;  ///< over the threads before this one
  Value total;   ///< over all threads
};

/// A scan over a block, which runs on from tile to tile, over the requests of skipped tiles too. Of one warp's width
/// and one tile, each warp scans for itself. Value is Sums or Largest.
template <int kThreads, bool kMany, class Value>
class CumulativeScan {
 public:
  struct Shared {
    Value warp_total[kThreads / kWarp];
    Value warp_skipped[kMany ? kThreads / kWarp : 1];
  };

  __device__ explicit CumulativeScan(Shared& shared) : shared_(shared) {}

  /// Starts on a tile; `sums_of(read(b))` are the sums of a request of the tiles that were skipped.
  template <class Read, class SumsOf>
  __device__ void enter(const Tile& tile, Read read, SumsOf sums_of) {
    if constexpr (kMany) {
      if (scanned_ > 0) __syncthreads();
      skips_ = scanned_ < tile.begin;
      skipped_ = sum_tiles<kThreads>(scanned_, tile.begin, read, sums_of);
      scanned_ = tile.begin + kThreads;
    }
  }

  /// The sums before this thread's request of the tile, which has `mine`, and after the tile.
  __device__ Scanned<Value> exclusive(const Value& mine) {
    const int lane = threadIdx.x % kWarp;
    const Value inclusive = warp_inclusive(mine);
    Value before = shuffle_up(inclusive, 1);
    if (lane == 0) before = {};
    if constexpr (kThreads == kWarp && !kMany) {
      const Value total = from_lane(inclusive, kWarp - 1);
      return {before, total};
    }
    constexpr int kWarps = kThreads / kWarp;
    const int warp = threadIdx.x / kWarp;
    if (lane == kWarp - 1) shared_.warp_total[warp] = inclusive;
    if (kMany && skips_) {
      const Value skipped = warp_sum(skipped_);
      if (lane == 0) shared_.warp_skipped[warp] = skipped;
    }
    __syncthreads();
    Value warps{};
    if (lane < kWarps) warps = shared_.warp_total[lane];
    warps = warp_inclusive(warps);
    if (warp > 0) before += from_lane(warps, warp - 1);
    Value total = from_lane(warps, kWarp - 1);
    if constexpr (kMany) {
      if (skips_) carried_ += warp_sum(lane < kWarps ? shared_.warp_skipped[lane] : Value{});
      before += carried_;
      carried_ += total;
      total = carried_;
    }
    return {before, total};
  }

 private:
  Shared& shared_;
  bool skips_ = false;
  Value skipped_{};  ///< this thread's part of what the skipped tiles have
  Value carried_{};
  int scanned_ = 0;
};

/// Sums over the requests before one, for which any warp of a block can ask. Less work than a scan where few ask.
template <int kThreads, bool kMany>
class SumBefore {
 public:
  struct Shared {
    int32_t each[kThreads];
    int32_t of_warp[kThreads / kWarp];
  };

  __device__ explicit SumBefore(Shared& shared) : shared_(shared) {}

  /// Goes on to a tile; `value_of(read(b))` is the value of an earlier request. All threads of the block take part.
  template <class Read, class ValueOf>
  __device__ void enter(const Tile& tile, Read read, ValueOf value_of) {
    if constexpr (kMany) {
      const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
      const auto sums_of = [&](const auto& request) { return Sums<1>{{value_of(request)}}; };
      const int32_t earlier = warp_sum(sum_tiles<kThreads>(summed_, tile.begin, read, sums_of).value[0]);
      if (lane == 0) shared_.of_warp[warp] = earlier;
      __syncthreads();
      before_tile_ = rules::saturating_add(before_tile_, warp_sum(lane < kThreads / kWarp ? shared_.of_warp[lane] : 0));
      __syncthreads();
      summed_ = tile.begin;
    }
  }

  /// Sets the value of the request at a place in the tile. The lanes of a warp set consecutive ones, from a multiple of
  /// kWarp on; all threads of the block synchronize before one of them asks.
  __device__ void set(int place, int32_t value) {
    shared_.each[place] = value;
    const int32_t sum = warp_sum(value);
    if (place % kWarp == 0) shared_.of_warp[place / kWarp] = sum;
  }

  /// All lanes of a warp ask for the same request, by its place in the tile.
  __device__ int32_t before(int place) const {
    const int lane = threadIdx.x % kWarp, warp = place / kWarp;
    int32_t sum = lane < place % kWarp ? shared_.each[warp * kWarp + lane] : 0;
    if (lane < warp) sum = rules::saturating_add(sum, shared_.of_warp[lane]);
    return rules::saturating_add(warp_sum(sum), before_tile_);
  }

 private:
  Shared& shared_;
  int32_t before_tile_ = 0;
  int summed_ = 0;
};

/// Up to this many tokens, a request is the work of one thread.
constexpr int kShort = 16;

/// Calls `store(span, j)` for each token j of the span of every thread. The tokens of a short span are spread over the
/// blocks that share the tile, in the thread that holds it; those of a long one over the lanes of its warp too.
/// Span is a struct of words that has `tokens`. With kUpToShort, all spans are short.
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
    const Span of_lane = from_lane(span, lane);
    const int step = static_cast<int>(tile.shares * kWarp);
#pragma unroll 1
    for (int j = tile.share * kWarp + threadIdx.x % kWarp; j < of_lane.tokens; j += step) {
      store(of_lane, j);
    }
  }
}

}  // namespace nsa_kernel::cuda
