// Signatures and docstrings of the Python names. The stub is made from them.
#pragma once

namespace nsa_kernel::bindings {

constexpr const char* kCudaErrorDoc =
    "A CUDA call that failed, CUDA arrays given to a build without CUDA, or a waiting call inside a stream capture.\n\n"
    "Attributes:\n    code: The `cudaError_t`.";

#define NSA_KERNEL_DRAFT_EXTEND_INPUTS                                                                              \
  "extend_seq_lens: object, seq_lens: object, nsa_index_topk: typing.SupportsIndex, out_seqlens_expanded: object, " \
  "out_nsa_cache_seqlens: object"
#define NSA_KERNEL_VARIANT "variant: typing.Literal['optimized', 'adaptive', 'basic'] = 'optimized'"
#define NSA_KERNEL_STREAM "stream: typing.Any = None"

#define NSA_KERNEL_DRAFT_EXTEND_RULE                                                             \
  "    t = 0\n"                                                                                  \
  "    for b in range(bs):\n"                                                                    \
  "        for j in range(max(extend_seq_lens[b], 0)):\n"                                        \
  "            if t < capacity:\n"                                                               \
  "                out_seqlens_expanded[t] = max(seq_lens[b] - extend_seq_lens[b] + 1 + j, 0)\n" \
  "                out_nsa_cache_seqlens[t] = min(out_seqlens_expanded[t], nsa_index_topk)\n"    \
  "            t += 1\n"                                                                         \
  "    num_tokens = t\n\n"                                                                       \
  "Elements past the last token keep what they held.\n\n"

#define NSA_KERNEL_DRAFT_EXTEND_ARGS                                                                                \
  "Args:\n"                                                                                                         \
  "    extend_seq_lens: [bs] int32 or int64, tokens that each request adds.\n"                                      \
  "    seq_lens: [bs] int32 or int64, KV length of each request, added tokens included.\n"                          \
  "    nsa_index_topk: KV entries that sparse attention keeps per token.\n"                                         \
  "    out_seqlens_expanded: [>= tokens] int32, KV length that each token sees.\n"                                  \
  "    out_nsa_cache_seqlens: [>= tokens] int32, the same, at most `nsa_index_topk`. The capacity is the shorter\n" \
  "        of the two outputs.\n"

#define NSA_KERNEL_STREAM_ARG \
  "    stream: None for the framework's current stream, an int handle, or an object with `__cuda_stream__`.\n"

#define NSA_KERNEL_RAISES                                                                                         \
  "Raises:\n"                                                                                                     \
  "    TypeError: An argument is not an array, or its dtype, rank, layout, device kind or stream does not fit.\n" \
  "    ValueError: Sizes or devices disagree, or a number or word is not allowed.\n"                              \
  "    CudaError: CUDA failed.\n"

constexpr const char* kFillDraftExtendSignature =
    "def fill_draft_extend_metadata(" NSA_KERNEL_DRAFT_EXTEND_INPUTS
    ", out_num_tokens: object | None = None, *, " NSA_KERNEL_VARIANT ", " NSA_KERNEL_STREAM ") -> None";
constexpr const char* kFillDraftExtendDoc =
    "Fills the lengths that each draft token sees; never waits for the "
    "device.\n\n" NSA_KERNEL_DRAFT_EXTEND_RULE NSA_KERNEL_DRAFT_EXTEND_ARGS
    "    out_num_tokens: [>= 1] int32 or None, the number of tokens, also when it exceeds the capacity.\n"
    "    variant: How the request of a token is found; the result is the same.\n" NSA_KERNEL_STREAM_ARG
    "\n" NSA_KERNEL_RAISES;

constexpr const char* kFillDraftExtendCudaSignature =
    "def fill_draft_extend_metadata_cuda(" NSA_KERNEL_DRAFT_EXTEND_INPUTS
    ", use_adaptive: bool = True, use_optimized: bool = True, *, " NSA_KERNEL_STREAM ") -> int";
constexpr const char* kFillDraftExtendCudaDoc =
    "Fills the lengths that each draft token sees and returns the number of tokens.\n\n"
    "Waits for the count alone, which arrives before the fill ends. Inside a stream capture, call\n"
    "`fill_draft_extend_metadata`.\n\n" NSA_KERNEL_DRAFT_EXTEND_RULE NSA_KERNEL_DRAFT_EXTEND_ARGS
    "    use_adaptive: Without `use_optimized`, the variant `adaptive` rather than `basic`.\n"
    "    use_optimized: The variant `optimized`.\n" NSA_KERNEL_STREAM_ARG
    "\nReturns:\n    The number of tokens.\n\n" NSA_KERNEL_RAISES
    "    ValueError: The count exceeds the capacity; what fits is written.\n";

#define NSA_KERNEL_DIRECT_SIGNATURE(variant)                                                                  \
  "def fill_draft_extend_metadata_cuda_" variant "(" NSA_KERNEL_DRAFT_EXTEND_INPUTS ", *, " NSA_KERNEL_STREAM \
  ") -> typing.Any"
#define NSA_KERNEL_DIRECT_DOC(variant)                                                                                \
  "`fill_draft_extend_metadata` with variant `" variant                                                               \
  "`, which returns the count as an array; never waits.\n\n" NSA_KERNEL_DRAFT_EXTEND_ARGS NSA_KERNEL_STREAM_ARG       \
  "\nReturns:\n    [1] int32 on the inputs' device and of their framework, the number of "                            \
  "tokens.\n    It is allocated on the framework's current stream: another `stream` has to wait for that one first, " \
  "and to be\n    waited for before the count is read.\n\n" NSA_KERNEL_RAISES

constexpr const char* kBasicSignature = NSA_KERNEL_DIRECT_SIGNATURE("basic");
constexpr const char* kBasicDoc = NSA_KERNEL_DIRECT_DOC("basic");
constexpr const char* kAdaptiveSignature = NSA_KERNEL_DIRECT_SIGNATURE("adaptive");
constexpr const char* kAdaptiveDoc = NSA_KERNEL_DIRECT_DOC("adaptive");
constexpr const char* kOptimizedSignature = NSA_KERNEL_DIRECT_SIGNATURE("optimized");
constexpr const char* kOptimizedDoc = NSA_KERNEL_DIRECT_DOC("optimized");

constexpr const char* kDraftExtendPlanSignature =
    "def __init__(self, " NSA_KERNEL_DRAFT_EXTEND_INPUTS
    ", out_num_tokens: object | None = None, *, " NSA_KERNEL_VARIANT ") -> None";
constexpr const char* kDraftExtendPlanDoc =
    "`fill_draft_extend_metadata`, bound to its arrays: checked once, run every step.\n\n"
    "Keeps the arrays alive and reads them anew in each run. With the variants `basic` and `adaptive`, a CUDA graph\n"
    "captured from the plan uses its workspace: keep the plan as long as the graph.";

#define NSA_KERNEL_REPLAY_ARGUMENTS                                                             \
  "mode: typing.Literal['decode', 'target_verify', 'draft_extend'], *, seq_lens: object, "      \
  "nsa_index_topk: typing.SupportsIndex, req_pool_indices: object | None = None, "              \
  "req_to_token: object | None = None, extend_seq_lens: object | None = None, "                 \
  "num_draft_tokens: typing.SupportsIndex | None = None, page_size: typing.SupportsIndex = 1, " \
  "cache_seqlens: object | None = None, cu_seqlens_k: object | None = None, "                   \
  "seqlens_expanded: object | None = None, nsa_cache_seqlens: object | None = None, "           \
  "nsa_cu_seqlens_k: object | None = None, page_table: object | None = None, "                  \
  "real_page_table: object | None = None, ctx_lens_2d: object | None = None, num_tokens: object | None = None"

constexpr const char* kFillReplaySignature =
    "def fill_replay_metadata(" NSA_KERNEL_REPLAY_ARGUMENTS ", " NSA_KERNEL_STREAM ") -> None";
constexpr const char* kFillReplayDoc =
    "Refreshes everything that a sparse-attention backend reads in a CUDA-graph replay, in one launch; never waits.\n\n"
    "    mode                    tokens q of request b   kv(b)             length of token j\n"
    "    decode                  1                       seq_lens[b]       kv(b)\n"
    "    target_verify           num_draft_tokens        seq_lens[b] + q   seq_lens[b] + 1 + j\n"
    "    draft_extend, uniform   num_draft_tokens        seq_lens[b]       max(kv(b) - q + 1 + j, 0)\n"
    "    draft_extend, ragged    extend_seq_lens[b]      seq_lens[b]       max(kv(b) - q + 1 + j, 0)\n\n"
    "Rows are the tokens of all requests in order. Every output is optional; an absent one costs nothing.\n\n"
    "Args:\n"
    "    mode: Which step the metadata is for.\n"
    "    seq_lens: [bs] int32 or int64, KV length of each request.\n"
    "    nsa_index_topk: KV entries that sparse attention keeps per token.\n"
    "    req_pool_indices: [bs] int32 or int64, row of each request in `req_to_token`; needed by the tables. A row\n"
    "        outside the pool reads as slot 0.\n"
    "    req_to_token: [pool, width] int32, token position to KV slot; needed by the tables.\n"
    "    extend_seq_lens: [bs] int32 or int64, tokens of each request; makes `draft_extend` ragged.\n"
    "    num_draft_tokens: Tokens of each request; needed by `target_verify` and uniform `draft_extend`.\n"
    "    page_size: Slots in a page of `real_page_table`.\n"
    "    cache_seqlens: [>= bs] int32, kv(b).\n"
    "    cu_seqlens_k: [>= bs + 1] int32, 0, then the running sum of kv.\n"
    "    seqlens_expanded: [>= rows] int32, length of each token; 0 after the last token, to the end.\n"
    "    nsa_cache_seqlens: [>= rows] int32, the same, at most `nsa_index_topk`.\n"
    "    nsa_cu_seqlens_k: [>= rows + 1] int32, 0, then the running sum of `nsa_cache_seqlens`, to the end.\n"
    "    page_table: [rows, >= kv] int32, slots of the token's request; only the live part is written.\n"
    "    real_page_table: [rows, >= pages] int32, slot // page_size at each page's first slot; only the live part.\n"
    "    ctx_lens_2d: [>= bs, >= num_draft_tokens] int32, kv(b); `target_verify` and uniform `draft_extend`.\n"
    "    num_tokens: [>= 1] int32, the number of tokens, also when it exceeds the rows given.\n" NSA_KERNEL_STREAM_ARG
    "\n" NSA_KERNEL_RAISES;
constexpr const char* kReplayPlanSignature = "def __init__(self, " NSA_KERNEL_REPLAY_ARGUMENTS ") -> None";
constexpr const char* kReplayPlanDoc =
    "`fill_replay_metadata`, bound to its arrays: checked once, run every step.\n\n"
    "Keeps the arrays alive and reads them anew in each run.";

constexpr const char* kRunSignature = "def run(self, " NSA_KERNEL_STREAM ") -> None";
constexpr const char* kRunDoc =
    "Enqueues the work, or does it at once on the CPU; never waits for the device.\n\n"
    "Args:\n" NSA_KERNEL_STREAM_ARG
    "\nRaises:\n    TypeError: The stream is none of these.\n    CudaError: CUDA failed.\n";

constexpr const char* kIsAvailableSignature = "def is_cuda_kernel_available() -> bool";
constexpr const char* kIsAvailableDoc = "Whether this build has CUDA code and sees a device that can run it.";
constexpr const char* kKernelInfoSignature = "def get_kernel_info() -> dict[str, typing.Any]";
constexpr const char* kKernelInfoDoc =
    "What this build holds and which devices it sees.\n\n"
    "Returns:\n"
    "    available, backend, variants, default, adaptive, binary_search_threshold (requests), block_size (threads,\n"
    "    of `basic` and `adaptive`), prefix_sum_fusion, version, cuda_version (of the toolkit), architectures (as "
    "built), devices (name,\n"
    "    compute_capability, usable), and, where `available` is False, reason.\n";
constexpr const char* kLaunchEmptySignature =
    "def launch_empty_kernel(stream: typing.Any = None, *, device: typing.SupportsIndex = 0) -> None";
constexpr const char* kLaunchEmptyDoc =
    "Launches a kernel that does nothing: the floor that benchmarks compare with.\n\n"
    "Args:\n    stream: None for the legacy default stream, an int handle, or an object with `__cuda_stream__`.\n"
    "    device: CUDA ordinal.\n\n"
    "Raises:\n    TypeError: The stream or the device is none of these.\n    ValueError: The device is no ordinal.\n"
    "    CudaError: There is no such device, or CUDA failed.\n";

}  // namespace nsa_kernel::bindings
