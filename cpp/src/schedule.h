// Schedules and top-k plans of a batch: what a request is to them, on both devices, and the loops on the CPU.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

#include "batch.h"
#include "nsa_kernel/types.h"
#include "schedule_rules.h"

namespace nsa_kernel {

/// A request of a batch as a schedule sees it.
template <class Batch>
using ScheduledRequestOf = rules::ScheduledRequest<typename Batch::Length>;
template <class Batch>
using ScheduledRowsOf = rules::ScheduledRows<typename Batch::Length>;

/// That, if the outputs hold all of its tokens.
template <class Batch>
NSA_KERNEL_HOST_DEVICE ScheduledRequestOf<Batch> scheduled_whole(const Batch& batch, const rules::ScheduleRule& rule,
                                                                 const typename Batch::Request& request) {
  return {rule.by_request() ? batch.kv(request) : batch.first_seqlen(request), batch.tokens(request)};
}

/// The same of a bounded batch whose outputs hold some of its tokens; `before` are the tokens of earlier requests.
template <class Batch>
NSA_KERNEL_HOST_DEVICE ScheduledRequestOf<Batch> scheduled(const Batch& batch, const rules::ScheduleRule& rule,
                                                           const typename Batch::Request& request, int32_t before) {
  const ScheduledRequestOf<Batch> whole = scheduled_whole(batch, rule, request);
  const int32_t held = batch.is_bounded() ? batch.held_tokens(before, whole.tokens) : whole.tokens;
  if (held == whole.tokens || !rule.by_request()) return {whole.seqlen, held};
  return {held > 0 ? rules::expanded_seqlen(batch.first_seqlen(request), held - 1) : 0, held};
}

/// Rows by token of a batch: their number is known to the host.
template <class Batch>
int64_t token_rows(const Batch& batch) {
  return batch.is_bounded() ? batch.capacity : int64_t{batch.bs} * batch.uniform_tokens;
}

/// Writes the schedule of a batch.
template <class Batch, class Splits>
void fill_schedule_on_cpu(const Batch& batch, const Splits& splits, const rules::ScheduleRule& rule,
                          const TableView<int32_t>& schedule) {
  const auto slots = static_cast<int32_t>(schedule.rows - 1);
  const auto store = [&](int32_t slot, const rules::ScheduleEntry& entry) {
    schedule.row(slot)[0] = entry.row;
    schedule.row(slot)[1] = entry.split;
  };
  int32_t total = 0, tokens = 0;
  for (int32_t b = 0; b < batch.bs; ++b) {
    const auto request = batch.read(b);
    const auto rows = rule.rows(splits, scheduled(batch, rule, request, tokens));
    total = rules::saturating_add(total, rule.work(splits, rows));
    tokens = rules::saturating_add(tokens, batch.tokens(request));
  }
  const rules::ScheduleEntry end{total == 0 ? 0 : rule.end(batch.bs, rules::saturated(token_rows(batch))), 0};
  const rules::SlotShares shares = rule.shares(total, slots, rules::Divisor(slots));

  int32_t b = -1, work_before = 0, work_end = 0, first_row = 0, tokens_before = 0;
  ScheduledRowsOf<Batch> rows{};
  for (int32_t slot = 0; slot < slots; ++slot) {
    const int32_t start = shares.start(slot);
    if (start >= total) {
      store(slot, end);
      continue;
    }
    while (work_end <= start) {
      const auto next = batch.read(++b);
      const auto next_scheduled = scheduled(batch, rule, next, tokens_before);
      rows = rule.rows(splits, next_scheduled);
      first_row = rule.first_row(b, tokens_before, rule.skipped(next_scheduled));
      tokens_before = rules::saturating_add(tokens_before, batch.tokens(next));
      work_before = work_end;
      work_end = rules::saturating_add(work_before, rule.work(splits, rows));
    }
    store(slot, rule.entry(splits, rows, first_row, start - work_before));
  }
  store(slots, end);
}

/// Writes the top-k plan of a batch, whose rows are its tokens: at most TopkPlanRule::kMaxRows.
template <class Batch>
void fill_topk_plan_on_cpu(const Batch& batch, const rules::TopkPlanRule& rule, const TableView<int32_t>& plan) {
  std::array<int32_t, rules::TopkPlanRule::kMaxRows> lengths{};
  const auto rows = static_cast<int32_t>(token_rows(batch));
  int32_t row = 0;
  for (int32_t b = 0; b < batch.bs && row < rows; ++b) {
    const auto request = batch.read(b);
    const int32_t first = batch.first_seqlen(request), tokens = batch.tokens(request);
    for (int32_t j = 0; j < tokens && row < rows; ++j) lengths[row++] = rules::expanded_seqlen(first, j);
  }
  const int32_t limit = rule.limit([&](int pair) {
    return static_cast<int32_t>(std::count_if(lengths.begin(), lengths.begin() + rows,
                                              [&](int32_t length) { return length > rule.length(pair); }));
  });
  int32_t count = 0;
  for (int32_t r = 0; r < rows; ++r) {
    if (lengths[r] <= limit) continue;
    ++count;
    plan.row(count)[0] = r;
    plan.row(count)[1] = lengths[r];
  }
  plan.row(0)[0] = limit;
  plan.row(0)[1] = count;
}

}  // namespace nsa_kernel
