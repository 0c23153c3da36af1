// What vLLM's sparse indexer refreshes before a step. Its cache has a state for every `compress_ratio` KV entries, and
// blocks of `page_size` states; with decode context parallelism, ranks share the KV entries of a request.
#pragma once

#include <cstdint>
#include <optional>

#include "nsa_kernel/schedule.h"
#include "nsa_kernel/types.h"

namespace nsa_kernel {

/// How the tokens of a decode step are given to the indexer's kernels.
enum class IndexerLayout {
  rows,    ///< each token is a row of its own, as if it were a request
  native,  ///< each request is a row of `max_query_len` columns
};

/// Buffers of one refresh for a decode step. `n` is the number of requests.
/// Every output is optional; an absent one costs nothing. `global_seq_lens`, `indices` and `expanded_block_table`
/// belong to layout `rows`, the other outputs to both. Where `n` is 0, no input is needed.
struct IndexerDecode {
  IndexerLayout layout = IndexerLayout::rows;
  LengthView seq_lens{};                   ///< [n] KV length of each request, this step's tokens included
  LengthView query_start_loc{};            ///< [n + 1] 0, then the cumulative sum of the tokens of each request
  LengthView query_lens{};                 ///< [n] tokens of each request, where `query_start_loc` is not given
  std::optional<int64_t> max_query_len{};  ///< tokens of each request, where neither is given; `native`: its columns
  TableView<const int32_t> block_table{};  ///< [n, width] blocks of each request
  std::optional<int64_t> num_tokens{};     ///< rows to fill in `rows`, padding included
  int64_t page_size = 64;                  ///< states in a block
  int64_t compress_ratio = 1;              ///< KV entries in a state
  int64_t dcp_world = 1;                   ///< ranks of decode context parallelism
  int64_t dcp_rank = 0;                    ///< this one
  int64_t dcp_interleave = 1;              ///< consecutive KV entries of a rank
  FlatView decode_seq_lens{};       ///< [capacity] out: states that each token sees; `native`: [n, max_query_len]
  View<int32_t> global_seq_lens{};  ///< [num_tokens] out: KV entries that each token sees, on all ranks
  View<int32_t> decode_lens{};      ///< [num_tokens] out: 1; `native`: [n] tokens of each request
  View<int32_t> per_req_lens{};     ///< [n] out: tokens of each request
  View<int32_t> indices{};          ///< [num_tokens] out: request of each token, a number of its own of padding
  TableView<int32_t> expanded_block_table{};  ///< [num_tokens, columns] out: blocks of each token's request
  TableView<int32_t> schedule{};  ///< [slots + 1, 2] out: start of each slot, and the end; 8-byte aligned, contiguous
  std::optional<ScheduleFormat> schedule_format{};   ///< given with `schedule`
  ScheduleRows schedule_rows = ScheduleRows::token;  ///< of `schedule` in `rows`; those of `native` are requests
  std::optional<int64_t> schedule_atoms{};           ///< work of a split in deepgemm_sm90 by request
  Device device{};                                   ///< where all of them live
};

/// A refresh for decode steps bound to its buffers: checked once, run every step.
class IndexerDecodePlan {
 public:
  /// Checks `buffers`; throws `std::invalid_argument`. The memory stays the caller's and must outlive the plan.
  explicit IndexerDecodePlan(const IndexerDecode& buffers);

  /// Enqueues one launch on `stream` (CUDA) or does the work at once (CPU). Asynchronous: no host-device
  /// synchronization.
  void run(Stream stream = nullptr) const;

 private:
  IndexerDecode buffers_;
};

/// The refresh without a plan.
void fill_indexer_decode_metadata(const IndexerDecode& buffers, Stream stream = nullptr);

/// Buffers of one chunk of prefill: requests `first_request` .. `end_request` - 1 of a batch of `batch`, `n` of them,
/// and of their tokens rows `first_row` .. `end_row` - 1. Every output is optional.
struct IndexerPrefill {
  LengthView query_start_loc{};       ///< [batch + 1] 0, then the cumulative sum of the tokens of each request
  LengthView seq_lens{};              ///< [batch] KV length of each request, this step's tokens included
  int64_t first_request = 0;          ///< of the chunk
  int64_t end_request = 0;            ///< the first one after the chunk
  int64_t first_row = 0;              ///< counted from the chunk's first token
  std::optional<int64_t> end_row{};   ///< not given: all rows of the chunk
  int64_t compress_ratio = 1;         ///< KV entries in a state
  int64_t dcp_world = 1;              ///< ranks of decode context parallelism
  int64_t dcp_rank = 0;               ///< this one
  int64_t dcp_interleave = 1;         ///< consecutive states of a rank
  View<int32_t> cu_seq_lens{};        ///< [n + 1] out: 0, then the cumulative sum of the states of each request
  View<int32_t> local_cu_seq_lens{};  ///< [n + 1] out: the same of those on this rank
  View<int32_t> token_to_seq{};       ///< [capacity] out: request of each state, counted from `first_request`
  View<int32_t> cu_seqlen_ks{};       ///< [rows] out: where the states of each row's request start on this rank
  View<int32_t> cu_seqlen_ke{};       ///< [rows] out: where those end that the row sees
  Device device{};                    ///< where all of them live
};

/// Checks `buffers` (`std::invalid_argument`) and enqueues one launch on `stream` (CUDA) or does the work at once
/// (CPU). Asynchronous: no host-device synchronization.
void fill_indexer_prefill_metadata(const IndexerPrefill& buffers, Stream stream = nullptr);

/// Buffers that map tokens to requests. `n` is the number of requests.
struct TokenRequests {
  LengthView query_start_loc{};         ///< [n + 1] 0, then the cumulative sum of the tokens of each request
  View<int32_t> out{};                  ///< [capacity] out: request of each token, n - 1 of those beyond; 0 of the rest
  std::optional<int64_t> num_mapped{};  ///< tokens to map; not given: all
  Device device{};                      ///< where both live
};

/// Checks `buffers` (`std::invalid_argument`) and enqueues one launch on `stream` (CUDA) or does the work at once
/// (CPU). Asynchronous: no host-device synchronization.
void fill_token_requests(const TokenRequests& buffers, Stream stream = nullptr);

}  // namespace nsa_kernel
