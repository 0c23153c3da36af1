#include "nsa_kernel/replay.h"

#include <algorithm>

#include "check_arrays.h"
#include "check_schedule.h"
#include "launch.h"
#include "replay_arguments.h"
#include "replay_batch.h"
#include "require.h"
#include "rules.h"
#include "schedule.h"

namespace nsa_kernel {
namespace {

constexpr Require require(kReplayArguments.op);

/// Of no request, no input is missed: an empty array may have a null address, like one that is not given.
bool has_no_request(const Replay& args) { return args.seq_lens.size == 0; }

void check_mode(const Replay& args) {
  require(word_of(args.mode) != nullptr, "mode is ", static_cast<int64_t>(args.mode),
          ", must be decode, target_verify or draft_extend");
  const bool ragged = static_cast<bool>(args.extend_seq_lens);
  if (args.mode == Mode::draft_extend && ragged) {
    require.same_size("extend_seq_lens", args.extend_seq_lens, "seq_lens", args.seq_lens);
    require(!args.ctx_lens_2d, "ctx_lens_2d is given with extend_seq_lens, must be absent");
    return;
  }
  require(!ragged, "extend_seq_lens is given in mode ", word_of(args.mode), ", must be absent");
  if (args.mode == Mode::decode) {
    require(!args.ctx_lens_2d, "ctx_lens_2d is given in mode decode, must be absent");
    return;
  }
  require(args.num_draft_tokens || has_no_request(args), "num_draft_tokens is absent in mode ", word_of(args.mode),
          ", must be given");
  const int64_t tokens = args.num_draft_tokens.value_or(0);
  require.not_negative("num_draft_tokens", tokens);
  require.at_most("num_draft_tokens", tokens, rules::kMaxStored);
}

void check_topk(const Replay& args) {
  if (args.nsa_index_topk) return require.not_negative("nsa_index_topk", *args.nsa_index_topk);
  require(!args.nsa_cache_seqlens, "nsa_index_topk is absent, must be given with nsa_cache_seqlens");
  require(!args.nsa_cu_seqlens_k, "nsa_index_topk is absent, must be given with nsa_cu_seqlens_k");
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
  require.countable("ctx_lens_2d", ctx.cols);
}

void check_topk_plan(const Replay& args) {
  if (!args.topk_plan) {
    require(!args.topk_plan_format, "topk_plan_format is given without topk_plan, must be absent");
    require(!args.topk_plan_clusters, "topk_plan_clusters is given without topk_plan, must be absent");
    return;
  }
  require(args.topk_plan_format.has_value(), "topk_plan_format is absent, must be given with topk_plan");
  require(args.topk_plan_clusters.has_value(), "topk_plan_clusters is absent, must be given with topk_plan");
  const TopkPlanFormat format = *args.topk_plan_format;
  require(format == TopkPlanFormat::sglang_topk_v2_sm90 || format == TopkPlanFormat::sglang_topk_v2_sm100,
          "topk_plan_format is ", static_cast<int64_t>(format),
          ", must be sglang_topk_v2_sm90 or sglang_topk_v2_sm100");
  require.not_negative("topk_plan_clusters", *args.topk_plan_clusters);
  require.pairs("topk_plan", args.topk_plan);
  const int64_t rows = token_rows(batch_of<TokenCounts::uniform_or_lengths>(args));
  require(args.topk_plan.rows >= rows + 1, "topk_plan has ", args.topk_plan.rows, " rows, must have at least ",
          rows + 1);
}

template <class T>
void check_table_size(const char* name, const TableView<T>& table) {
  require.countable(name, table.rows);
  require.countable(name, table.cols);
}

void check_tables(const Replay& args) {
  require.divisor("page_size", args.page_size);
  if (args.req_pool_indices) {
    require.same_size("req_pool_indices", args.req_pool_indices, "seq_lens", args.seq_lens);
  }
  if (!args.page_table && !args.real_page_table) return;
  check_table_size("req_to_token", args.req_to_token);
  check_table_size("page_table", args.page_table);
  check_table_size("real_page_table", args.real_page_table);
  const int64_t rows = rules::max(args.page_table.rows, args.real_page_table.rows);
  require(cuda::can_count_tasks(rows, args.page_table.cols, args.real_page_table.cols), "page_table has shape [",
          args.page_table.rows, ", ", args.page_table.cols, "] and real_page_table [", args.real_page_table.rows, ", ",
          args.real_page_table.cols, "], must be smaller");
  if (has_no_request(args)) return;
  const char* table = args.page_table ? "page_table" : "real_page_table";
  require(static_cast<bool>(args.req_pool_indices), "req_pool_indices is absent, must be given with ", table);
  require(static_cast<bool>(args.req_to_token), "req_to_token is absent, must be given with ", table);
}

/// Whether the top-k kernel reads the plan, which is not written otherwise.
bool topk_plan_is_read(const Replay& args) {
  const int64_t rows = token_rows(batch_of<TokenCounts::uniform_or_lengths>(args)), clusters = *args.topk_plan_clusters;
  return 0 < clusters && clusters < rows && rows <= rules::TopkPlanRule::kMaxRows;
}

/// The arguments, checked and in the one form that the loops and kernels read: numbers that have a default hold it,
/// `num_draft_tokens` the tokens of every request unless `extend_seq_lens` is given, and `topk_plan` is absent where
/// nothing is written.
Replay checked(const Replay& given) {
  Replay args = given;
  check_arrays(require, kReplayArguments, args);
  require.countable("seq_lens", args.seq_lens.size);
  check_topk(args);
  check_mode(args);
  args.num_draft_tokens = args.mode == Mode::decode ? 1 : args.num_draft_tokens.value_or(0);
  check_outputs(args);
  check_tables(args);
  check_schedule(require, args, args.extend_seq_lens ? "extend_seq_lens" : nullptr);
  check_topk_plan(args);
  args.nsa_index_topk = rules::min(args.nsa_index_topk.value_or(0), rules::kMaxStored);
  if (!args.schedule_atoms) args.schedule_atoms = rules::ceil_div(*args.num_draft_tokens, 2);
  if (args.topk_plan && !topk_plan_is_read(args)) args.topk_plan = {};
  return args;
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
  const int32_t topk = static_cast<int32_t>(*args.nsa_index_topk);
  const rules::Divisor page_size(args.page_size);
  const View<int32_t>& cu_k = args.cu_seqlens_k;
  const View<int32_t>& expanded = args.seqlens_expanded;
  const View<int32_t>& clipped = args.nsa_cache_seqlens;
  const View<int32_t>& cu_clipped = args.nsa_cu_seqlens_k;
  const auto batch = batch_of<TokenCounts::uniform_or_lengths>(args);

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
  if (args.schedule) {
    const rules::ScheduleRule rule(*args.schedule_format, args.schedule_rows, *args.schedule_atoms);
    fill_schedule_on_cpu(batch, rules::SeqlenSplits(rule.split()), rule, args.schedule);
  }
  if (args.topk_plan) fill_topk_plan_on_cpu(batch, rules::TopkPlanRule(*args.topk_plan_format), args.topk_plan);
}

}  // namespace

ReplayPlan::ReplayPlan(const Replay& buffers) : buffers_(checked(buffers)) {}

void ReplayPlan::run(Stream stream) const {
  if (buffers_.device.type == DeviceType::cuda) {
    cuda::fill_replay(buffers_, stream);
  } else {
    fill_on_cpu(buffers_);
  }
}

void fill_replay_metadata(const Replay& buffers, Stream stream) { ReplayPlan(buffers).run(stream); }

}  // namespace nsa_kernel
