// Every argument of `fill_draft_extend_metadata`, once.
#pragma once

#include "arguments.h"
#include "nsa_kernel/draft_extend.h"

namespace nsa_kernel {

template <>
inline constexpr std::array<Word<Variant>, 3> kWords<Variant>{
    {{"optimized", Variant::optimized}, {"adaptive", Variant::adaptive}, {"basic", Variant::basic}}};

/// The buffers, and beside them the variant, as Python gives them.
struct DraftExtendArguments : DraftExtend {
  Variant variant = Variant::optimized;
};

inline constexpr auto kDraftExtendArguments = argument_list(
    "fill_draft_extend_metadata", 6,
    required("extend_seq_lens", &DraftExtend::extend_seq_lens, "[bs]", "tokens that each request adds."),
    required("seq_lens", &DraftExtend::seq_lens, "[bs]", "KV length of each request, added tokens included."),
    required("nsa_index_topk", &DraftExtend::nsa_index_topk, "KV entries that sparse attention keeps per token."),
    required("out_seqlens_expanded", &DraftExtend::out_seqlens_expanded, "[>= tokens]",
             "KV length that each token sees."),
    required("out_nsa_cache_seqlens", &DraftExtend::out_nsa_cache_seqlens, "[>= tokens]",
             "the same, at most `nsa_index_topk`. The capacity is the shorter of the two outputs."),
    optional("out_num_tokens", &DraftExtend::out_num_tokens, "[>= 1]",
             "the number of tokens, also when it exceeds the capacity."),
    optional("variant", &DraftExtendArguments::variant,
             "How the request of a token is found; the result is the same."));

}  // namespace nsa_kernel
