// The formulas of schedules and top-k plans, once, for the host and the device.
#pragma once

#include <cstdint>

#include "nsa_kernel/schedule.h"
#include "rules.h"

namespace nsa_kernel::rules {

/// Splits of rows whose length is a KV length.
class SeqlenSplits {
 public:
  using Length = int32_t;

  /// `split` is the number of KV entries in a split.
  constexpr explicit SeqlenSplits(int32_t split) : split_(static_cast<uint32_t>(split)), divisor_(split) {}

  /// Splits of a row of this length, which is not negative.
  constexpr int32_t of_row(int32_t length) const { return page_count(length, divisor_); }

  /// Of `most` rows whose lengths are `length`, `length + 1` and so on, how many have as many splits as the first,
  /// which has `splits`.
  constexpr int32_t run(int32_t length, int32_t splits, int32_t most) const {
    const uint32_t longest = static_cast<uint32_t>(splits) * split_;
    if (longest >= kMaxStored) return most;  // no row is longer
    const auto rows = static_cast<int32_t>(longest) - length + 1;
    return rows < most ? rows : most;
  }

 private:
  uint32_t split_;
  Divisor divisor_;
};

/// The same, where consumers read the part that a rank of decode context parallelism holds of each row, in compressed
/// states.
class FinalSplits {
 public:
  using Length = int64_t;

  constexpr FinalSplits(int32_t split, const ContextShard& shard, const WideDivisor& compress_ratio)
      : split_(split),
        divisor_(split),
        has_all_(shard.has_all() && compress_ratio.value() == 1),
        shard_(shard),
        compress_ratio_(compress_ratio) {}

  constexpr int32_t of_row(int64_t length) const {
    return page_count(has_all_ ? saturated(length) : part(length), divisor_);
  }

  constexpr int32_t run(int64_t length, int32_t splits, int32_t most) const {
    const int64_t states = int64_t{splits} * split_;
    if (states >= kMaxStored) return most;  // no row is longer
    return 1 + static_cast<int32_t>(has_all_ ? min(states - length, most - 1) : room(length, states, most - 1));
  }

 private:
  [[gnu::noinline]] constexpr int32_t part(int64_t length) const {
    return final_length(length, shard_, compress_ratio_);
  }
  [[gnu::noinline]] constexpr int64_t room(int64_t length, int64_t states, int32_t most) const {
    const int64_t ratio = compress_ratio_.value();
    return shard_.room(length, states * ratio + (ratio - 1), most);
  }

  int32_t split_;
  Divisor divisor_;
  bool has_all_;  ///< the rank holds each entry, as a state of its own
  ContextShard shard_;
  WideDivisor compress_ratio_;
};

/// What a schedule has to know of a request.
template <class Length>
struct ScheduledRequest {
  Length seqlen;   ///< KV length that its first token sees; where it has one row, the length of that
  int32_t tokens;  ///< those that the outputs hold
};

/// The rows of a request that have splits: by token one a token, from the first whose KV length is not below 0; by
/// request one, or as many equal ones as it has atoms. They fall into runs of equally many splits. Each run has a split
/// a row more than the one before, and all but the first and the last have as many rows as a split has KV entries.
template <class Length>
struct ScheduledRows {
  Length length;  ///< KV length of the first row
  int32_t rows;
  int32_t splits;  ///< of the first row
  int32_t run;     ///< rows of the first run
  int32_t split_work;
};

/// Where a slot starts: a row, by the number that column 0 has for it, and a split of it.
struct ScheduleEntry {
  int32_t row;
  int32_t split;
};

/// How the work of all rows is divided evenly among slots.
struct SlotShares {
  int32_t each;
  int32_t rest;    ///< slots that have one unit more
  int32_t longer;  ///< the first of these

  /// Work before a slot.
  constexpr int32_t start(int32_t slot) const {
    const int32_t after = slot > longer ? slot - longer : 0;
    return slot * each + (after < rest ? after : rest);
  }
};

/// A format, and the rows that it is for.
class ScheduleRule {
 public:
  /// `atoms` are the rows of each request, by request in format deepgemm_sm90.
  constexpr ScheduleRule(ScheduleFormat format, ScheduleRows rows, int64_t atoms)
      : by_request_(rows == ScheduleRows::request),
        is_sm90_(format == ScheduleFormat::deepgemm_sm90),
        split_(format == ScheduleFormat::deepgemm_sm100_384 ? 384 : 256),
        rows_of_request_(is_sm90_ ? saturated(atoms) : 1),
        quad_weight_(split_ == 384 ? 8 : 0) {}

