// The lengths that each draft token sees.
#pragma once

#include <cstdint>
#include <memory>

#include "nsa_kernel/types.h"

namespace nsa_kernel {

/// How `draft_extend` finds the request of a token; all variants give the same result.
enum class Variant {
  basic,      ///< a prefix sum as its own launch, then a binary search for each token
  adaptive,   ///< the same prefix sum, a linear search up to `kLinearSearchRequests`
  optimized,  ///< one launch, no workspace: every block scans the requests itself
};

/// Up to this many requests, `Variant::adaptive` searches linearly.
inline constexpr int64_t kLinearSearchRequests = 16;

/// Threads in a block of the kernels of `basic` and `adaptive`.
inline constexpr int kBlockSize = 256;

/// Buffers of one draft-extend fill. `bs` is the number of requests; the capacity is the shorter of the two outputs, so
/// without one of them no token is written.
struct DraftExtend {
  LengthView extend_seq_lens{};           ///< [bs] tokens that each request adds
  LengthView seq_lens{};                  ///< [bs] KV length of each request, added tokens included
  int64_t nsa_index_topk = 0;             ///< KV entries that sparse attention keeps per token
  View<int32_t> out_seqlens_expanded{};   ///< [capacity] out: KV length that each token sees
  View<int32_t> out_nsa_cache_seqlens{};  ///< [capacity] out: the same, at most `nsa_index_topk`
  View<int32_t> out_num_tokens{};         ///< [1] out, optional: number of tokens, also when it exceeds the capacity
  Device device{};                        ///< where all of them live
};

/// A draft-extend fill bound to its buffers: checked once, run every step.
class DraftExtendPlan {
 public:
  /// Checks `buffers`; throws `std::invalid_argument`. The memory stays the caller's and must outlive the plan.
  explicit DraftExtendPlan(const DraftExtend& buffers, Variant variant = Variant::optimized);

  /// Enqueues the fill on `stream` (CUDA) or does it at once (CPU). Asynchronous: no host-device synchronization.
  /// A CUDA graph captured from `basic` or `adaptive` uses this plan's workspace: keep the plan as long as the graph.
  /// Copies of a plan share it: on two streams at once, run `optimized`, or plans made one by one.
  void run(Stream stream = nullptr) const;

 private:
  DraftExtend buffers_;
  Variant variant_;
  std::shared_ptr<int32_t> workspace_;
};

/// The fill without a plan. Asynchronous; a workspace, where the variant needs one, is ordered on `stream`.
void fill_draft_extend_metadata(const DraftExtend& buffers, Variant variant = Variant::optimized,
                                Stream stream = nullptr);

/// The same, and synchronizes for the number of tokens, which it returns, also where it exceeds the capacity and only
/// what fits is written. Refused during capture of `stream`.
int64_t fill_draft_extend_metadata_and_count(const DraftExtend& buffers, Variant variant = Variant::optimized,
                                             Stream stream = nullptr);

}  // namespace nsa_kernel
