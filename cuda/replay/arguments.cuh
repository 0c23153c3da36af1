// What the kernels of replay read.
#pragma once

#include <cstdint>
#include <type_traits>

#include "batch.h"
#include "grid.h"
#include "rules.h"
#include "schedule.cuh"
#include "tables/arguments.cuh"
#include "views.cuh"

namespace nsa_kernel::cuda {

/// Arguments are fetched by lines of 64 bytes, one after the other: what a warp of tables reads first stands first. On
/// an H100, three lines hold all that tables take with FastTraits.
template <class Traits_>
struct ReplayArguments {
  using Traits = Traits_;

  Roles roles;
  rules::Divisor bs_divisor;
  uint32_t start_stride;  ///< of overflow tasks, see tables/assignment.cuh; here it fills a gap
  Batch<Traits::kCounts, typename Traits::Step> batch;
  Tables<Traits> tables;
  // Lengths.
  SmallBatchWarps small_batch;
  // One value a token.
  int32_t topk;
  TokenArray seqlens_expanded;
  TokenArray nsa_cache_seqlens;
  TokenArray nsa_cu_seqlens_k;      ///< from its second element on
  int32_t* nsa_cu_seqlens_k_start;  ///< this one and all after it may be null
  int32_t* num_tokens;
  // One value a request.
  int32_t* cache_seqlens;
  int32_t* cu_seqlens_k;
  TableRows<int32_t, typename Traits::Stride> ctx_lens_2d;
  [[no_unique_address]] std::conditional_t<Traits::kSchedules, TopkPlanArguments<rules::SeqlenSplits>, Absent>
      schedules;

  using Request = typename decltype(batch)::Request;

  /// KV entries that the tables show of a request.
  __device__ int32_t entries(const Request& request) const { return batch.kv(request); }
};

}  // namespace nsa_kernel::cuda
