// The batch of a draft-extend fill, as loops and kernels read it.
#pragma once

#include "batch.h"
#include "nsa_kernel/draft_extend.h"
#include "rules.h"

namespace nsa_kernel {

using DraftExtendBatch = Batch<TokenCounts::lengths, uint64_t, false>;

/// Of buffers that were checked. The capacity is that of the shorter output.
inline DraftExtendBatch batch_of(const DraftExtend& buffers) {
  return {
      .bs = static_cast<int32_t>(buffers.extend_seq_lens.size),
      .uniform_tokens = 0,
      .seq_lens = IndexArray<>(buffers.seq_lens),
      .source_rows = {},
      .token_counts = IndexArray<>(buffers.extend_seq_lens),
      .pending_tokens = 0,
      .capacity = rules::saturated(rules::min(buffers.out_seqlens_expanded.size, buffers.out_nsa_cache_seqlens.size)),
  };
}

}  // namespace nsa_kernel
