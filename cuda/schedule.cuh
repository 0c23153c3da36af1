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

  /// Has the lines that hold them fetched while the lengths of requests are on their way.
  __device__ void fetch() const {
#ifdef __CUDA_ARCH__
    asm volatile("" ::"r"(slots), "r"(end));
#endif
  }
  /// Of a request, if the outputs hold all of its tokens. It is called, since it is much code.
  template <class Batch>
  [[gnu::noinline]] __device__ int32_t whole_work(const Batch& batch, const typename Batch::Request& request) const {
    return rule.work(splits, rule.rows(splits, scheduled_whole(batch, rule, request)));
  }
  __device__ void store(int32_t slot, const rules::ScheduleEntry& entry) const {
    schedule[slot] = {entry.row, entry.split};
  }
  /// The end itself, or a slot that has no work before it.
  __device__ void store_end(int32_t slot, int32_t total) const { schedule[slot] = {total == 0 ? 0 : end, 0}; }
};

/// The same, and for a top-k plan.
template <class Splits>
struct TopkPlanArguments : ScheduleArguments<Splits> {
  unsigned topk_plan_begin;  ///< the first block of its role
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

/// The schedule of a small batch, each request of which every warp sees in one of its lanes. Each thread has a slot.
template <class Args>
__device__ void fill_schedule_of_small_batch(const Args& args, unsigned block) {
  using Schedule = ScheduleSums<Args>;
  const auto& batch = args.batch;
  const auto& out = args.schedules;
  const int lane = threadIdx.x % kWarp, last = max(batch.bs - 1, 0);
  const bool mine = lane < batch.bs;
  typename Args::Request request{};
  if (mine) request = batch.read(lane);
  out.fetch();

  const auto sums_before = [&](const typename Schedule::Type& end, int b) {
    const auto before = from_lane(end, max(b - 1, 0));
    return b > 0 ? before : typename Schedule::Type{};
  };
  auto scheduled_request = scheduled_whole(batch, out.rule, request);
  const int32_t tokens = mine ? scheduled_request.tokens : 0;
  ScheduledRowsOf<decltype(Args::batch)> rows;
  typename Schedule::Type end;
  for (bool is_cut = false;; is_cut = true) {
    rows = out.rule.rows(out.splits, scheduled_request);
    end = warp_inclusive(Schedule::of(mine ? out.rule.work(out.splits, rows) : 0, tokens), batch.bs);
    if (is_cut || !Schedule::are_cut(from_lane(end, last), batch)) break;
    scheduled_request = scheduled(batch, out.rule, request, Schedule::tokens(sums_before(end, lane), batch, lane));
  }
  const int32_t total = __shfl_sync(kAllLanes, Schedule::work(end), last);
  const int32_t work_end = mine ? Schedule::work(end) : total;

  const auto slot = static_cast<int32_t>(block * blockDim.x + threadIdx.x);
  const int32_t start = out.rule.shares(total, out.slots, out.slots_divisor).start(min(slot, out.slots));
  int b = 0;  // the first request whose work ends beyond the start
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) {
    if (step <= last && __shfl_sync(kAllLanes, work_end, b + step - 1) <= start) b += step;
  }
  const typename Schedule::Type before = sums_before(end, b);
  rows = from_lane(rows, b);
  if (slot > out.slots) return;
  if (slot == out.slots || start >= total) return out.store_end(slot, total);
  out.store(slot,
            out.rule.entry(out.splits, rows, b, Schedule::tokens(before, batch, b), start - Schedule::work(before)));
}

/// The requests of a tile, by place, and the sums before each: over all requests before it, not those of the tile
/// alone.
template <int kTile, class Args>
struct ScheduleTile {
  using Sums = typename ScheduleSums<Args>::Type;

