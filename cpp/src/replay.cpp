#include "nsa_kernel/replay.h"

#include <algorithm>
#include <array>
#include <tuple>

#include "batch.h"
#include "launch.h"
#include "require.h"
#include "rules.h"

namespace nsa_kernel {
namespace {

constexpr Require require("fill_replay_metadata");

/// Null for a value that is no mode.
const char* name(Mode mode) {
  switch (mode) {
    case Mode::decode: return "decode";
    case Mode::target_verify: return "target_verify";
    case Mode::draft_extend: return "draft_extend";
  }
  return nullptr;
}

/// Of no request, no input is missed: an empty array may have a null address, like one that is not given.
bool has_no_request(const Replay& args) { return args.seq_lens.size == 0; }

void check_mode(const Replay& args) {
  require(name(args.mode) != nullptr, "mode is ", static_cast<int64_t>(args.mode),
          ", must be decode, target_verify or draft_extend");
  const bool ragged = static_cast<bool>(args.extend_seq_lens);
  if (args.mode == Mode::draft_extend && ragged) {
    require.same_size("extend_seq_lens", args.extend_seq_lens, "seq_lens", args.seq_lens);
    require(!args.ctx_lens_2d, "ctx_lens_2d is given with extend_seq_lens, must be absent");
    return;
  }
  require(!ragged, "extend_seq_lens is given in mode ", name(args.mode), ", must be absent");
  if (args.mode == Mode::decode) {
    require(!args.ctx_lens_2d, "ctx_lens_2d is given in mode decode, must be absent");
    return;
  }
  require(args.num_draft_tokens || has_no_request(args), "num_draft_tokens is absent in mode ", name(args.mode),
          ", must be given");
  const int64_t tokens = args.num_draft_tokens.value_or(0);
  require.not_negative("num_draft_tokens", tokens);
  require.at_most("num_draft_tokens", tokens, rules::kMaxStored);
}

void check_outputs(const Replay& args) {
  const int64_t bs = args.seq_lens.size;
  require.at_least("cache_seqlens", args.cache_seqlens, bs);
  require.at_least("cu_seqlens_k", args.cu_seqlens_k, bs + 1);
  require.at_least("num_tokens", args.num_tokens, 1);
  require.countable("seqlens_expanded", args.seqlens_expanded.size);
  require.countable("nsa_cache_seqlens", args.nsa_cache_seqlens.size);
  require.countable("nsa_cu_seqlens_k", args.nsa_cu_seqlens_k.size);
  if (args.extend_seq_lens) return;
  const int64_t n = *args.num_draft_tokens;
  require.at_least("seqlens_expanded", args.seqlens_expanded, bs * n);
  require.at_least("nsa_cache_seqlens", args.nsa_cache_seqlens, bs * n);
  require.at_least("nsa_cu_seqlens_k", args.nsa_cu_seqlens_k, bs * n + 1);
  const TableView<int32_t>& ctx = args.ctx_lens_2d;
  require(!ctx || (ctx.rows >= bs && ctx.cols >= n), "ctx_lens_2d has shape [", ctx.rows, ", ", ctx.cols,
          "], must be at least [", bs, ", ", n, "]");
}

template <class T>
void check_table_size(const char* name, const TableView<T>& table) {
  require.countable(name, table.rows);
  require.countable(name, table.cols);
}

void check_tables(const Replay& args) {
  require(args.page_size >= 1 && args.page_size <= rules::kMaxStored, "page_size is ", args.page_size,
          ", must be from 1 to ", rules::kMaxStored);
  if (args.req_pool_indices) {
    require.same_size("req_pool_indices", args.req_pool_indices, "seq_lens", args.seq_lens);
  }
  if (!args.page_table && !args.real_page_table) return;
  check_table_size("req_to_token", args.req_to_token);
  check_table_size("page_table", args.page_table);
  check_table_size("real_page_table", args.real_page_table);
  // The device divides the rows of both tables into units, which it counts in 32 bits.
  const int64_t columns = args.page_table.cols / 256 + args.real_page_table.cols / 32 + 2;
  const int64_t rows = rules::max(args.page_table.rows, args.real_page_table.rows);
  require(columns * (rows / 16 + 1024) <= rules::kMaxStored, "page_table has shape [", args.page_table.rows, ", ",
          args.page_table.cols, "] and real_page_table [", args.real_page_table.rows, ", ", args.real_page_table.cols,
          "], must be smaller");
  if (has_no_request(args)) return;
  const char* table = args.page_table ? "page_table" : "real_page_table";
  require(static_cast<bool>(args.req_pool_indices), "req_pool_indices is absent, must be given with ", table);
  require(static_cast<bool>(args.req_to_token), "req_to_token is absent, must be given with ", table);
}

/// The arguments, checked and in the one form that the loops and kernels read: `num_draft_tokens` holds the tokens of
/// every request unless `extend_seq_lens` is given.
Replay checked(Replay args) {
  require.countable("seq_lens", args.seq_lens.size);
  require.not_negative("nsa_index_topk", args.nsa_index_topk);
  check_mode(args);
  args.num_draft_tokens = args.mode == Mode::decode ? 1 : args.num_draft_tokens.value_or(0);
  check_outputs(args);
  check_tables(args);
  args.nsa_index_topk = rules::min(args.nsa_index_topk, rules::kMaxStored);
  return args;
}

/// The batch as both loops and kernels read it; `capacity` tokens are held.
Batch<TokenCounts::uniform_or_lengths> batch_of(const Replay& args, int64_t capacity) {
  const int32_t uniform_tokens = args.extend_seq_lens ? 0 : static_cast<int32_t>(*args.num_draft_tokens);
  return {
      .bs = static_cast<int32_t>(args.seq_lens.size),
      .uniform_tokens = uniform_tokens,
      .seq_lens = IndexArray<>(args.seq_lens),
      .source_rows = IndexArray<>(args.req_pool_indices),
      .token_counts = IndexArray<>(args.extend_seq_lens),
      .pending_tokens = args.mode == Mode::target_verify ? uniform_tokens : 0,
      .capacity = rules::saturated(capacity),
  };
}

/// Writes rows row .. row + tokens - 1 of both tables, for a request of `kv` entries in a row of the pool, -1 outside
/// it.
void fill_table_rows(const Replay& args, const rules::Divisor& page_size, int32_t pool_row, int32_t kv, int64_t row,
                     int64_t tokens) {
  const int32_t* source = args.req_to_token.row(pool_row >= 0 ? pool_row : 0);
  const int32_t width = rules::saturated(args.req_to_token.cols);

  if (const TableView<int32_t>& slots = args.page_table) {
    const int32_t live = rules::live_slots(kv, width, rules::saturated(slots.cols));
    for (int64_t r = row; r < rules::min(row + tokens, slots.rows); ++r) {
      if (pool_row >= 0) {
        std::copy_n(source, live, slots.row(r));
      } else {
        std::fill_n(slots.row(r), live, 0);
      }
    }
  }
  if (const TableView<int32_t>& pages = args.real_page_table) {
    const int32_t live = rules::live_pages(kv, width, rules::saturated(pages.cols), page_size);
    for (int64_t r = row; r < rules::min(row + tokens, pages.rows); ++r) {
      for (int64_t p = 0; p < live; ++p) {
        pages.row(r)[p] = pool_row >= 0 ? rules::page_id(source[p * args.page_size], page_size) : 0;
      }
    }
  }
}

void fill_on_cpu(const Replay& args) {
  const int32_t topk = static_cast<int32_t>(args.nsa_index_topk);
  const rules::Divisor page_size(args.page_size);
  const View<int32_t>& cu_k = args.cu_seqlens_k;
  const View<int32_t>& expanded = args.seqlens_expanded;
  const View<int32_t>& clipped = args.nsa_cache_seqlens;
  const View<int32_t>& cu_clipped = args.nsa_cu_seqlens_k;
  const auto batch =
      batch_of(args, rules::max(rules::max(expanded.size, clipped.size), rules::max(cu_clipped.size - 1, 0)));

  int32_t kv_sum = 0, clipped_sum = 0, total = 0;
  const auto store_token = [&](int64_t t, int32_t seqlen) {
    const int32_t clipped_seqlen = rules::clipped_seqlen(seqlen, topk);
    clipped_sum = rules::saturating_add(clipped_sum, clipped_seqlen);
    if (t < expanded.size) expanded.data[t] = seqlen;
    if (t < clipped.size) clipped.data[t] = clipped_seqlen;
    if (t + 1 < cu_clipped.size) cu_clipped.data[t + 1] = clipped_sum;
  };

  if (cu_k) cu_k.data[0] = 0;
  if (cu_clipped.size > 0) cu_clipped.data[0] = 0;
  for (int32_t b = 0; b < batch.bs; ++b) {
    const auto request = batch.read(b);
    const int32_t tokens = batch.tokens(request), kv = batch.kv(request), first = batch.first_seqlen(request);
    kv_sum = rules::saturating_add(kv_sum, kv);
    if (args.cache_seqlens) args.cache_seqlens.data[b] = kv;
    if (cu_k) cu_k.data[b + 1] = kv_sum;
    if (args.ctx_lens_2d) std::fill_n(args.ctx_lens_2d.row(b), tokens, kv);
    const int32_t held = batch.held_tokens(total, tokens);
    for (int32_t j = 0; j < held; ++j) store_token(total + j, rules::expanded_seqlen(first, j));
    if (args.page_table || args.real_page_table) {
      const int32_t pool_rows = rules::saturated(args.req_to_token.rows);
      fill_table_rows(args, page_size, batch.source_row(batch.read_source_row(b), pool_rows), kv, total, tokens);
    }
    total = rules::saturating_add(total, tokens);
  }
  for (int64_t t = total; t < batch.capacity; ++t) store_token(t, 0);
  if (args.num_tokens) *args.num_tokens.data = total;
}

/// Every field: the binding does not compile without one of them.
auto fields(const Replay& args) {
  const auto& [mode, seq_lens, nsa_index_topk, req_pool_indices, req_to_token, extend_seq_lens, num_draft_tokens,
               page_size, cache_seqlens, cu_seqlens_k, seqlens_expanded, nsa_cache_seqlens, nsa_cu_seqlens_k,
               page_table, real_page_table, ctx_lens_2d, num_tokens, device] = args;
  return std::tie(mode, seq_lens, nsa_index_topk, req_pool_indices, req_to_token, extend_seq_lens, num_draft_tokens,
                  page_size, cache_seqlens, cu_seqlens_k, seqlens_expanded, nsa_cache_seqlens, nsa_cu_seqlens_k,
                  page_table, real_page_table, ctx_lens_2d, num_tokens, device);
}

/// The last few plans of a thread, found again by all that they were made of. A plan is addresses and numbers and owns
/// no memory, so equal buffers are always its own, whatever lies there by now.
class RecentPlans {
 public:
  const ReplayPlan& of(const Replay& buffers) {
    for (const Entry& entry : entries_) {
      if (fields(entry.buffers) == fields(buffers)) return entry.plan;
    }
    Entry& oldest = entries_[next_];
    oldest.plan = ReplayPlan(buffers);  // before its buffers, for it may refuse them
    oldest.buffers = buffers;
    next_ = (next_ + 1) % entries_.size();
    return oldest.plan;
  }

 private:
  struct Entry {
    Replay buffers;
    ReplayPlan plan{buffers};  // a refresh without requests and outputs is one too
  };

  std::array<Entry, 4> entries_;
  size_t next_ = 0;
};

}  // namespace

ReplayPlan::ReplayPlan(const Replay& buffers) : buffers_(checked(buffers)) {}

void ReplayPlan::run(Stream stream) const {
  if (buffers_.device.type == DeviceType::cuda) {
    cuda::fill_replay(buffers_, stream);
  } else {
    fill_on_cpu(buffers_);
  }
}

void fill_replay_metadata(const Replay& buffers, Stream stream) {
  thread_local RecentPlans recent;
  recent.of(buffers).run(stream);
}

}  // namespace nsa_kernel
