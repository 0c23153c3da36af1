// What the docstrings of the Python names say beside their arguments, whose lines come from the op's list.
#pragma once

#include "signature.h"

namespace nsa_kernel::bindings {

inline constexpr const char* kCudaErrorDoc =
    "A CUDA call that failed, CUDA arrays given to a build without CUDA, or a synchronizing call during stream "
    "capture.\n\n"
    "Attributes:\n    code: The `cudaError_t`.";

#define NSA_KERNEL_DRAFT_EXTEND_RULE                                                             \
  "    t = 0\n"                                                                                  \
  "    for b in range(bs):\n"                                                                    \
  "        for j in range(max(extend_seq_lens[b], 0)):\n"                                        \
  "            if t < capacity:\n"                                                               \
  "                out_seqlens_expanded[t] = max(seq_lens[b] - extend_seq_lens[b] + 1 + j, 0)\n" \
  "                out_nsa_cache_seqlens[t] = min(out_seqlens_expanded[t], nsa_index_topk)\n"    \
  "            t += 1\n"                                                                         \
  "    num_tokens = t\n\n"                                                                       \
  "Elements past the last token are left unmodified.\n"

#define NSA_KERNEL_SCHEDULE_RULE                                                                                       \
  "`schedule` divides the rows among slots. A row of `length` has ceil(length / split) splits, and first(r) is\n"      \
  "its number in column 0, `end` that after the last row:\n\n"                                                         \
  "    format               split   weight of a split                     first(r)          rest goes to\n"            \
  "    deepgemm_sm90        256     schedule_atoms; rows by token: 1      weight * r        the last slots\n"          \
  "    deepgemm_sm100_256   256     tokens(r)                             tokens before r   the first slots\n"         \
  "    deepgemm_sm100_384   384     8 * ceil(tokens(r) / 4) + tokens(r)   tokens before r   the first slots\n\n"       \
  "    P = cumsum(splits * weight);  each, rest = divmod(P[-1], slots)       # no work at all: every pair is (0, 0)\n" \
  "    t = i * each + the slots before slot i that take one of the rest\n"                                             \
  "    r = the first row with P[r] > t;  o = t - P[r - 1]\n"                                                           \
  "    schedule[i] = (first(r), o // weight(r));  schedule[slots] = (end, 0)\n"                                        \
  "    # of deepgemm_sm90: (first(r) + o // splits(r), o % splits(r));  where t >= P[-1]: (end, 0)\n"

#define NSA_KERNEL_PLAN_MEMORY                                                                              \
  "Keeps the arrays and their memory alive, and uses that memory in each run, also once a tensor has\n"     \
  "other memory (`.data =`, `set_`). Memory that is reallocated in place is lost to the plan, which must\n" \
  "not run then: torch's `resize_` to more than the storage holds, `untyped_storage().resize_`,\n"          \
  "`share_memory_` of a CPU tensor, NumPy's `resize` with `refcheck=False`.\n"

#define NSA_KERNEL_RAISES                                                                                         \
  "\nRaises:\n"                                                                                                   \
  "    TypeError: An argument is not an array, or its dtype, rank, layout, device kind or stream does not fit.\n" \
  "    ValueError: Sizes or devices disagree, outputs overlap, or a number or word is not allowed.\n"             \
  "    RuntimeError: torch is tracing, and would not record the call: see `nsa_kernel.torch_ops`.\n"              \
  "    CudaError: CUDA failed.\n"

inline constexpr Docs kFillDraftExtendDocs{
    "None", "Fills the lengths that each draft token sees; asynchronous.\n\n" NSA_KERNEL_DRAFT_EXTEND_RULE,
    NSA_KERNEL_RAISES};

inline constexpr Docs kFillDraftExtendAndWaitDocs{
    "int",
    "Fills the lengths that each draft token sees and returns the number of tokens.\n\n"
    "Waits for the count alone, which arrives before the fill ends. Inside a stream capture, call\n"
    "`fill_draft_extend_metadata`.\n\n" NSA_KERNEL_DRAFT_EXTEND_RULE,
    "\nReturns:\n    The number of tokens.\n" NSA_KERNEL_RAISES
    "    ValueError: The count exceeds the capacity; what fits is written.\n"};

#define NSA_KERNEL_DIRECT_DOCS(variant)                                                                             \
  {"Any",                                                                                                           \
   "`fill_draft_extend_metadata` with variant `" variant "`, which returns the count as an array; asynchronous.\n", \
   "\nReturns:\n    [1] int32 on the inputs' device and of their framework, the number of tokens.\n"                \
   "    It is allocated on the framework's current stream: another `stream` has to wait for that one first, and\n"  \
   "    to be waited for before the count is read.\n" NSA_KERNEL_RAISES}

inline constexpr Docs kBasicDocs NSA_KERNEL_DIRECT_DOCS("basic");
inline constexpr Docs kAdaptiveDocs NSA_KERNEL_DIRECT_DOCS("adaptive");
inline constexpr Docs kOptimizedDocs NSA_KERNEL_DIRECT_DOCS("optimized");

inline constexpr Docs kDraftExtendPlanDocs{
    "Self",
    "`fill_draft_extend_metadata`, bound to its arrays: checked once, run every step.\n\n"
    "With the variants `basic` and `adaptive`, a CUDA graph captured from the plan uses its workspace: keep the\n"
    "plan as long as the graph.\n\n" NSA_KERNEL_PLAN_MEMORY,
    NSA_KERNEL_RAISES};

inline constexpr Docs kFillReplayDocs{
    "None",
    "Refreshes everything that a sparse-attention backend reads in a CUDA-graph replay, in one asynchronous launch.\n\n"
    "    mode                    tokens q of request b   kv(b)             length of token j\n"
    "    decode                  1                       seq_lens[b]       kv(b)\n"
    "    target_verify           num_draft_tokens        seq_lens[b] + q   seq_lens[b] + 1 + j\n"
    "    draft_extend, uniform   num_draft_tokens        seq_lens[b]       max(kv(b) - q + 1 + j, 0)\n"
    "    draft_extend, ragged    extend_seq_lens[b]      seq_lens[b]       max(kv(b) - q + 1 + j, 0)\n\n"
    "Rows are the tokens of all requests in order. Every output is optional; an absent one costs "
    "nothing.\n\n" NSA_KERNEL_SCHEDULE_RULE
    "\n`topk_plan` lists the rows that SGLang's top-k gives to clusters:\n\n"
    "    limit = the least of the format's limits that no more rows exceed than it allows, at least 32768\n"
    "    topk_plan[0] = (limit, n);  topk_plan[1 .. n] = (row, length) of the n rows longer than limit\n",
    NSA_KERNEL_RAISES};

inline constexpr Docs kReplayPlanDocs{
    "Self", "`fill_replay_metadata`, bound to its arrays: checked once, run every step.\n\n" NSA_KERNEL_PLAN_MEMORY,
    NSA_KERNEL_RAISES};

inline constexpr Docs kFillIndexerDecodeDocs{
    "None",
    "Refreshes what vLLM's sparse indexer reads in a decode step, in one asynchronous launch.\n\n"
    "    local(x) = x // dcp_interleave // dcp_world * dcp_interleave + the rank's share of the rest\n"
    "    final(x) = local(x) // compress_ratio\n"
    "    k = seq_lens[b]\n\n"
    "    layout   row                          global_seq_lens                      decode_seq_lens\n"
    "    rows     token j of request b, of q   max(k - q + 1 + j, 0)                final(global_seq_lens)\n"
    "    native   request b, of m columns                                           final(max(k - m + 1 + j, 0))\n\n"
    "One argument tells q, the tokens of each request: query_start_loc, query_lens or max_query_len. In `native`,\n"
    "max_query_len is m and always given; it is q too where there is no array. With an array, as for a padded batch,\n"
    "decode_lens and per_req_lens are the q of the array.\n\n"
    "With `rows`, the first min(num_tokens, capacity) rows are filled: those of all tokens in order, then padding of\n"
    "length 0, whose requests are numbered from n on and whose column 0 of the block table is 0. Other columns than\n"
    "those that a request fills, and rows beyond, are left unmodified. Every output is "
    "optional.\n\n" NSA_KERNEL_SCHEDULE_RULE,
    NSA_KERNEL_RAISES};

inline constexpr Docs kIndexerDecodePlanDocs{
    "Self",
    "`fill_indexer_decode_metadata`, bound to its arrays: checked once, run every step.\n\n" NSA_KERNEL_PLAN_MEMORY,
    NSA_KERNEL_RAISES};

inline constexpr Docs kFillIndexerPrefillDocs{
    "None",
    "Fills what vLLM's sparse indexer reads for one chunk of prefill, in one asynchronous launch.\n\n"
    "Requests and rows are those of the chunk; token j of request b is one of q, and states(x) = x // "
    "compress_ratio.\n\n"
    "    cu_seq_lens[b + 1]                            = cu_seq_lens[b] + states(seq_lens[b])\n"
    "    local_cu_seq_lens[b + 1]                      = local_cu_seq_lens[b] + local(states(seq_lens[b]))\n"
    "    token_to_seq[cu_seq_lens[b]:cu_seq_lens[b+1]] = b\n"
    "    cu_seqlen_ks[row]                             = local_cu_seq_lens[b]\n"
    "    cu_seqlen_ke[row]                             = cu_seqlen_ks[row] + local(states(seq_lens[b] - q + 1 + j))\n\n"
    "`local` counts those on this rank, as in `fill_indexer_decode_metadata`. Every output is optional.\n",
    NSA_KERNEL_RAISES};

inline constexpr Docs kFillTokenRequestsDocs{
    "None",
    "Maps tokens to their requests, in one asynchronous launch.\n\n"
    "    out[t] = the first b with query_start_loc[b + 1] > t, or the last, for t < num_mapped, and 0 for the rest\n",
    NSA_KERNEL_RAISES};

inline constexpr Docs kRunDocs{"None", "Enqueues the work, or does it at once on the CPU; asynchronous on a GPU.\n",
                               "\nRaises:\n    TypeError: The stream is none of these.\n"
                               "    RuntimeError: torch is tracing, and would not record the run.\n"
                               "    CudaError: CUDA failed.\n"};

inline constexpr Docs kIsAvailableDocs{"bool", "Whether this build has CUDA code and sees a device that can run it.\n"};

inline constexpr Docs kKernelInfoDocs{
    "dict[str, Any]",
    "What this build holds and which devices it sees.\n\n"
    "Returns:\n"
    "    available, backend, variants, default, adaptive, binary_search_threshold (requests), block_size (threads,\n"
    "    of `basic` and `adaptive`), prefix_sum_fusion, version, cuda_version (of the toolkit), architectures (as\n"
    "    built), devices (name, compute_capability, usable), and, where `available` is False, reason.\n"};

inline constexpr Docs kLaunchEmptyDocs{
    "None", "Launches a kernel that does nothing: the floor that benchmarks compare with.\n",
    "\nRaises:\n    TypeError: The stream or the device is none of these.\n    ValueError: The device is no ordinal.\n"
    "    CudaError: There is no such device, or CUDA failed.\n"};

inline constexpr Docs kSignaturesDocs{
    "dict[str, dict[str, Any]]",
    "What every callable of this module takes, by its name: `returns`, its annotation, and `arguments`, for each one\n"
    "name, role, required, default, keyword_only, words, shape, sentence. A plan's `run` is `<plan>.run`.\n"};

}  // namespace nsa_kernel::bindings