  typename CumulativeScan<kTile, false, Sums>::Shared scan;
  Sums sums[kTile / kWarp];
  ScheduledRowsOf<decltype(Args::batch)> rows[kTile];
  int32_t tokens_before[kTile];
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
__device__ void share_tile(const Args& args, ScheduleTile<kTile, Args>& shared, int begin, int requests,
                           const typename ScheduleSums<Args>::Type& before, bool is_cut) {
  using Schedule = ScheduleSums<Args>;
  const auto& batch = args.batch;
  const auto& out = args.schedules;
  const int place = threadIdx.x, b = begin + place;
  const bool mine = place < requests;
  typename Args::Request request{};
  if (mine) request = batch.read(b);
  out.fetch();
  auto scheduled_request = scheduled_whole(batch, out.rule, request);
  const int32_t tokens = mine ? scheduled_request.tokens : 0;
  CumulativeScan<kTile, false, typename Schedule::Type> scan(shared.scan);
  ScheduledRowsOf<decltype(Args::batch)> rows;
  Scanned<typename Schedule::Type> scanned;
  for (bool again = false;; again = true) {
    rows = out.rule.rows(out.splits, scheduled_request);
    scanned = scan.exclusive(Schedule::of(mine ? out.rule.work(out.splits, rows) : 0, tokens));
    scanned.before += before;
    scanned.total += before;
    if constexpr (!Args::Traits::kMany) is_cut = Schedule::are_cut(scanned.total, batch);
    if (again || !is_cut) break;
    scheduled_request = scheduled(batch, out.rule, request, Schedule::tokens(scanned.before, batch, b));
    __syncthreads();
  }
  shared.rows[place] = rows;
  shared.tokens_before[place] = Schedule::tokens(scanned.before, batch, b);
  shared.work_before[place] = Schedule::work(scanned.before);
  if (place == 0) shared.end = scanned.total;
  __syncthreads();
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
    share_tile(args, shared, tile.begin, tile.requests, before, is_cut);
    const int32_t work_end = Schedule::work(shared.end);
    if constexpr (!kMany) total = work_end;
    const rules::SlotShares shares = out.rule.shares(total, out.slots, out.slots_divisor);
    for (auto slot = static_cast<int32_t>(threadIdx.x); slot <= out.slots; slot += kTile) {
      const int32_t start = slot < out.slots ? shares.start(slot) : total;
      if (start >= total) {
        if (tile.last) out.store_end(slot, total);
        continue;
      }
      if (kMany && (start < shared.work_before[0] || start >= work_end)) continue;
      int place = 0;  // the last request with no more work before it than before the slot
#pragma unroll
      for (int step = kTile / 2; step > 0; step /= 2) {
        if (step < tile.requests && shared.work_before[place + step] <= start) place += step;
      }
      out.store(slot, out.rule.entry(out.splits, shared.rows[place], tile.begin + place, shared.tokens_before[place],
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

/// The top-k plan of a small batch: one warp, in each lane a request.
template <class Args>
__device__ void fill_topk_plan_of_small_batch(const Args& args) {
  const auto& batch = args.batch;
  const rules::TopkPlanRule& rule = args.schedules.topk_plan_rule;
  const int lane = threadIdx.x % kWarp;
  if (threadIdx.x >= kWarp) return;
  TopkPlanRows mine{batch.uniform_tokens_before(lane), 0, 0};
  if (lane < batch.bs) {
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
    if (lane == 0) args.schedules.topk_plan[0] = {limit, 0};
    return;
  }
  const int32_t end = warp_inclusive(Sums<1>{{count}}).value[0];
  mine.store(args.schedules.topk_plan, rule, limit, end - count);
  if (lane == kWarp - 1) args.schedules.topk_plan[0] = {limit, end};
}

/// What the threads of a block tell each other of a top-k plan.
template <int kTile, bool kMany>
struct TopkPlanShared {
  typename CumulativeScan<kTile, kMany, Sums<1>>::Shared tokens[2];
  typename CumulativeScan<kTile, kMany, Sums<1>>::Shared counts;
  typename CumulativeScan<kTile, false, Sums<RowsAbove::kWords>>::Shared above;
};

/// The top-k plan of any number of requests: one block, in each thread a request of a tile.
template <int kTile, class Args>
__device__ void fill_topk_plan(const Args& args) {
  constexpr bool kMany = Args::Traits::kMany;
  using Scan = CumulativeScan<kTile, kMany, Sums<1>>;
  const auto& batch = args.batch;
  const rules::TopkPlanRule& rule = args.schedules.topk_plan_rule;
  __shared__ TopkPlanShared<kTile, kMany> shared;
  if (kMany && blockIdx.y > 0) return;

  const auto no_sums = [](const auto&) { return Sums<1>{}; };  // no tile is skipped
  const auto read = [&](int b) { return batch.read_tokens(b); };
  /// This thread's rows of a tile, and whether there is another.
  const auto rows_of = [&](const Tile& tile, Scan& tokens, bool& is_last) {
    TopkPlanRows mine{batch.uniform_tokens_before(tile.begin + threadIdx.x), 0, 0};
    if (threadIdx.x < tile.requests) {
      const auto request = batch.read(tile.begin + threadIdx.x);
      mine.first = batch.first_seqlen(request);
      mine.rows = batch.tokens(request);
    }
    is_last = tile.begin + kTile >= batch.bs;
    if (!batch.ragged()) return mine;
    tokens.enter(tile, read, no_sums);
    const Scanned<Sums<1>> scanned = tokens.exclusive({{mine.rows}});
    mine.at = scanned.before.value[0];
    mine.rows = batch.held_tokens(mine.at, mine.rows);
    is_last = is_last || scanned.total.value[0] >= batch.capacity;
    return mine;
  };
  const auto tile_from = [&](int begin) { return Tile{begin, min(batch.bs - begin, kTile), false, false, 0, 1}; };

  TopkPlanRows mine{};
  RowsAbove above;
  bool any = false;
  Scan tokens(shared.tokens[0]);
  bool is_last = false;
  for (int begin = 0; !is_last; begin += kTile) {
    mine = rows_of(tile_from(begin), tokens, is_last);
    if (mine.is_longer_than(rule.length(0))) {
      any = true;
      above.add(rule, mine.first, mine.rows);
    }
    if (!kMany) break;
  }
  if (!__syncthreads_or(any)) {
    if (threadIdx.x == 0) args.schedules.topk_plan[0] = {rule.least_limit(), 0};
    return;
  }
  CumulativeScan<kTile, false, Sums<RowsAbove::kWords>> all(shared.above);
  const int32_t limit = RowsAbove::limit(rule, all.exclusive(above.counts).total);

  Scan tokens_again(shared.tokens[1]), counts(shared.counts);
  int32_t end = 0;
  is_last = false;
  for (int begin = 0; !is_last; begin += kTile) {
    const Tile tile = tile_from(begin);
    if (kMany) mine = rows_of(tile, tokens_again, is_last);
    counts.enter(tile, read, no_sums);
    const Scanned<Sums<1>> scanned = counts.exclusive({{rule.rows_above(limit, mine.first, mine.rows)}});
    mine.store(args.schedules.topk_plan, rule, limit, scanned.before.value[0]);
    end = scanned.total.value[0];
    if (!kMany) break;
  }
  if (threadIdx.x == 0) args.schedules.topk_plan[0] = {limit, end};
}

}  // namespace nsa_kernel::cuda
