#include "nsa_kernel/indexer.h"

#include <algorithm>
#include <limits>

#include "batch.h"
#include "check_arrays.h"
#include "check_schedule.h"
#include "indexer_arguments.h"
#include "indexer_batch.h"
#include "launch.h"
#include "require.h"
#include "rules.h"
#include "schedule.h"

namespace nsa_kernel {
namespace {

constexpr Require require_decode(kIndexerDecodeArguments.op);
constexpr Require require_prefill(kIndexerPrefillArguments.op);
constexpr Require require_token_requests(kTokenRequestsArguments.op);

/// Whether an op has a request and thus needs its inputs: an empty array may have a null address, like one that is not
/// given.
bool has_request(const LengthView& seq_lens) { return seq_lens.size > 0; }

void check_query_start_loc(const Require& require, const LengthView& query_start_loc, int64_t n) {
  require(query_start_loc.size == n + 1, "query_start_loc has ", query_start_loc.size,
          " elements, must have one more than seq_lens (", n, ")");
}

template <class Args>
void check_shard(const Require& require, const Args& args) {
  require.divisor("compress_ratio", args.compress_ratio);
  require.divisor("dcp_world", args.dcp_world);
  require.divisor("dcp_interleave", args.dcp_interleave);
  require(args.dcp_rank >= 0 && args.dcp_rank < args.dcp_world, "dcp_rank is ", args.dcp_rank,
          ", must be from 0 to dcp_world - 1 (", args.dcp_world - 1, ")");
  require.at_most("dcp_world * dcp_interleave", args.dcp_world * args.dcp_interleave, rules::kMaxStored);
}

// Decode.

void check_tokens(const IndexerDecode& args) {
  const Require& require = require_decode;
  const bool native = args.layout == IndexerLayout::native;
  require(!args.query_start_loc || !args.query_lens, "query_lens is given with query_start_loc, must be absent");
  const char* array = args.query_start_loc ? "query_start_loc" : "query_lens";
  const bool ragged = args.query_start_loc || args.query_lens;
  if (native) {
    require(args.max_query_len || !has_request(args.seq_lens),
            "max_query_len is absent in layout native, must be given");
  } else {
    require(!ragged || !args.max_query_len, "max_query_len is given with ", array, " in layout rows, must be absent");
    require(ragged || args.max_query_len || !has_request(args.seq_lens),
            "query_start_loc is absent, must be given, or query_lens or max_query_len");
  }
  if (args.query_start_loc) check_query_start_loc(require, args.query_start_loc, args.seq_lens.size);
  if (args.query_lens) require.same_size("query_lens", args.query_lens, "seq_lens", args.seq_lens);
  require.not_negative("max_query_len", args.max_query_len.value_or(0));
  require.at_most("max_query_len", args.max_query_len.value_or(0), rules::kMaxStored);
}

void check_native(const IndexerDecode& args) {
  const Require& require = require_decode;
  const int64_t n = args.seq_lens.size;
  require(!args.global_seq_lens, "global_seq_lens is given in layout native, must be absent");
  require(!args.indices, "indices is given in layout native, must be absent");
  require(!args.expanded_block_table, "expanded_block_table is given in layout native, must be absent");
  require.at_least("decode_seq_lens", args.decode_seq_lens, n * args.max_query_len.value_or(0));
  require.at_least("decode_lens", args.decode_lens, n);
}

void check_table(const IndexerDecode& args, int64_t rows) {
  const Require& require = require_decode;
  const TableView<int32_t>& expanded = args.expanded_block_table;
  require(expanded.rows >= rows, "expanded_block_table has ", expanded.rows, " rows, must have at least ", rows);
  require.countable("expanded_block_table", expanded.rows);
  require.countable("expanded_block_table", expanded.cols);
  require.countable("block_table", args.block_table.cols);
  require(cuda::can_count_tasks(expanded.rows, 0, expanded.cols), "expanded_block_table has shape [", expanded.rows,
          ", ", expanded.cols, "], must be smaller");
  if (!has_request(args.seq_lens)) return;
  require(static_cast<bool>(args.block_table), "block_table is absent, must be given with expanded_block_table");
  require(args.block_table.rows >= args.seq_lens.size, "block_table has ", args.block_table.rows,
          " rows, must have at least ", args.seq_lens.size);
}

/// Checks what layout `rows` needs, and returns how many rows it fills.
int64_t check_rows(const IndexerDecode& args) {
  const Require& require = require_decode;
  require(args.num_tokens.has_value(), "num_tokens is absent in layout rows, must be given");
  require.not_negative("num_tokens", *args.num_tokens);
  const int64_t capacity = args.decode_seq_lens ? args.decode_seq_lens.size : rules::kMaxStored;
  const int64_t rows = rules::min(*args.num_tokens, capacity);
  require.at_most("num_tokens", rows, Require::kCountable);
  require.countable("global_seq_lens", args.global_seq_lens.size);
  require.countable("decode_lens", args.decode_lens.size);
  require.countable("indices", args.indices.size);
  require.at_least("global_seq_lens", args.global_seq_lens, rows);
  require.at_least("decode_lens", args.decode_lens, rows);
  require.at_least("indices", args.indices, rows);
  if (args.expanded_block_table) check_table(args, rows);
  return rows;
}

/// The arguments, checked and in the one form that the loops and kernels read: numbers that have a default hold it, and
/// `num_tokens` the rows to fill, in `native` those that all requests have together.
IndexerDecode checked(const IndexerDecode& given) {
  IndexerDecode args = given;
  const Require& require = require_decode;
  check_arrays(require, kIndexerDecodeArguments, args);
  require(word_of(args.layout) != nullptr, "layout is ", static_cast<int64_t>(args.layout), ", must be rows or native");
  require.countable("seq_lens", args.seq_lens.size);
  check_tokens(args);
  require.divisor("page_size", args.page_size);
  check_shard(require, args);
  require.countable("decode_seq_lens", args.decode_seq_lens.size);
  require.at_least("per_req_lens", args.per_req_lens, args.seq_lens.size);
  const char* counts = nullptr;
  if (args.layout == IndexerLayout::native) {
    check_native(args);
    args.num_tokens = args.seq_lens.size * args.max_query_len.value_or(0);
    args.schedule_rows = ScheduleRows::request;
  } else {
    args.num_tokens = check_rows(args);
    counts = args.query_start_loc ? "query_start_loc" : args.query_lens ? "query_lens" : nullptr;
  }
  check_schedule(require, args, counts);
  if (!args.schedule_atoms) args.schedule_atoms = rules::ceil_div(args.max_query_len.value_or(0), 2);
  return args;
}

void fill_rows_on_cpu(const IndexerDecode& args) {
  const rules::ContextShard shard = shard_of(args);
  const rules::WideDivisor compress_ratio(args.compress_ratio);
  const rules::WideDivisor page_size(args.page_size);
  const TableView<int32_t>& expanded = args.expanded_block_table;
  const int32_t columns = rules::saturated(rules::min(args.block_table.cols, expanded.cols));
  const auto batch = batch_of(args);
  const auto store_token = [&](int32_t t, int64_t seqlen, int32_t index) {
    if (args.global_seq_lens) args.global_seq_lens.data[t] = rules::saturated(seqlen);
    if (args.decode_seq_lens) args.decode_seq_lens.data[t] = rules::final_length(seqlen, shard, compress_ratio);
    if (args.decode_lens) args.decode_lens.data[t] = 1;
    if (args.indices) args.indices.data[t] = index;
  };

  int32_t total = 0;
  for (int32_t b = 0; b < batch.bs; ++b) {
    const auto request = batch.read(b);
    const int32_t tokens = batch.tokens(request), held = batch.held_tokens(total, tokens);
    if (args.per_req_lens) args.per_req_lens.data[b] = tokens;
    const int64_t first = batch.first_seqlen(request);
    const int64_t states = rules::final_states(batch.kv(request), shard, compress_ratio);
    const int64_t live = rules::min(rules::live_blocks(states, page_size), columns);
    for (int32_t j = 0; j < held; ++j) {
      store_token(total + j, rules::expanded_seqlen(first, j), b);
      if (expanded) std::copy_n(args.block_table.row(b), live, expanded.row(total + j));
    }
    total = rules::saturating_add(total, tokens);
  }
  for (int64_t t = total; t < batch.capacity; ++t) {
    store_token(static_cast<int32_t>(t), 0, batch.bs + static_cast<int32_t>(t - total));
    if (expanded && expanded.cols > 0) *expanded.row(t) = 0;
  }
  for (int64_t t = batch.capacity; t < args.decode_seq_lens.size; ++t) args.decode_seq_lens.data[t] = 0;
  if (args.schedule) fill_schedule_on_cpu(batch, splits_of(args), schedule_rule_of(args), args.schedule);
}

void fill_native_on_cpu(const IndexerDecode& args) {
  const rules::ContextShard shard = shard_of(args);
  const rules::WideDivisor compress_ratio(args.compress_ratio);
  const int64_t m = args.max_query_len.value_or(0);
  const auto batch = batch_of(args);
  for (int32_t b = 0; b < batch.bs; ++b) {
    const auto request = batch.read(b);
    if (args.decode_lens) args.decode_lens.data[b] = batch.tokens(request);
    if (args.per_req_lens) args.per_req_lens.data[b] = batch.tokens(request);
    if (!args.decode_seq_lens) continue;
    const int64_t first = rules::wide_first_seqlen(batch.kv(request), static_cast<uint64_t>(m));
    for (int32_t j = 0; j < m; ++j) {
      args.decode_seq_lens.data[b * m + j] =
          rules::final_length(rules::expanded_seqlen(first, j), shard, compress_ratio);
    }
  }
  if (args.schedule) fill_schedule_on_cpu(native_rows_of(args), splits_of(args), schedule_rule_of(args), args.schedule);
}

// Prefill.

/// The arguments, checked and in the one form that the loops and kernels read: `end_row` is given.
IndexerPrefill checked(const IndexerPrefill& given) {
  IndexerPrefill args = given;
  const Require& require = require_prefill;
  check_arrays(require, kIndexerPrefillArguments, args);
  const int64_t batch = args.seq_lens.size;
  require.countable("seq_lens", batch);
  check_query_start_loc(require, args.query_start_loc, batch);
  require.not_negative("first_request", args.first_request);
  require.at_most("end_request", args.end_request, batch);
  require(args.end_request >= args.first_request, "end_request is ", args.end_request,
          ", must be at least first_request (", args.first_request, ")");
  require.not_negative("first_row", args.first_row);
  args.end_row = args.end_row.value_or(std::numeric_limits<int64_t>::max());
  require(*args.end_row >= args.first_row, "end_row is ", *args.end_row, ", must be at least first_row (",
          args.first_row, ")");
  check_shard(require, args);
  const int64_t n = args.end_request - args.first_request;
  require.at_least("cu_seq_lens", args.cu_seq_lens, n + 1);
  require.at_least("local_cu_seq_lens", args.local_cu_seq_lens, n + 1);
  require.countable("token_to_seq", args.token_to_seq.size);
  require.countable("cu_seqlen_ks", args.cu_seqlen_ks.size);
  require.countable("cu_seqlen_ke", args.cu_seqlen_ke.size);
  return args;
}

void fill_on_cpu(const IndexerPrefill& args) {
  const rules::ContextShard shard = shard_of(args);
  const rules::WideDivisor compress_ratio(args.compress_ratio);
  const auto batch = batch_of(args);
  if (args.cu_seq_lens) args.cu_seq_lens.data[0] = 0;
  if (args.local_cu_seq_lens) args.local_cu_seq_lens.data[0] = 0;

  int32_t total = 0, local_total = 0;
  int64_t row = -args.first_row;  // of the outputs
  const int64_t held_rows =
      rules::min(rules::max(args.cu_seqlen_ks.size, args.cu_seqlen_ke.size), *args.end_row - args.first_row);
  for (int32_t b = 0; b < batch.bs; ++b) {
    const auto request = batch.read(b);
    const int64_t first = batch.first_seqlen(request);
    const int32_t tokens = batch.tokens(request);
    for (int64_t j = rules::max(-row, 0); j < rules::min(tokens, held_rows - row); ++j) {
      const int64_t seqlen = rules::expanded_seqlen(first, static_cast<int32_t>(j));
      const int32_t length = rules::saturated(shard.local(compress_ratio.quotient(seqlen)));
      if (row + j < args.cu_seqlen_ks.size) args.cu_seqlen_ks.data[row + j] = local_total;
      if (row + j < args.cu_seqlen_ke.size) {
        args.cu_seqlen_ke.data[row + j] = rules::saturating_add(local_total, length);
      }
    }
    row += tokens;
    const int64_t states = compress_ratio.quotient(batch.kv(request));
    const int32_t held = batch.held_tokens(total, rules::saturated(states));
    if (held > 0) std::fill_n(args.token_to_seq.data + total, held, b);
    total = rules::saturating_add(total, rules::saturated(states));
    local_total = rules::saturating_add(local_total, rules::saturated(shard.local(states)));
    if (args.cu_seq_lens) args.cu_seq_lens.data[b + 1] = total;
    if (args.local_cu_seq_lens) args.local_cu_seq_lens.data[b + 1] = local_total;
  }
}

// Token requests.

/// The arguments, checked and in the one form that the loops and kernels read: `num_mapped` is at most the size of
/// `out`.
TokenRequests checked(const TokenRequests& given) {
  TokenRequests args = given;
  const Require& require = require_token_requests;
  check_arrays(require, kTokenRequestsArguments, args);
  require(args.query_start_loc.size >= 1, "query_start_loc has 0 elements, must have at least 1");
  require.countable("query_start_loc", args.query_start_loc.size);
  require.countable("out", args.out.size);
  require.not_negative("num_mapped", args.num_mapped.value_or(0));
  args.num_mapped = rules::min(args.num_mapped.value_or(args.out.size), args.out.size);
  return args;
}

void fill_on_cpu(const TokenRequests& args) {
  const int64_t last = rules::max(args.query_start_loc.size - 2, 0), mapped = *args.num_mapped;
  int64_t t = 0;
  for (int64_t b = 0; b < last; ++b) {
    for (; t < rules::min(args.query_start_loc[b + 1], mapped); ++t) args.out.data[t] = static_cast<int32_t>(b);
  }
  for (; t < mapped; ++t) args.out.data[t] = static_cast<int32_t>(last);
  for (; t < args.out.size; ++t) args.out.data[t] = 0;
}

}  // namespace

IndexerDecodePlan::IndexerDecodePlan(const IndexerDecode& buffers) : buffers_(checked(buffers)) {}

void IndexerDecodePlan::run(Stream stream) const {
  if (buffers_.device.type == DeviceType::cuda) {
    cuda::fill_indexer_decode(buffers_, stream);
  } else if (buffers_.layout == IndexerLayout::native) {
    fill_native_on_cpu(buffers_);
  } else {
    fill_rows_on_cpu(buffers_);
  }
}

void fill_indexer_decode_metadata(const IndexerDecode& buffers, Stream stream) {
  IndexerDecodePlan(buffers).run(stream);
}

void fill_indexer_prefill_metadata(const IndexerPrefill& buffers, Stream stream) {
  const IndexerPrefill args = checked(buffers);
  if (args.device.type == DeviceType::cuda) {
    cuda::fill_indexer_prefill(args, stream);
  } else {
    fill_on_cpu(args);
  }
}

void fill_token_requests(const TokenRequests& buffers, Stream stream) {
  const TokenRequests args = checked(buffers);
  if (args.device.type == DeviceType::cuda) {
    cuda::fill_token_requests(args, stream);
  } else {
    fill_on_cpu(args);
  }
}

}  // namespace nsa_kernel
