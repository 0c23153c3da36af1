// Schedules and top-k plans on the device, from the lengths that the kernel reads itself: no row is expanded, and no
// block waits for another.
//
// The work of a request is a formula of its lengths. A scan gives the work before each; slots, whose starts are evenly
// spaced, are the threads, and find their request by a binary search.
//
// `Args` below has what an op passes to its kernel: Traits, batch and schedules.
#pragma once

#include <cstdint>

#include "scan.cuh"
#include "schedule.h"

namespace nsa_kernel::cuda {

/// Two words that are stored at once.
struct alignas(8) Pair {
  int32_t first;
  int32_t second;
};

/// What kernels that write schedules read beside what the others do. `Splits` counts the splits of rows.
template <class Splits>
struct ScheduleArguments {
  Pair* schedule;
  int32_t slots;
  rules::Divisor slots_divisor;
  rules::ScheduleRule rule;
  Splits splits;
  int32_t end;  ///< what column 0 calls the row after the last

  template <class Batch>
  ScheduleArguments(const TableView<int32_t>& schedule, const rules::ScheduleRule& rule, const Splits& splits,
                    const Batch& batch)
      : schedule(reinterpret_cast<Pair*>(schedule.data)),
        slots(static_cast<int32_t>(rules::max(schedule.rows - 1, 1))),
        slots_divisor(slots),
        rule(rule),
        splits(splits),
        end(rule.end(batch.bs, rules::saturated(token_rows(batch)))) {}

  /// Of a request, if the outputs hold all of its tokens. It is called, since it is much code.
  template <class Batch>
  [[gnu::noinline]] __device__ int32_t whole_work(const Batch& batch, const typename Batch::Request& request) const {
    return rule.work(splits, rule.rows(splits, scheduled_whole(batch, rule, request)));
  }
  __device__ void store(int32_t slot, const rules::ScheduleEntry& entry) const {
    schedule[slot] = {entry.row, entry.split};
  }
  /// The last entry of a schedule, and that of a slot without work; `total` is the work of the batch.
  __device__ rules::ScheduleEntry end_of(int32_t total) const { return {total == 0 ? 0 : end, 0}; }
};

/// The same, and for a top-k plan.
template <class Splits>
struct TopkPlanArguments : ScheduleArguments<Splits> {
  Pair* topk_plan;
  rules::TopkPlanRule topk_plan_rule;
};

/// The sums of a request that a schedule takes: of uniform tokens the work alone.
template <class Args>
struct ScheduleSums {
  static constexpr bool kCounts = Args::Traits::kCounts != TokenCounts::uniform;
  static constexpr int kSize = kCounts ? 2 : 1;
  using Type = Sums<kSize>;

