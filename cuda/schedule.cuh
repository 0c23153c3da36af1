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
  int32_t end;               ///< what column 0 calls the row after the last
  unsigned topk_plan_begin;  ///< the first block of its role
  Pair* topk_plan;
  rules::TopkPlanRule topk_plan_rule;

  template <class Batch>
  __device__ int32_t work(const Batch& batch, const typename Batch::Request& request, int32_t tokens_before) const {
    return rule.work(splits, scheduled(batch, rule, request, tokens_before));
  }
  __device__ void store(int32_t slot, const rules::ScheduleEntry& entry) const {
    schedule[slot] = {entry.row, entry.split};
  }
  /// The end itself, or a slot that has no work before it.
  __device__ void store_end(int32_t slot, int32_t total) const { schedule[slot] = {total == 0 ? 0 : end, 0}; }
};

/// Kernels that write no schedule read nothing for it.
struct NoScheduleArguments {};

/// The schedule of a small batch, each request of which every warp sees in one of its lanes. Each thread has a slot.
template <class Args>
__device__ void fill_schedule_of_small_batch(const Args& args, unsigned block) {
  const auto& batch = args.batch;
  const auto& out = args.schedules;
  const int lane = threadIdx.x % kWarp;
  const bool mine = lane < batch.bs;
  typename Args::Request request{};
  if (mine) request = batch.read(lane);
  int32_t tokens_before = batch.uniform_tokens_before(lane);
  if (batch.ragged()) {
    const Sums<1> tokens_before_next = shuffle_up(warp_inclusive(Sums<1>{{mine ? batch.tokens(request) : 0}}), 1);
    tokens_before = lane > 0 ? tokens_before_next.value[0] : 0;
  }
  const rules::ScheduledRequest mine_scheduled = scheduled(batch, out.rule, request, tokens_before);
  const int32_t work = mine ? out.rule.work(out.splits, mine_scheduled) : 0;
  const int32_t work_end = warp_inclusive(Sums<1>{{work}}).value[0];
  const int32_t total = __shfl_sync(kAllLanes, work_end, kWarp - 1);

  const auto slot = static_cast<int32_t>(block * blockDim.x + threadIdx.x);
  const int32_t start = out.rule.shares(total, out.slots, out.slots_divisor).start(min(slot, out.slots));
  int b = 0;  // the first request whose work ends beyond the start
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) {
    if (__shfl_sync(kAllLanes, work_end, b + step - 1) <= start) b += step;
  }
  const rules::ScheduledRequest of{__shfl_sync(kAllLanes, mine_scheduled.seqlen, b),
                                   __shfl_sync(kAllLanes, mine_scheduled.tokens, b)};
  const int32_t tokens_before_of = __shfl_sync(kAllLanes, tokens_before, b);
  const int32_t work_before_next = __shfl_sync(kAllLanes, work_end, b - 1);
  if (slot > out.slots) return;
  if (slot == out.slots || start >= total) return out.store_end(slot, total);
  out.store(slot, out.rule.entry(out.splits, of, b, tokens_before_of, start - (b > 0 ? work_before_next : 0)));
}

/// The requests of a tile, by place.
template <int kTile, bool kMany>
struct ScheduleTile {
  typename CumulativeScan<kTile, kMany, 1>::Shared token_scan;
  typename CumulativeScan<kTile, kMany, 1>::Shared work_scan;
  rules::ScheduledRequest request[kTile];
  int32_t tokens_before[kTile];
  int32_t work_before[kTile];  ///< of all requests before it, not of the tile alone
  Sums<2> sums[kTile / kWarp];
};

/// The requests of a batch tile by tile: this thread's one of the tile, and what lies before it.
template <int kTile, class Args>
class ScheduleScan {
 public:
  static constexpr bool kMany = Args::Traits::kMany;

  __device__ ScheduleScan(const Args& args, ScheduleTile<kTile, kMany>& shared)
      : batch_(args.batch),
        out_(args.schedules),
        token_scan_(shared.token_scan),
        work_scan_(shared.work_scan),
        shared_(shared) {}

