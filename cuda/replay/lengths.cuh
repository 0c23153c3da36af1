// The outputs of replay that have one value a request or a token.
#pragma once

#include "replay/arguments.cuh"
#include "scan.cuh"

namespace nsa_kernel::cuda {

/// One value a request; one block a tile.
template <int kTile, class Traits>
__device__ void fill_requests(const ReplayArguments<Traits>& args) {
  constexpr bool kMany = Traits::kMany;
  using Request = typename ReplayArguments<Traits>::Request;
  __shared__ typename CumulativeScan<kTile, kMany, Sums<1>>::Shared shared;
  CumulativeScan<kTile, kMany, Sums<1>> scan(shared);
  const auto read = [&](int b) { return args.batch.read(b); };
  for_each_tile<kTile, kMany>(args.batch.bs, 0, 1, [&](const Tile& tile) {
    const int b = tile.begin + threadIdx.x;
    const bool mine = threadIdx.x < tile.requests;
    Request request{};
    if (mine) request = args.batch.read(b);
    scan.enter(tile, read, [&](const Request& of) { return Sums<1>{{args.batch.kv(of)}}; });
    const int32_t kv = mine ? args.batch.kv(request) : 0;
    if (tile.first && threadIdx.x == 0 && args.cu_seqlens_k != nullptr) *args.cu_seqlens_k = 0;
    const Scanned<Sums<1>> scanned = scan.exclusive({{kv}});
    if (!mine) return;
    if (args.cache_seqlens != nullptr) args.cache_seqlens[b] = kv;
    if (args.cu_seqlens_k != nullptr) args.cu_seqlens_k[b + 1] = rules::saturating_add(scanned.before.value[0], kv);
    if (args.ctx_lens_2d.data != nullptr) {
      int32_t* row = args.ctx_lens_2d.row(b);
#pragma unroll 1
      for (int j = 0; j < args.batch.uniform_tokens; ++j) row[j] = kv;
    }
  });
}

/// The tokens of one request that some output holds.
struct ReplayTokens {
  int32_t tokens;
  int32_t at;     ///< of the first
  int32_t first;  ///< KV length that it sees
  int32_t clipped_before;
};

/// One value a token; the blocks of a tile share its tokens.
template <int kTile, class Traits>
__device__ void fill_tokens(const ReplayArguments<Traits>& args, unsigned share) {
  constexpr bool kMany = Traits::kMany;
  using Request = typename ReplayArguments<Traits>::Request;
  enum Sum { kClipped, kCount };
  constexpr int kSums = Traits::kCounts == TokenCounts::uniform ? 1 : 2;  // uniform tokens are counted without a sum
  constexpr bool kUpToShort = Traits::kCounts == TokenCounts::uniform;
  __shared__ typename CumulativeScan<kTile, kMany, Sums<kSums>>::Shared shared;
  CumulativeScan<kTile, kMany, Sums<kSums>> scan(shared);

  const auto read = [&](int b) { return args.batch.read(b); };
  const auto sums_of = [&](const Request& request) {
    const int32_t tokens = args.batch.tokens(request);
    Sums<kSums> sums;
    sums.value[kClipped] = rules::clipped_sum(args.batch.first_seqlen(request), tokens, args.topk);
    if constexpr (kSums > kCount) sums.value[kCount] = tokens;
    return sums;
  };
  for_each_tile<kTile, kMany>(args.batch.bs, share, args.roles.token_blocks(), [&](const Tile& tile) {
    const int b = tile.begin + threadIdx.x;
    const bool mine = threadIdx.x < tile.requests;
    Request request{};
    if (mine) request = args.batch.read(b);
    scan.enter(tile, read, sums_of);
    ReplayTokens span{};
    Sums<kSums> sums{};
    if (mine) {
      span = {args.batch.tokens(request), 0, args.batch.first_seqlen(request), 0};
      sums = sums_of(request);
    }
    const Scanned<Sums<kSums>> scanned = scan.exclusive(sums);
    span.clipped_before = scanned.before.value[kClipped];
    int32_t total;
    if constexpr (kSums > kCount) {
      span.at = scanned.before.value[kCount];
      total = scanned.total.value[kCount];
    } else {
      span.at = args.batch.uniform_tokens_before(b);
      total = args.batch.uniform_tokens_before(args.batch.bs);
    }
    span.tokens = args.batch.held_tokens(span.at, span.tokens);
    for_each_token<kUpToShort>(tile, span, [&](const ReplayTokens& of, int32_t j) {
      const int32_t t = of.at + j;
      const int32_t seqlen = rules::expanded_seqlen(of.first, j);
      args.seqlens_expanded.store(t, seqlen);
      args.nsa_cache_seqlens.store(t, rules::clipped_seqlen(seqlen, args.topk));
      const int32_t clipped_sum = rules::clipped_sum(of.first, j + 1, args.topk);
      args.nsa_cu_seqlens_k.store(t, rules::saturating_add(of.clipped_before, clipped_sum));
    });
    if (threadIdx.x == 0 && share == 0) {
      if (tile.first && args.nsa_cu_seqlens_k_start != nullptr) *args.nsa_cu_seqlens_k_start = 0;
      if (tile.last && args.num_tokens != nullptr) *args.num_tokens = total;
    }
    if (!tile.last) return;
    const int step = static_cast<int>(tile.shares * kTile);
    const int32_t padding = args.batch.capacity - min(total, args.batch.capacity);
#pragma unroll 1
    for (int32_t left = padding - static_cast<int>(share * kTile + threadIdx.x); left > 0; left -= step) {
      const int32_t t = args.batch.capacity - left;
      args.seqlens_expanded.store(t, 0);
      args.nsa_cache_seqlens.store(t, 0);
      args.nsa_cu_seqlens_k.store(t, scanned.total.value[kClipped]);
    }
  });
}

/// Both kinds for up to one warp's width of requests. Each request has a warp for its own values and warps for its
/// tokens; the others write what belongs to no token.
template <class Traits>
__device__ void fill_lengths_of_small_batch(const ReplayArguments<Traits>& args, unsigned warp) {
  constexpr bool kRagged = Traits::kCounts == TokenCounts::lengths;
  const auto& batch = args.batch;
  const int lane = threadIdx.x % kWarp;
  const bool mine = lane < batch.bs;
  const int of = mine ? lane : 0;
  if (warp < args.small_batch.tokens) {
    const int share = args.bs_divisor.quotient(warp), b = warp - share * batch.bs;
    const auto request = batch.read(of);
    const int32_t first = batch.first_seqlen(request), tokens = mine ? batch.tokens(request) : 0;
    const int32_t clipped = lane < b ? rules::clipped_sum(first, tokens, args.topk) : 0;
    const int32_t first_of = __shfl_sync(kAllLanes, first, b);
    int32_t count = __shfl_sync(kAllLanes, tokens, b);
    const int32_t clipped_before = warp_sum(clipped);
    const int32_t at = kRagged ? warp_sum(lane < b ? tokens : 0) : batch.uniform_tokens_before(b);
    count = batch.held_tokens(at, count);
#pragma unroll 1
    for (int32_t j = share * kWarp + lane; j < count; j += args.small_batch.token_shares * kWarp) {
      const int32_t seqlen = rules::expanded_seqlen(first_of, j);
      const int32_t clipped_sum = rules::clipped_sum(first_of, j + 1, args.topk);
      args.seqlens_expanded.store(at + j, seqlen);
      args.nsa_cache_seqlens.store(at + j, rules::clipped_seqlen(seqlen, args.topk));
      args.nsa_cu_seqlens_k.store(at + j, rules::saturating_add(clipped_before, clipped_sum));
    }
    return;
  }
  warp -= args.small_batch.tokens;
  if (warp < args.small_batch.requests) {
    const int b = warp;
    const int32_t kv = batch.kv(batch.read(of));
    const int32_t before = warp_sum(lane < b ? kv : 0);
    if (lane == b) {
      if (args.cache_seqlens != nullptr) args.cache_seqlens[b] = kv;
      if (args.cu_seqlens_k != nullptr) args.cu_seqlens_k[b + 1] = rules::saturating_add(before, kv);
    }
    if (args.ctx_lens_2d.data == nullptr) return;
    int32_t* row = args.ctx_lens_2d.row(b);
    const int32_t kv_of = __shfl_sync(kAllLanes, kv, b);
    for (int j = lane; j < batch.uniform_tokens; j += kWarp) row[j] = kv_of;
    return;
  }
  warp -= args.small_batch.requests;
  if (warp == 0 && lane == 0) {
    if (args.cu_seqlens_k != nullptr) *args.cu_seqlens_k = 0;
    if (args.nsa_cu_seqlens_k_start != nullptr) *args.nsa_cu_seqlens_k_start = 0;
  }
  typename ReplayArguments<Traits>::Request request{};
  if (mine) request = batch.read(lane);
  const int32_t tokens = mine ? batch.tokens(request) : 0;
  const int32_t total = kRagged ? warp_sum(tokens) : batch.uniform_tokens_before(batch.bs);
  if (warp == 0 && lane == 0 && args.num_tokens != nullptr) *args.num_tokens = total;
  const int32_t padding = batch.capacity - min(total, batch.capacity);
  if (padding == 0) return;
  const int32_t clipped_total = warp_sum(mine ? rules::clipped_sum(batch.first_seqlen(request), tokens, args.topk) : 0);
#pragma unroll 1
  for (int32_t left = padding - static_cast<int>(warp * kWarp + lane); left > 0;
       left -= args.small_batch.padding * kWarp) {
    const int32_t t = batch.capacity - left;
    args.seqlens_expanded.store(t, 0);
    args.nsa_cache_seqlens.store(t, 0);
    args.nsa_cu_seqlens_k.store(t, clipped_total);
  }
}

}  // namespace nsa_kernel::cuda
