// The CPU-only stub of the launcher interface, for a build without CUDA.
#include "launch.h"
#include "nsa_kernel/error.h"

namespace nsa_kernel::cuda {
namespace {

constexpr int kNoDevice = 100;  // cudaErrorNoDevice

[[noreturn]] void refuse(const char* op) {
  throw CudaError(kNoDevice, std::string(op) +
                                 ": the arrays are on a CUDA device, must be on the CPU: this build has no CUDA code");
}

}  // namespace

void fill_draft_extend(const DraftExtend&, Variant, int32_t*, Stream) { refuse("fill_draft_extend_metadata"); }

int64_t fill_draft_extend_and_count(const DraftExtend&, Variant, Stream) { refuse("fill_draft_extend_metadata"); }

std::shared_ptr<int32_t> allocate_workspace(Device, int64_t) { refuse("fill_draft_extend_metadata"); }

void fill_replay(const Replay&, Stream) { refuse("fill_replay_metadata"); }

void fill_indexer_decode(const IndexerDecode&, Stream) { refuse("fill_indexer_decode_metadata"); }

void fill_indexer_prefill(const IndexerPrefill&, Stream) { refuse("fill_indexer_prefill_metadata"); }

void fill_token_requests(const TokenRequests&, Stream) { refuse("fill_token_requests"); }

void launch_empty(Device, Stream) { throw CudaError(kNoDevice, "launch_empty_kernel: this build has no CUDA code"); }

void describe(Info& info) { info.reason = "this build has no CUDA code"; }

}  // namespace nsa_kernel::cuda
