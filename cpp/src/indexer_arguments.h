// Every argument of `fill_indexer_decode_metadata`, `fill_indexer_prefill_metadata` and `fill_token_requests`, once.
#pragma once

#include "arguments.h"
#include "nsa_kernel/indexer.h"
#include "schedule_words.h"

namespace nsa_kernel {

template <>
inline constexpr std::array<Word<IndexerLayout>, 2> kWords<IndexerLayout>{
    {{"rows", IndexerLayout::rows}, {"native", IndexerLayout::native}}};

inline constexpr auto kIndexerDecodeArguments = argument_list(
    "fill_indexer_decode_metadata", 1,  //
    required("layout", &IndexerDecode::layout, "Each token is a row, or each request, of `max_query_len` tokens."),
    required("seq_lens", &IndexerDecode::seq_lens, "[n]", "KV length of each request, this step's tokens included."),
    optional("query_start_loc", &IndexerDecode::query_start_loc, "[n + 1]",
             "cumulative sum of the tokens of each request, from 0."),
    optional("query_lens", &IndexerDecode::query_lens, "[n]",
             "tokens of each request, where `query_start_loc` is not given."),
    optional("max_query_len", &IndexerDecode::max_query_len,
             "Tokens of each request, where neither is given. `native`: always given, the columns of each request."),
    optional("block_table", &IndexerDecode::block_table, "[>= n, width]",
             "blocks of each request; needed by `expanded_block_table`."),
    optional("num_tokens", &IndexerDecode::num_tokens, "Rows to fill, padding included; needed by `rows`."),
    optional("page_size", &IndexerDecode::page_size, "States in a block."),
    optional("compress_ratio", &IndexerDecode::compress_ratio, "KV entries in a state."),
    optional("dcp_world", &IndexerDecode::dcp_world, "Ranks of decode context parallelism."),
    optional("dcp_rank", &IndexerDecode::dcp_rank, "This rank."),
    optional("dcp_interleave", &IndexerDecode::dcp_interleave, "Consecutive KV entries of a rank."),
    optional(
        "decode_seq_lens", &IndexerDecode::decode_seq_lens, "[capacity]",
        "states that each token sees; 0 after the last row, to the end. `native`: [n, max_query_len]. May have two "
        "dimensions."),
    optional("global_seq_lens", &IndexerDecode::global_seq_lens, "[>= num_tokens]",
             "KV entries that each token sees, on all ranks; `rows`."),
    optional("decode_lens", &IndexerDecode::decode_lens, "[>= num_tokens]", "1; `native`: [>= n], as `per_req_lens`."),
    optional("per_req_lens", &IndexerDecode::per_req_lens, "[>= n]", "tokens of each request."),
    optional("indices", &IndexerDecode::indices, "[>= num_tokens]",
             "request of each token; padding has numbers of its own, from n on; `rows`."),
    optional("expanded_block_table", &IndexerDecode::expanded_block_table, "[>= num_tokens, columns]",
             "blocks of the token's request; only those that it fills, one at least; `rows`."),
    optional("schedule", &IndexerDecode::schedule, "[slots + 1, 2]",
             "the start of each slot as (row, split), and the end; contiguous, at a multiple of 8 bytes."),
    optional("schedule_format", &IndexerDecode::schedule_format,
             "Whose kernel reads the schedule; given with `schedule`."),
    optional("schedule_rows", &IndexerDecode::schedule_rows,
             "A row of the schedule is a token or a request, in `native` always a request; of ragged requests in "
             "`rows` only in deepgemm_sm100_384."),
    optional("schedule_atoms", &IndexerDecode::schedule_atoms,
             "Work of a split, for rows by request of deepgemm_sm90; by default half the tokens, rounded up."));

inline constexpr auto kIndexerPrefillArguments = argument_list(
    "fill_indexer_prefill_metadata", 0,  //
    required("query_start_loc", &IndexerPrefill::query_start_loc, "[batch + 1]",
             "cumulative sum of the tokens of each request of the batch, from 0."),
    required("seq_lens", &IndexerPrefill::seq_lens, "[batch]",
             "KV length of each request, this step's tokens included."),
    required("first_request", &IndexerPrefill::first_request, "First request of the chunk."),
    required("end_request", &IndexerPrefill::end_request, "First request after the chunk, which has n requests."),
    optional("first_row", &IndexerPrefill::first_row, "First row, counted from the first token of the chunk."),
    optional("end_row", &IndexerPrefill::end_row, "First row not to fill; by default, all rows of the chunk are."),
    optional("compress_ratio", &IndexerPrefill::compress_ratio, "KV entries in a state."),
    optional("dcp_world", &IndexerPrefill::dcp_world, "Ranks of decode context parallelism."),
    optional("dcp_rank", &IndexerPrefill::dcp_rank, "This rank."),
    optional("dcp_interleave", &IndexerPrefill::dcp_interleave, "Consecutive states of a rank."),
    optional("cu_seq_lens", &IndexerPrefill::cu_seq_lens, "[>= n + 1]",
             "0, then the cumulative sum of the states of each request."),
    optional("local_cu_seq_lens", &IndexerPrefill::local_cu_seq_lens, "[>= n + 1]",
             "0, then the cumulative sum of those on this rank."),
    optional("token_to_seq", &IndexerPrefill::token_to_seq, "[capacity]",
             "request of each state, counted from `first_request`."),
    optional("cu_seqlen_ks", &IndexerPrefill::cu_seqlen_ks, "[>= rows]",
             "where the states of the row's request start on this rank."),
    optional("cu_seqlen_ke", &IndexerPrefill::cu_seqlen_ke, "[>= rows]", "where those end that the row sees."));

inline constexpr auto kTokenRequestsArguments = argument_list(
    "fill_token_requests", 2,
    required("query_start_loc", &TokenRequests::query_start_loc, "[n + 1]",
             "cumulative sum of the tokens of each request, from 0."),
    required("out", &TokenRequests::out, "[tokens]", "request of each token, 0 of those that are not mapped."),
    optional("num_mapped", &TokenRequests::num_mapped, "Tokens to map; by default, all."));

}  // namespace nsa_kernel
