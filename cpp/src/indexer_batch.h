// How the ops of the indexer read their requests, on the host and on the device.
#pragma once

#include <cstdint>

#include "batch.h"
#include "nsa_kernel/indexer.h"
#include "nsa_kernel/types.h"
#include "rules.h"
#include "schedule.h"

namespace nsa_kernel {

/// Request b of a batch of the indexer is row b of its block table.
template <class Step = uint64_t>
using IndexerBatch = Batch<TokenCounts::any, Step, false>;

/// The requests of a decode step, of buffers that were checked: `num_tokens` are the rows that there are.
template <class Step = uint64_t>
IndexerBatch<Step> batch_of(const IndexerDecode& args) {
  return {
      .bs = static_cast<int32_t>(args.seq_lens.size),
      .uniform_tokens =
          args.query_start_loc ? IndexerBatch<>::kCumulative : static_cast<int32_t>(args.max_query_len.value_or(0)),
      .seq_lens = IndexArray<Step>(args.seq_lens),
      .source_rows = {},
      .token_counts = IndexArray<Step>(args.query_start_loc ? args.query_start_loc : args.query_lens),
      .pending_tokens = 0,
      .capacity = rules::saturated(*args.num_tokens),
  };
}

/// The rows of layout `native`, of which each has as many columns, whatever tokens its request has.
template <class Step = uint64_t>
IndexerBatch<Step> native_rows_of(IndexerDecode args) {
  args.query_start_loc = {};
  args.query_lens = {};
  return batch_of<Step>(args);
}

/// Elements from `first` on.
inline LengthView elements_from(LengthView view, int64_t first, int64_t size) {
  if (view.int64 != nullptr) return {view.int64 + first * view.stride, size, view.stride};
  return {view.int32 + first * view.stride, size, view.stride};
}

/// The requests of a chunk of prefill.
inline IndexerBatch<> batch_of(const IndexerPrefill& args) {
  const int64_t n = args.end_request - args.first_request;
  return {
      .bs = static_cast<int32_t>(n),
      .uniform_tokens = IndexerBatch<>::kCumulative,
      .seq_lens = IndexArray<>(elements_from(args.seq_lens, args.first_request, n)),
      .source_rows = {},
      .token_counts = IndexArray<>(elements_from(args.query_start_loc, args.first_request, n + 1)),
      .pending_tokens = 0,
      .capacity = rules::saturated(args.token_to_seq.size),
  };
}

/// What a rank holds of each sequence.
template <class Args>
rules::ContextShard shard_of(const Args& args) {
  return rules::ContextShard(args.dcp_world, args.dcp_rank, args.dcp_interleave);
}

/// How rows of a schedule of buffers that were checked are counted.
inline rules::ScheduleRule schedule_rule_of(const IndexerDecode& args) {
  return rules::ScheduleRule(args.schedule_format.value_or(ScheduleFormat::deepgemm_sm90), args.schedule_rows,
                             *args.schedule_atoms);
}
inline rules::FinalSplits splits_of(const IndexerDecode& args) {
  return rules::FinalSplits(schedule_rule_of(args).split(), shard_of(args), rules::WideDivisor(args.compress_ratio));
}

}  // namespace nsa_kernel
