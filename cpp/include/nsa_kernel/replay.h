// Everything that a sparse-attention backend refreshes before a CUDA-graph replay.
#pragma once

#include <cstdint>
#include <optional>

#include "nsa_kernel/schedule.h"
#include "nsa_kernel/types.h"

namespace nsa_kernel {

/// Which step the metadata is for.
enum class Mode {
  decode,         ///< one token a request
  target_verify,  ///< `num_draft_tokens` tokens a request, not yet in `seq_lens`
  draft_extend,   ///< `num_draft_tokens` or `extend_seq_lens` tokens a request, already in `seq_lens`
};

/// Buffers of one replay refresh. `bs` is the number of requests, `rows` the number of tokens.
/// Every output is optional; an absent one costs nothing. Where `bs` is 0, no input is needed.
struct Replay {
  Mode mode = Mode::decode;
  LengthView seq_lens{};                      ///< [bs] KV length of each request
  std::optional<int64_t> nsa_index_topk{};    ///< KV entries that sparse attention keeps per token
  LengthView req_pool_indices{};              ///< [bs] row of each request in `req_to_token`
  TableView<const int32_t> req_to_token{};    ///< [pool, width] token position to KV slot
  LengthView extend_seq_lens{};               ///< [bs] tokens of each request; given: `draft_extend` is ragged
  std::optional<int64_t> num_draft_tokens{};  ///< tokens of each request, where `extend_seq_lens` is not given
  int64_t page_size = 1;                      ///< slots in a page of `real_page_table`
  View<int32_t> cache_seqlens{};              ///< [bs] out: KV length
  View<int32_t> cu_seqlens_k{};               ///< [bs + 1] out: 0, then the cumulative sum of the KV lengths
  View<int32_t> seqlens_expanded{};           ///< [rows] out: KV length that each token sees
  View<int32_t> nsa_cache_seqlens{};          ///< [rows] out: the same, at most `nsa_index_topk`
  View<int32_t> nsa_cu_seqlens_k{};           ///< [rows + 1] out: 0, then the cumulative sum of `nsa_cache_seqlens`
  TableView<int32_t> page_table{};            ///< [rows, >= KV length] out: KV slots of each token's request
  TableView<int32_t> real_page_table{};       ///< [rows, >= pages] out: the pages that hold them
  TableView<int32_t> ctx_lens_2d{};           ///< [bs, num_draft_tokens] out: KV length, once a token
  View<int32_t> num_tokens{};                 ///< [1] out: number of tokens, also when it exceeds the rows given
  /// [slots + 1, 2] out: where each slot starts, as (row, split), and where the last one ends; at a multiple of 8 bytes
  TableView<int32_t> schedule{};
  std::optional<ScheduleFormat> schedule_format{};   ///< given with `schedule`
  ScheduleRows schedule_rows = ScheduleRows::token;  ///< what a row of the schedule is
  std::optional<int64_t> schedule_atoms{};           ///< rows by request of deepgemm_sm90: work of a split
  TableView<int32_t> topk_plan{};                    ///< [rows + 1, 2] out: (limit, n), then n times (row, length)
  std::optional<TopkPlanFormat> topk_plan_format{};  ///< given with `topk_plan`
  std::optional<int64_t> topk_plan_clusters{};       ///< given with `topk_plan`: clusters that run at once
  Device device{};                                   ///< where all of them live
};

/// A replay refresh bound to its buffers: checked once, run every step.
class ReplayPlan {
 public:
  /// Checks `buffers`; throws `std::invalid_argument`. The memory stays the caller's and must outlive the plan.
  explicit ReplayPlan(const Replay& buffers);

  /// Enqueues one launch on `stream` (CUDA) or does the work at once (CPU). Asynchronous: no host-device
  /// synchronization.
  void run(Stream stream = nullptr) const;

 private:
  Replay buffers_;
};

/// The refresh without a plan of one's own.
void fill_replay_metadata(const Replay& buffers, Stream stream = nullptr);

}  // namespace nsa_kernel
