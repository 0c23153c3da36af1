// Every argument of `fill_replay_metadata`, once.
#pragma once

#include "arguments.h"
#include "nsa_kernel/replay.h"
#include "schedule_words.h"

namespace nsa_kernel {

template <>
inline constexpr std::array<Word<Mode>, 3> kWords<Mode>{
    {{"decode", Mode::decode}, {"target_verify", Mode::target_verify}, {"draft_extend", Mode::draft_extend}}};

template <>
inline constexpr std::array<Word<TopkPlanFormat>, 2> kWords<TopkPlanFormat>{
    {{"sglang_topk_v2_sm90", TopkPlanFormat::sglang_topk_v2_sm90},
     {"sglang_topk_v2_sm100", TopkPlanFormat::sglang_topk_v2_sm100}}};

inline constexpr auto kReplayArguments = argument_list(
    "fill_replay_metadata", 1,  //
    required("mode", &Replay::mode, "Which step the metadata is for."),
    required("seq_lens", &Replay::seq_lens, "[bs]", "KV length of each request."),
    optional("nsa_index_topk", &Replay::nsa_index_topk,
             "KV entries that sparse attention keeps per token; needed by `nsa_cache_seqlens` and `nsa_cu_seqlens_k`."),
    optional("req_pool_indices", &Replay::req_pool_indices, "[bs]",
             "row of each request in `req_to_token`; needed by the tables. A row outside the pool reads as slot 0."),
    optional("req_to_token", &Replay::req_to_token, "[pool, width]",
             "token position to KV slot; needed by the tables."),
    optional("extend_seq_lens", &Replay::extend_seq_lens, "[bs]",
             "tokens of each request; makes `draft_extend` ragged."),
    optional("num_draft_tokens", &Replay::num_draft_tokens,
             "Tokens of each request; needed by `target_verify` and uniform `draft_extend`."),
    optional("page_size", &Replay::page_size, "Slots in a page of `real_page_table`."),
    optional("cache_seqlens", &Replay::cache_seqlens, "[>= bs]", "kv(b)."),
    optional("cu_seqlens_k", &Replay::cu_seqlens_k, "[>= bs + 1]", "0, then the cumulative sum of kv."),
    optional("seqlens_expanded", &Replay::seqlens_expanded, "[>= rows]",
             "length of each token; 0 after the last token, to the end."),
    optional("nsa_cache_seqlens", &Replay::nsa_cache_seqlens, "[>= rows]", "the same, at most `nsa_index_topk`."),
    optional("nsa_cu_seqlens_k", &Replay::nsa_cu_seqlens_k, "[>= rows + 1]",
             "0, then the cumulative sum of `nsa_cache_seqlens`, to the end."),
    optional("page_table", &Replay::page_table, "[rows, >= kv]",
             "slots of the token's request; only the live part is written."),
    optional("real_page_table", &Replay::real_page_table, "[rows, >= pages]",
             "slot // page_size at each page's first slot; only the live part."),
    optional("ctx_lens_2d", &Replay::ctx_lens_2d, "[>= bs, >= num_draft_tokens]",
             "kv(b); `target_verify` and uniform `draft_extend`."),
    optional("num_tokens", &Replay::num_tokens, "[>= 1]", "the number of tokens, also when it exceeds the rows given."),
    optional("schedule", &Replay::schedule, "[slots + 1, 2]",
             "the start of each slot as (row, split), and the end; contiguous, at a multiple of 8 bytes."),
    optional("schedule_format", &Replay::schedule_format, "Whose kernel reads the schedule; given with `schedule`."),
    optional("schedule_rows", &Replay::schedule_rows,
             "A row of the schedule is a token or a request; of ragged requests only in deepgemm_sm100_384."),
    optional("schedule_atoms", &Replay::schedule_atoms,
             "Work of a split, for rows by request of deepgemm_sm90; by default half the tokens, rounded up."),
    optional("topk_plan", &Replay::topk_plan, "[>= rows + 1, 2]",
             "(limit, n), then (row, length) of the n tokens longer than the limit; contiguous, at a multiple of 8 "
             "bytes. Written only where 0 < topk_plan_clusters < rows <= 512."),
    optional("topk_plan_format", &Replay::topk_plan_format, "Whose kernel reads the plan; given with `topk_plan`."),
    optional("topk_plan_clusters", &Replay::topk_plan_clusters, "Clusters that run at once; given with `topk_plan`."));

}  // namespace nsa_kernel