  /// Goes on to a tile, beyond tiles that may be skipped. Those are counted as if no output cut any token off: where
  /// one does, no later request has work.
  __device__ void enter(const Tile& tile) {
    const auto read = [&](int b) { return batch_.read(b); };
    Request request{};
    if (threadIdx.x < tile.requests) request = batch_.read(tile.begin + threadIdx.x);
    tokens_before_ = batch_.uniform_tokens_before(tile.begin + threadIdx.x);
    if (batch_.ragged()) {
      token_scan_.enter(tile, read, [&](const Request& of) { return Sums<1>{{batch_.tokens(of)}}; });
      const int32_t tokens = threadIdx.x < tile.requests ? batch_.tokens(request) : 0;
      const Scanned<1> scanned = token_scan_.exclusive({{tokens}});
      tokens_before_ = scanned.before.value[0];
      tokens_end_ = scanned.total.value[0];
    }
    work_scan_.enter(tile, read, [&](const Request& of) { return Sums<1>{{out_.work(batch_, of, 0)}}; });
    scheduled_ = scheduled(batch_, out_.rule, request, tokens_before_);
    const int32_t work = threadIdx.x < tile.requests ? out_.rule.work(out_.splits, scheduled_) : 0;
    const Scanned<1> scanned = work_scan_.exclusive({{work}});
    work_before_ = scanned.before.value[0];
    work_end_ = scanned.total.value[0];
  }

  /// Puts this thread's request where the block can read it.
  __device__ void share() const {
    shared_.request[threadIdx.x] = scheduled_;
    shared_.tokens_before[threadIdx.x] = tokens_before_;
    shared_.work_before[threadIdx.x] = work_before_;
    __syncthreads();
  }

  /// After the tile.
  __device__ int32_t tokens_end() const { return tokens_end_; }
  __device__ int32_t work_end() const { return work_end_; }

 private:
  using Request = typename Args::Request;

  const decltype(Args::batch)& batch_;
  const decltype(Args::schedules)& out_;
  CumulativeScan<kTile, kMany, 1> token_scan_, work_scan_;
  ScheduleTile<kTile, kMany>& shared_;
  rules::ScheduledRequest scheduled_{};
  int32_t tokens_before_ = 0, tokens_end_ = 0, work_before_ = 0, work_end_ = 0;
};

/// The work of all requests of many tiles.
template <int kTile, class Args>
__device__ int32_t total_work(const Args& args, ScheduleTile<kTile, true>& shared) {
  const auto& batch = args.batch;
  const auto read = [&](int b) { return batch.read(b); };
  const auto sums_of = [&](const typename Args::Request& request) {
    return Sums<2>{{batch.tokens(request), args.schedules.work(batch, request, 0)}};
  };
  const int whole = batch.bs / kTile * kTile, rest = whole + static_cast<int>(threadIdx.x);
  Sums<2> sums = sum_tiles<kTile>(0, whole, read, sums_of);
  if (rest < batch.bs) sums += sums_of(read(rest));
  sums = warp_sum(sums);
  const int lane = threadIdx.x % kWarp;
  if (lane == 0) shared.sums[threadIdx.x / kWarp] = sums;
  __syncthreads();
  sums = warp_sum(lane < kTile / kWarp ? shared.sums[lane] : Sums<2>{});
  if (!batch.ragged() || sums.value[0] <= batch.capacity) return sums.value[1];

  // The outputs cut tokens off: only a scan of each tile tells how many of which request.
  ScheduleScan<kTile, Args> scan(args, shared);
  for (int begin = 0; begin < batch.bs; begin += kTile) {
    scan.enter({begin, min(batch.bs - begin, kTile), false, false, 0, 1});
    if (scan.tokens_end() >= batch.capacity) break;
  }
  __syncthreads();
  return scan.work_end();
}

