// The launcher interface: what the host asks of a device, plain C++. Arguments arrive checked.
// The .cu files implement it, or no_cuda.cpp in a build without CUDA.
#pragma once

#include <cstdint>
#include <memory>

#include "nsa_kernel/draft_extend.h"
#include "nsa_kernel/indexer.h"
#include "nsa_kernel/info.h"
#include "nsa_kernel/replay.h"
#include "nsa_kernel/types.h"
#include "rules.h"

namespace nsa_kernel::cuda {

// Tables are written in copy tasks, which the device counts in 32 bits: what one covers at least, and of how many
// requests tasks are counted together at most.
inline constexpr int64_t kLeastTaskSlots = 256;
inline constexpr int64_t kLeastTaskPages = 32;
inline constexpr int64_t kLeastTaskRows = 16;
inline constexpr int64_t kMostRequestsCounted = 1024;

/// Whether the tasks of two tables of `rows` rows, one of so many slots and one of so many pages, can be counted.
constexpr bool can_count_tasks(int64_t rows, int64_t slots, int64_t pages) {
  return (slots / kLeastTaskSlots + pages / kLeastTaskPages + 2) * (rows / kLeastTaskRows + kMostRequestsCounted) <=
         rules::kMaxStored;
}

/// Enqueues the fill. A variant that needs a workspace of `bs` elements takes it from the stream where none is given.
void fill_draft_extend(const DraftExtend& args, Variant variant, int32_t* workspace, Stream stream);

/// The same, and polls for the count.
int64_t fill_draft_extend_and_count(const DraftExtend& args, Variant variant, Stream stream);

/// Device memory for one prefix sum over `bs` requests.
std::shared_ptr<int32_t> allocate_workspace(Device device, int64_t bs);

/// Enqueues the refresh.
void fill_replay(const Replay& args, Stream stream);

/// Enqueues the refresh.
void fill_indexer_decode(const IndexerDecode& args, Stream stream);

/// Enqueues the fill.
void fill_indexer_prefill(const IndexerPrefill& args, Stream stream);
void fill_token_requests(const TokenRequests& args, Stream stream);

/// Launches an empty kernel.
void launch_empty(Device device, Stream stream);

/// Fills in what the toolkit and the driver know: cuda_version, architectures, devices, reason.
void describe(Info& info);

}  // namespace nsa_kernel::cuda