  __device__ static Type of(int32_t work, int32_t tokens) {
    Type sums;
    sums.value[0] = work;
    if constexpr (kCounts) sums.value[1] = tokens;
    return sums;
  }
  __device__ static int32_t work(const Type& sums) { return sums.value[0]; }
  /// Tokens of the first b requests, where `sums` are theirs.
  template <class Batch>
  __device__ static int32_t tokens(const Type& sums, const Batch& batch, int b) {
    if constexpr (kCounts) {
      if (batch.ragged()) return sums.value[1];
    }
    return batch.uniform_tokens_before(b);
  }
  /// Whether the outputs of the batch, of which these are all sums, do not hold all of its tokens.
  template <class Batch>
  __device__ static bool are_cut(const Type& sums, const Batch& batch) {
    if constexpr (!kCounts) return false;
    return batch.is_bounded() && tokens(sums, batch, batch.bs) > batch.capacity;
  }
};

/// Blocks of so many threads for the schedule of a small batch, see there.
inline int64_t small_batch_schedule_blocks(int64_t entries, int64_t threads) {
  return rules::ceil_div(entries, threads - kWarp);
}

/// The schedule of a small batch, each request of which every warp sees in one of its lanes. Each thread has an entry,
/// but for those of a block's last warp: it reads no lengths and stores nothing, so that it has the instructions
/// fetched while the others wait for theirs.
template <class Args>
__device__ void fill_schedule_of_small_batch(const Args& args, unsigned block) {
  using Schedule = ScheduleSums<Args>;
  const auto& batch = args.batch;
  const auto& out = args.schedules;
  const int lane = threadIdx.x % kWarp, last = max(batch.bs - 1, 0), entries = static_cast<int>(blockDim.x - kWarp);
  const bool mine = lane < batch.bs, runs_ahead = static_cast<int>(threadIdx.x) >= entries;
  const auto read = [&] { return mine ? batch.read(lane) : typename Args::Request{}; };
  typename Args::Request request{};
  request.seq_len.low = 1u << 16;  // a length that takes the common path
  if (!runs_ahead) request = read();

  const auto sums_before = [&](const typename Schedule::Type& end) {
    const auto before = shuffle_up(end, 1);
    return lane > 0 ? before : typename Schedule::Type{};
  };
  auto scheduled_request = scheduled_whole(batch, out.rule, request);
  const int32_t tokens = mine ? scheduled_request.tokens : 0;
  ScheduledRowsOf<decltype(Args::batch)> rows;
  int32_t skipped;
  typename Schedule::Type end, all;
#pragma unroll 1
  for (bool is_cut = false;; is_cut = true) {
    rows = out.rule.rows(out.splits, scheduled_request);
    skipped = out.rule.skipped(scheduled_request);
    const auto sums = Schedule::of(mine ? out.rule.work(out.splits, rows) : 0, tokens);
    end = warp_inclusive(sums, batch.bs);
    if constexpr (Schedule::kCounts) {
      all = from_lane(end, last);
    } else {
      all = warp_sum(sums);  // does not wait for the scan
    }
    if (is_cut || !Schedule::are_cut(all, batch)) break;
    // Few batches are cut: reading again costs less than keeping the request in registers.
    scheduled_request = scheduled(batch, out.rule, read(), Schedule::tokens(sums_before(end), batch, lane));
  }
  const int32_t total = Schedule::work(all);
  const typename Schedule::Type before = sums_before(end);
  const int32_t work_before = Schedule::work(before);
  const int32_t first_row = out.rule.first_row(lane, Schedule::tokens(before, batch, lane), skipped);

  const int slot = static_cast<int>(block) * entries + static_cast<int>(threadIdx.x);
  const int32_t start = out.rule.shares(total, out.slots, out.slots_divisor).start(min(slot, out.slots));
  // The first request whose work ends beyond the start.
  const int b = min(lanes_at_most(start, mine ? Schedule::work(end) : total), last);
  const rules::ScheduleEntry entry =
      out.rule.entry(out.splits, from_lane(rows, b), from_lane(first_row, b), start - from_lane(work_before, b));
  if (runs_ahead || slot > out.slots) return;
  if (slot == out.slots || start >= total) return out.store(slot, out.end_of(total));
  out.store(slot, entry);
}

/// The requests of a tile, by place, and the sums before each: over all requests before it, not those of the tile
/// alone.
template <int kTile, class Args>
struct ScheduleTile {
  using Sums = typename ScheduleSums<Args>::Type;