/// The schedule of any number of requests. Each tile has the slots that start in it.
template <int kTile, class Args>
__device__ void fill_schedule(const Args& args) {
  constexpr bool kMany = Args::Traits::kMany;
  const auto& out = args.schedules;
  __shared__ ScheduleTile<kTile, kMany> shared;
  int32_t total = 0;
  if constexpr (kMany) total = total_work<kTile>(args, shared);
  ScheduleScan<kTile, Args> scan(args, shared);
  for_each_tile<kTile, kMany>(args.batch.bs, 0, 1, [&](const Tile& tile) {
    scan.enter(tile);
    if constexpr (!kMany) total = scan.work_end();
    scan.share();
    const rules::SlotShares shares = out.rule.shares(total, out.slots, out.slots_divisor);
    for (auto slot = static_cast<int32_t>(threadIdx.x); slot <= out.slots; slot += kTile) {
      const int32_t start = slot < out.slots ? shares.start(slot) : total;
      if (start >= total) {
        if (tile.last) out.store_end(slot, total);
        continue;
      }
      if (kMany && (start < shared.work_before[0] || start >= scan.work_end())) continue;
      int place = 0;  // the last request with no more work before it than before the slot
#pragma unroll
      for (int step = kTile / 2; step > 0; step /= 2) {
        if (shared.work_before[place + step] <= start) place += step;
      }
      out.store(slot, out.rule.entry(out.splits, shared.request[place], tile.begin + place, shared.tokens_before[place],
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
  RowsAbove above;
  above.add(rule, mine.first, mine.rows);
  const int32_t limit = RowsAbove::limit(rule, warp_sum(above.counts));
  const int32_t count = rule.rows_above(limit, mine.first, mine.rows);
  const int32_t end = warp_inclusive(Sums<1>{{count}}).value[0];
  mine.store(args.schedules.topk_plan, rule, limit, end - count);
  if (lane == kWarp - 1) args.schedules.topk_plan[0] = {limit, end};
}

/// What the threads of a block tell each other of a top-k plan.
template <int kTile, bool kMany>
struct TopkPlanShared {
  typename CumulativeScan<kTile, kMany, 1>::Shared tokens[2];
  typename CumulativeScan<kTile, kMany, 1>::Shared counts;
  typename CumulativeScan<kTile, false, RowsAbove::kWords>::Shared above;
};

/// The top-k plan of any number of requests: one block, in each thread a request of a tile.
template <int kTile, class Args>
__device__ void fill_topk_plan(const Args& args) {
  constexpr bool kMany = Args::Traits::kMany;
  using Scan = CumulativeScan<kTile, kMany, 1>;
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
    const Scanned<1> scanned = tokens.exclusive({{mine.rows}});
    mine.at = scanned.before.value[0];
    mine.rows = batch.held_tokens(mine.at, mine.rows);
    is_last = is_last || scanned.total.value[0] >= batch.capacity;
    return mine;
  };
  const auto tile_from = [&](int begin) { return Tile{begin, min(batch.bs - begin, kTile), false, false, 0, 1}; };

  TopkPlanRows mine{};
  RowsAbove above;
  Scan tokens(shared.tokens[0]);
  bool is_last = false;
  for (int begin = 0; !is_last; begin += kTile) {
    mine = rows_of(tile_from(begin), tokens, is_last);
    above.add(rule, mine.first, mine.rows);
    if (!kMany) break;
  }
  CumulativeScan<kTile, false, RowsAbove::kWords> all(shared.above);
  const int32_t limit = RowsAbove::limit(rule, all.exclusive(above.counts).total);

  Scan tokens_again(shared.tokens[1]), counts(shared.counts);
  int32_t end = 0;
  is_last = false;
  for (int begin = 0; !is_last; begin += kTile) {
    const Tile tile = tile_from(begin);
    if (kMany) mine = rows_of(tile, tokens_again, is_last);
    counts.enter(tile, read, no_sums);
    const Scanned<1> scanned = counts.exclusive({{rule.rows_above(limit, mine.first, mine.rows)}});
    mine.store(args.schedules.topk_plan, rule, limit, scanned.before.value[0]);
    end = scanned.total.value[0];
    if (!kMany) break;
  }
  if (threadIdx.x == 0) args.schedules.topk_plan[0] = {limit, end};
}

}  // namespace nsa_kernel::cuda
