// The batch of a replay refresh, as loops and kernels read it.
#pragma once

#include "batch.h"
#include "nsa_kernel/replay.h"
#include "rules.h"

namespace nsa_kernel {

/// Of buffers that were checked: `num_draft_tokens` is set. The capacity is that of the longest per-token output.
template <TokenCounts kCounts, class Step = uint64_t>
Batch<kCounts, Step> batch_of(const Replay& buffers) {
  const int32_t uniform_tokens = buffers.extend_seq_lens ? 0 : static_cast<int32_t>(*buffers.num_draft_tokens);
  const int64_t capacity = rules::max(rules::max(buffers.seqlens_expanded.size, buffers.nsa_cache_seqlens.size),
                                      rules::max(buffers.nsa_cu_seqlens_k.size - 1, 0));
  return {
      .bs = static_cast<int32_t>(buffers.seq_lens.size),
      .uniform_tokens = uniform_tokens,
      .seq_lens = IndexArray<Step>(buffers.seq_lens),
      .source_rows = IndexArray<Step>(buffers.req_pool_indices),
      .token_counts = IndexArray<Step>(buffers.extend_seq_lens),
      .pending_tokens = buffers.mode == Mode::target_verify ? uniform_tokens : 0,
      .capacity = rules::saturated(capacity),
  };
}

}  // namespace nsa_kernel