  typename CumulativeScan<kTile, false, Sums>::Shared scan;
  Sums sums[kTile / kWarp];
  ScheduledRowsOf<decltype(Args::batch)> rows[kTile];
  int32_t first_row[kTile];
  int32_t work_before[kTile];
  Sums end;  ///< after the tile
};

/// The sums of requests begin .. end-1, the first of them that of a tile, as if the outputs held all tokens.
template <int kTile, class Args>
[[gnu::noinline]] __device__ auto whole_sums(const Args& args, ScheduleTile<kTile, Args>& shared, int begin, int end) {
  using Schedule = ScheduleSums<Args>;
  const auto& batch = args.batch;
  const auto read = [&](int b) { return batch.read(b); };
  const auto sums_of = [&](const typename Args::Request& request) {
    return Schedule::of(args.schedules.whole_work(batch, request), batch.tokens(request));
  };
  const int whole_tiles = begin + (end - begin) / kTile * kTile, rest = whole_tiles + static_cast<int>(threadIdx.x);
  typename Schedule::Type sums = sum_tiles<kTile>(begin, whole_tiles, read, sums_of);
  if (rest < end) sums += sums_of(read(rest));
  sums = warp_sum(sums);
  const int lane = threadIdx.x % kWarp;
  __syncthreads();  // of the sums before, all are read
  if (lane == 0) shared.sums[threadIdx.x / kWarp] = sums;
  __syncthreads();
  return warp_sum(lane < kTile / kWarp ? shared.sums[lane] : typename Schedule::Type{});
}

/// Shares a tile, beyond requests of such sums. Where the outputs do not hold all tokens of the batch, `is_cut`; of a
/// batch of one tile, that is found here.
template <int kTile, class Args>
__device__ void share_only_tile(const Args& args, ScheduleTile<kTile, Args>& shared, int begin, int requests,
                                const typename ScheduleSums<Args>::Type& before, bool is_cut) {
  using Schedule = ScheduleSums<Args>;
  const auto& batch = args.batch;
  const auto& out = args.schedules;
  const int place = threadIdx.x, b = begin + place;
  const bool mine = place < requests;
  const auto read = [&] { return mine ? batch.read(b) : typename Args::Request{}; };
  auto scheduled_request = scheduled_whole(batch, out.rule, read());
  const int32_t tokens = mine ? scheduled_request.tokens : 0;
  CumulativeScan<kTile, false, typename Schedule::Type> scan(shared.scan);
  ScheduledRowsOf<decltype(Args::batch)> rows;
  int32_t skipped;
  Scanned<typename Schedule::Type> scanned;
  for (bool again = false;; again = true) {
    rows = out.rule.rows(out.splits, scheduled_request);
    skipped = out.rule.skipped(scheduled_request);
    scanned = scan.exclusive(Schedule::of(mine ? out.rule.work(out.splits, rows) : 0, tokens));
    scanned.before += before;
    scanned.total += before;
    if constexpr (!Args::Traits::kMany) is_cut = Schedule::are_cut(scanned.total, batch);
    if (again || !is_cut) break;
    scheduled_request = scheduled(batch, out.rule, read(), Schedule::tokens(scanned.before, batch, b));
    __syncthreads();
  }
  shared.rows[place] = rows;
  shared.first_row[place] = out.rule.first_row(b, Schedule::tokens(scanned.before, batch, b), skipped);
  shared.work_before[place] = Schedule::work(scanned.before);
  if (place == 0) shared.end = scanned.total;
  __syncthreads();
}

/// The same for one of many tiles, from several places.
template <int kTile, class Args>
[[gnu::noinline]] __device__ void share_tile(const Args& args, ScheduleTile<kTile, Args>& shared, int begin,
                                             int requests, const typename ScheduleSums<Args>::Type& before,
                                             bool is_cut) {
  share_only_tile(args, shared, begin, requests, before, is_cut);
}

/// The work of all requests, where the outputs do not hold all of their tokens: only a scan of each tile tells how many
/// of which.
template <int kTile, class Args>
__device__ int32_t cut_work(const Args& args, ScheduleTile<kTile, Args>& shared) {
  using Schedule = ScheduleSums<Args>;
  typename Schedule::Type end{};
  for (int begin = 0; begin < args.batch.bs; begin += kTile) {
    const int requests = min(args.batch.bs - begin, kTile);
    share_tile(args, shared, begin, requests, end, true);
    end = shared.end;
    __syncthreads();
    if (Schedule::tokens(end, args.batch, begin + requests) >= args.batch.capacity) break;
  }
  return Schedule::work(end);
}

/// The schedule of any number of requests. Each tile has the slots that start in it.
template <int kTile, class Args>
__device__ void fill_schedule(const Args& args) {
  constexpr bool kMany = Args::Traits::kMany;
  using Schedule = ScheduleSums<Args>;
  const auto& out = args.schedules;
  __shared__ ScheduleTile<kTile, Args> shared;
  int32_t total = 0;
  bool is_cut = false;
  if constexpr (kMany) {
    const auto sums = whole_sums<kTile>(args, shared, 0, args.batch.bs);
    is_cut = Schedule::are_cut(sums, args.batch);
    total = is_cut ? cut_work(args, shared) : Schedule::work(sums);
  }
  typename Schedule::Type before{};  // of the requests that were summed
  int summed = 0;
  for_each_tile<kTile, kMany>(args.batch.bs, 0, 1, [&](const Tile& tile) {
    if constexpr (kMany) {  // earlier requests count whole: where one is cut, no later one has work
      before += whole_sums<kTile>(args, shared, summed, tile.begin);
      summed = tile.begin;
    }
    if constexpr (kMany) {
      share_tile(args, shared, tile.begin, tile.requests, before, is_cut);
    } else {
      share_only_tile(args, shared, tile.begin, tile.requests, before, is_cut);
    }
    const int32_t work_end = Schedule::work(shared.end);
    if constexpr (!kMany) total = work_end;
    const rules::SlotShares shares = out.rule.shares(total, out.slots, out.slots_divisor);
    const rules::ScheduleEntry end = out.end_of(total);
#pragma unroll 1
    for (auto slot = static_cast<int32_t>(threadIdx.x); slot <= out.slots; slot += kTile) {
      const int32_t start = slot < out.slots ? shares.start(slot) : total;
      if (start >= total) {
        if (tile.last) out.store(slot, end);
        continue;
      }
      if (kMany && (start < shared.work_before[0] || start >= work_end)) continue;
      int place = 0;  // the last request with no more work before it than before the slot
#pragma unroll
      for (int step = kTile / 2; step > 0; step /= 2) {
        if (step < tile.requests && shared.work_before[place + step] <= start) place += step;
      }
      out.store(slot, out.rule.entry(out.splits, shared.rows[place], shared.first_row[place],
                                     start - shared.work_before[place]));
    }
    if constexpr (kMany) __syncthreads();
  });
}

/// How many rows of a request are longer than each length of a table: three counts of ten bits a word, since there are
/// at most kMaxRows of them.
struct RowsAbove {
  static constexpr int kWords = 3, kOfWord = 3, kBits = 10;
  static_assert(kWords * kOfWord >= rules::TopkPlanRule::kMaxPairs && rules::TopkPlanRule::kMaxRows < 1 << kBits);