  constexpr int32_t split() const { return split_; }
  constexpr bool by_request() const { return by_request_; }

  /// The tokens of a request that have no row: by token, the first, whose KV lengths are below 0.
  template <class Length>
  constexpr int32_t skipped(const ScheduledRequest<Length>& request) const {
    if (by_request_ || request.seqlen >= 0) return 0;
    return -request.seqlen < request.tokens ? static_cast<int32_t>(-request.seqlen) : request.tokens;
  }

  /// The rows of a request. `splits` counts as SeqlenSplits does.
  template <class Splits, class Length>
  constexpr ScheduledRows<Length> rows(const Splits& splits, const ScheduledRequest<Length>& request) const {
    const Length length = request.seqlen > 0 ? request.seqlen : 0;
    const int32_t rows = by_request_ ? rows_of_request_ : request.tokens - skipped(request);
    const int32_t of_row = splits.of_row(length);
    const int32_t run = by_request_ || rows <= 1 ? rows : splits.run(length, of_row, rows);
    return {length, rows, of_row, run, split_work(by_request_ ? request.tokens : 1)};
  }

  /// What column 0 calls the first of the rows of request b, after so many tokens.
  constexpr int32_t first_row(int32_t b, int32_t tokens_before, int32_t skipped) const {
    if (by_request_ && is_sm90_) return saturated(int64_t{rows_of_request_} * b);
    return saturating_add(tokens_before, skipped);
  }

  /// Work of all rows of a request, as it is stored.
  template <class Splits, class Length>
  constexpr int32_t work(const Splits& of_rows, const ScheduledRows<Length>& rows) const {
    const int32_t after_run = rows.rows - rows.run;
    const int32_t splits = has_more_runs(after_run) ? splits_of_many_runs(of_rows, rows)
                                                    : saturated(int64_t{rows.rows} * rows.splits + after_run);
    return saturated(int64_t{splits} * rows.split_work);
  }

  /// The start of a slot that has `offset` of the work of a request before it, less than all of it.
  template <class Splits, class Length>
  constexpr ScheduleEntry entry(const Splits& of_rows, const ScheduledRows<Length>& rows, int32_t first_row,
                                int32_t offset) const {
    const int32_t number = rows.split_work == 1 ? offset : quotient(offset, rows.split_work);
    if (rows.rows == 1) return {first_row, number};
    const SplitOfRun split = has_more_runs(rows.rows - rows.run) ? split_of_many_runs(of_rows, rows, number)
                                                                 : split_of_two_runs(rows, number);
    const int32_t row = quotient(split.number, split.splits);
    return {saturating_add(first_row, split.row + row), split.number - row * split.splits};
  }

  /// What column 0 calls the row after the last, of a batch of so many requests and tokens.
  constexpr int32_t end(int32_t bs, int32_t tokens) const {
    return by_request_ && is_sm90_ ? saturated(int64_t{rows_of_request_} * bs) : tokens;
  }

  /// `slots_divisor` divides by `slots`.
  constexpr SlotShares shares(int32_t total, int32_t slots, const Divisor& slots_divisor) const {
    const int32_t each = slots_divisor.quotient(total), rest = total - each * slots;
    return {each, rest, is_sm90_ ? slots - rest : 0};
  }

 private:
  /// A split of a run, by its number among those of the run.
  struct SplitOfRun {
    int32_t row;     ///< the first of the run
    int32_t splits;  ///< of each row of the run
    int32_t number;
  };

  /// Of numbers that are not negative. A divisor of 0, as of slots without work, is taken for 1.
  static constexpr int32_t quotient(int32_t dividend, int32_t divisor) {
    return static_cast<int32_t>(static_cast<uint32_t>(dividend) / static_cast<uint32_t>(divisor > 0 ? divisor : 1));
  }

  /// Whether so many rows after a run are more than one run.
  constexpr bool has_more_runs(int32_t rows) const { return rows > split_; }

  /// Goes on to the next run, or beyond the last.
  template <class Splits, class Length>
  static constexpr void skip_run(const Splits& of_rows, ScheduledRows<Length>& rows) {
    rows.length = expanded_seqlen(rows.length, rows.run);
    rows.rows -= rows.run;
    ++rows.splits;
    rows.run = of_rows.run(rows.length, rows.splits, rows.rows);
  }

