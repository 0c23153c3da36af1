// The formulas of schedules and top-k plans, once, for the host and the device.
#pragma once

#include <cstdint>

#include "nsa_kernel/schedule.h"
#include "rules.h"

namespace nsa_kernel::rules {

/// Splits of the rows of consecutive tokens, whose length is the KV length that the token sees.
class SeqlenSplits {
 public:
  /// `split` is the number of KV entries in a split.
  constexpr explicit SeqlenSplits(int32_t split) : split_(split), divisor_(split) {}

  /// Splits of a row of this length, which is not negative.
  constexpr int32_t of_row(int32_t length) const { return page_count(length, divisor_); }

  /// Splits of the rows of the first `tokens` tokens of a request, of which the first sees `first`.
  constexpr int64_t of_tokens(int32_t first, int32_t tokens) const {
    const int64_t last = int64_t{first} + tokens - 1;
    if (tokens <= 0 || last < 1) return 0;
    const int64_t beyond = max(last - kMaxStored, 0);  // tokens whose length saturates
    const int32_t before = first > 1 ? first - 1 : 0;
    return up_to(saturated(last)) - up_to(before) + beyond * of_row(static_cast<int32_t>(kMaxStored));
  }

  /// Splits of the row of token j.
  constexpr int32_t of_token(int32_t first, int32_t j) const { return of_row(expanded_seqlen(first, j)); }

 private:
  /// Splits of rows of the lengths 1 .. length.
  constexpr int64_t up_to(int32_t length) const {
    const int32_t full = divisor_.quotient(length);
    const int64_t rest = length - full * split_;
    return int64_t{full} * (full + 1) / 2 * split_ + rest * (full + 1);
  }

  int32_t split_;
  Divisor divisor_;
};

/// What a schedule has to know of a request.
struct ScheduledRequest {
  int32_t first;   ///< KV length that its first token sees
  int32_t tokens;  ///< those that the outputs hold
  int32_t kv;      ///< its KV entries: the length of its row, where it has one
};

/// Where a slot starts: a row, by the number that column 0 has for it, and a split of it.
struct ScheduleEntry {
  int32_t row;
  int32_t split;
};

/// How the work of all rows is divided evenly among slots.
struct SlotShares {
  int32_t total;
  int32_t slots;
  int32_t each;
  int32_t rest;  ///< slots that have one unit more
  bool rest_is_last;

  /// Work before a slot.
  constexpr int32_t start(int32_t slot) const {
    const int32_t even = slots - rest;
    const int32_t extra = rest_is_last ? (slot > even ? slot - even : 0) : (slot < rest ? slot : rest);
    return slot * each + extra;
  }
};

/// A format, and the rows that it is for.
class ScheduleRule {
 public:
  /// `atoms` is the work of a split of deepgemm_sm90.
  constexpr ScheduleRule(ScheduleFormat format, ScheduleRows rows, int64_t atoms)
      : format_(format), by_request_(rows == ScheduleRows::request), atoms_(by_request_ ? saturated(atoms) : 1) {}

  constexpr int32_t split() const { return format_ == ScheduleFormat::deepgemm_sm100_384 ? 384 : 256; }
  constexpr bool by_request() const { return by_request_; }

  /// Work of all rows of a request, as it is stored. `splits` counts as SeqlenSplits does.
  template <class Splits>
  constexpr int32_t work(const Splits& splits, const ScheduledRequest& request) const {
    if (by_request_) return saturated(int64_t{splits.of_row(request.kv)} * split_work(request.tokens));
    return saturated(splits.of_tokens(request.first, request.tokens) * split_work(1));
  }

  /// The start of a slot that has `offset` of the work of request b before it, less than all of it. `tokens_before` are
  /// the tokens of earlier requests.
  template <class Splits>
  constexpr ScheduleEntry entry(const Splits& splits, const ScheduledRequest& request, int32_t b, int32_t tokens_before,
                                int32_t offset) const {
    if (!by_request_) {
      const int32_t work = split_work(1);
      const int32_t token = token_at(splits, request, offset / work);
      const int64_t before = splits.of_tokens(request.first, token) * work;
      return {saturating_add(tokens_before, token), (offset - static_cast<int32_t>(before)) / work};
    }
    if (format_ != ScheduleFormat::deepgemm_sm90) return {tokens_before, offset / split_work(request.tokens)};
    const int32_t count = splits.of_row(request.kv);
    return {saturated(int64_t{atoms_} * b + offset / count), offset % count};
  }

  /// What column 0 calls the row after the last, of a batch of so many requests and tokens.
  constexpr int32_t end(int32_t bs, int32_t tokens) const {
    const bool counts_atoms = by_request_ && format_ == ScheduleFormat::deepgemm_sm90;
    return counts_atoms ? saturated(int64_t{atoms_} * bs) : tokens;
  }

  /// `slots_divisor` divides by `slots`.
  constexpr SlotShares shares(int32_t total, int32_t slots, const Divisor& slots_divisor) const {
    const int32_t each = slots_divisor.quotient(total);
    return {total, slots, each, total - each * slots, format_ == ScheduleFormat::deepgemm_sm90};
  }

 private:
  /// Work of one split of a row of so many tokens, as it is stored.
  constexpr int32_t split_work(int32_t tokens) const {
    if (format_ == ScheduleFormat::deepgemm_sm90) return atoms_;
    if (format_ == ScheduleFormat::deepgemm_sm100_256) return tokens;
    return saturated(8 * ceil_div(tokens, 4) + tokens);
  }

  /// The token of a request whose row holds the split of this number.
  template <class Splits>
  constexpr int32_t token_at(const Splits& splits, const ScheduledRequest& request, int32_t number) const {
    int32_t low = 0, high = request.tokens - 1;
    while (low < high) {
      const int32_t middle = low + (high - low) / 2;
      if (splits.of_tokens(request.first, middle + 1) > number) {
        high = middle;
      } else {
        low = middle + 1;
      }
    }
    return low;
  }

  ScheduleFormat format_;
  bool by_request_;
  int32_t atoms_;
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

  /// The limit, where `rows_above(i)` rows are longer than length(i).
  template <class RowsAbove>
  constexpr int32_t limit(RowsAbove rows_above) const {
    int32_t result = lengths_[pairs_ - 1];
    for (int i = pairs_ - 1; i >= 0 && rows_above(i) <= most_[i]; --i) result = lengths_[i];
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