  Sums<kWords> counts{};

  __device__ void add(const rules::TopkPlanRule& rule, int32_t first, int32_t rows) {
#pragma unroll
    for (int pair = 0; pair < rules::TopkPlanRule::kMaxPairs; ++pair) {
      if (pair >= rule.pairs()) break;
      counts.value[pair / kOfWord] += rule.rows_above(rule.length(pair), first, rows) << pair % kOfWord * kBits;
    }
  }
  /// The limit that the counts of all rows come to.
  __device__ static int32_t limit(const rules::TopkPlanRule& rule, const Sums<kWords>& total) {
    return rule.limit([&](int pair) {
      const int word = pair / kOfWord;
      const int32_t counts = word == 0 ? total.value[0] : word == 1 ? total.value[1] : total.value[2];
      return counts >> pair % kOfWord * kBits & ((1 << kBits) - 1);
    });
  }
};

/// The rows of a request in a top-k plan.
struct TopkPlanRows {
  int32_t at;     ///< of the first
  int32_t first;  ///< its length
  int32_t rows;

  __device__ bool is_longer_than(int32_t length) const {
    return rules::TopkPlanRule::rows_above(length, first, rows) > 0;
  }

  /// Writes those longer than the limit, from `entry` on.
  __device__ void store(Pair* plan, const rules::TopkPlanRule& rule, int32_t limit, int32_t entry) const {
#pragma unroll 1
    for (int32_t j = rows - rule.rows_above(limit, first, rows); j < rows; ++j) {
      plan[++entry] = {at + j, rules::expanded_seqlen(first, j)};
    }
  }
};

/// The top-k plan of a small batch: one warp, in each lane a request. A second one runs ahead of it, as one does for
/// the schedule.
template <class Args>
__device__ void fill_topk_plan_of_small_batch(const Args& args) {
  const auto& batch = args.batch;
  const rules::TopkPlanRule& rule = args.schedules.topk_plan_rule;
  const int lane = threadIdx.x % kWarp;
  const bool runs_ahead = threadIdx.x >= kWarp;
  if (threadIdx.x >= 2 * kWarp) return;
  TopkPlanRows mine{batch.uniform_tokens_before(lane), 0, 0};
  if (runs_ahead) {
    mine = {0, static_cast<int32_t>(rules::kMaxStored), 1};
  } else if (lane < batch.bs) {
    const auto request = batch.read(lane);
    mine.first = batch.first_seqlen(request);
    mine.rows = batch.tokens(request);
  }
  if (batch.ragged()) {
    const Sums<1> through = shuffle_up(warp_inclusive(Sums<1>{{mine.rows}}), 1);
    mine.at = lane > 0 ? through.value[0] : 0;
    mine.rows = batch.held_tokens(mine.at, mine.rows);
  }
  int32_t limit = rule.least_limit();
  if (__any_sync(kAllLanes, mine.is_longer_than(rule.length(0)))) {
    RowsAbove above;
    above.add(rule, mine.first, mine.rows);
    limit = RowsAbove::limit(rule, warp_sum(above.counts));
  }
  const int32_t count = rule.rows_above(limit, mine.first, mine.rows);
  if (!__any_sync(kAllLanes, count > 0)) {
    if (lane == 0 && !runs_ahead) args.schedules.topk_plan[0] = {limit, 0};
    return;
  }
  const int32_t end = warp_inclusive(Sums<1>{{count}}).value[0];
  if (runs_ahead) return;
  mine.store(args.schedules.topk_plan, rule, limit, end - count);
  if (lane == kWarp - 1) args.schedules.topk_plan[0] = {limit, end};
}

/// The top-k plan of any number of requests, of which few have rows: one block, in each thread a row.
template <int kTile, class Args>
__device__ void fill_topk_plan(const Args& args) {
  static_assert(kTile >= rules::TopkPlanRule::kMaxRows);
  constexpr bool kMany = Args::Traits::kMany;
  using Scan = CumulativeScan<kTile, false, Sums<1>>;
  const auto& batch = args.batch;
  const rules::TopkPlanRule& rule = args.schedules.topk_plan_rule;
  __shared__ int32_t lengths[kTile];
  __shared__ typename Scan::Shared scan[2];
  if (kMany && blockIdx.y > 0) return;

  const int place = threadIdx.x;
  lengths[place] = 0;
  __syncthreads();
  int32_t before = 0;  // tokens of earlier tiles
  for (int begin = 0; begin < batch.bs && (!batch.is_bounded() || before < batch.capacity); begin += kTile) {
    const int b = begin + place;
    int32_t at = batch.uniform_tokens_before(b), first = 0, rows = 0;
    if (b < batch.bs) {
      const auto request = batch.read(b);
      first = batch.first_seqlen(request);
      rows = batch.tokens(request);
    }
    if (batch.is_bounded()) {
      const Scanned<Sums<1>> scanned = Scan(scan[0]).exclusive({{rows}});
      at = rules::saturating_add(before, scanned.before.value[0]);
      rows = batch.held_tokens(at, rows);
      before = rules::saturating_add(before, scanned.total.value[0]);
    }
#pragma unroll 1
    for (int32_t j = 0; j < rows; ++j) lengths[at + j] = rules::expanded_seqlen(first, j);
    __syncthreads();
    if (!kMany) break;
  }

  const int32_t length = lengths[place];
  const int32_t limit = __syncthreads_or(length > rule.length(0))
                            ? rule.limit([&](int pair) { return __syncthreads_count(length > rule.length(pair)); })
                            : rule.least_limit();
  const int32_t stored = length > limit;
  const Scanned<Sums<1>> entries = Scan(scan[1]).exclusive({{stored}});
  if (stored) args.schedules.topk_plan[1 + entries.before.value[0]] = {place, length};
  if (place == 0) args.schedules.topk_plan[0] = {limit, entries.total.value[0]};
}

}  // namespace nsa_kernel::cuda