  /// Splits of all rows, as they are stored.
  template <class Splits, class Length>
  [[gnu::noinline]] static constexpr int32_t splits_of_many_runs(const Splits& of_rows, ScheduledRows<Length> rows) {
    int32_t sum = 0;
    for (; rows.rows > 0; skip_run(of_rows, rows)) {
      sum = saturating_add(sum, saturated(int64_t{rows.run} * rows.splits));
    }
    return sum;
  }

  /// The split of this number of all.
  template <class Splits, class Length>
  [[gnu::noinline]] static constexpr SplitOfRun split_of_many_runs(const Splits& of_rows, ScheduledRows<Length> rows,
                                                                   int32_t number) {
    const int32_t all = rows.rows;
    for (; rows.run < rows.rows; skip_run(of_rows, rows)) {
      const int64_t beyond = number - int64_t{rows.run} * rows.splits;
      if (beyond < 0) break;
      number = static_cast<int32_t>(beyond);
    }
    return {all - rows.rows, rows.splits, number};
  }
  template <class Length>
  static constexpr SplitOfRun split_of_two_runs(const ScheduledRows<Length>& rows, int32_t number) {
    const int64_t beyond = number - int64_t{rows.run} * rows.splits;
    if (beyond < 0) return {0, rows.splits, number};
    return {rows.run, rows.splits + 1, static_cast<int32_t>(beyond)};
  }

  /// Work of a split of a row of so many tokens, as it is stored.
  constexpr int32_t split_work(int32_t tokens) const {
    if (is_sm90_) return 1;
    // More quads than these saturate anyway, and a sum with so many does not wrap.
    const auto count = static_cast<uint32_t>(tokens), quads = (count < 1u << 30 ? count + 3 : 1u << 30) / 4;
    return saturated(count + quad_weight_ * quads);
  }

  bool by_request_;
  bool is_sm90_;
  int32_t split_;
  int32_t rows_of_request_;  ///< by request
  uint32_t quad_weight_;     ///< of four tokens
};

/// Which rows SGLang's top-k gives to clusters: those longer than a limit, of which the table says how many there may
/// be.
class TopkPlanRule {
 public:
  static constexpr int32_t kMaxRows = 512;  ///< of a plan that is read
  static constexpr int kMaxPairs = 7;

  constexpr explicit TopkPlanRule(TopkPlanFormat format) {
    if (format == TopkPlanFormat::sglang_topk_v2_sm90) {
      add(65536, 30), add(98304, 45), add(131072, 60), add(196608, 80), add(262144, 112), add(393216, 128);
    } else {
      add(32768, 48), add(131072, 66), add(163840, 99), add(196608, 132), add(262144, 198), add(393216, 231);
      add(524288, 264);
    }
  }

  constexpr int pairs() const { return pairs_; }
  constexpr int32_t length(int pair) const { return lengths_[pair]; }

  /// Of `rows` rows whose lengths are those that consecutive tokens see, the first of them `first`, the rows longer
  /// than `length`: the last ones.
  static constexpr int32_t rows_above(int32_t length, int32_t first, int32_t rows) {
    const int64_t above = int64_t{first} + rows - 1 - length;
    return static_cast<int32_t>(above < 0 ? 0 : above < rows ? above : rows);
  }

  /// The limit where no row is longer than length(0).
  constexpr int32_t least_limit() const { return lengths_[0] > kLeastLimit ? lengths_[0] : kLeastLimit; }

  /// The limit, where `above(i)` rows are longer than length(i).
  template <class RowsAbove>
  constexpr int32_t limit(RowsAbove above) const {
    int32_t result = lengths_[pairs_ - 1];
    for (int i = pairs_ - 1; i >= 0 && above(i) <= most_[i]; --i) result = lengths_[i];
    return result > kLeastLimit ? result : kLeastLimit;
  }

 private:
  static constexpr int32_t kLeastLimit = 32768;

  constexpr void add(int32_t length, int32_t most) {
    lengths_[pairs_] = length;
    most_[pairs_++] = most;
  }

  int pairs_ = 0;
  int32_t lengths_[kMaxPairs]{};
  int32_t most_[kMaxPairs]{};
};

}  // namespace nsa_kernel::rules
