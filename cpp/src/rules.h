// Every output formula, once, for the host and the device. Arithmetic on values only.
#pragma once

#include <cstdint>

namespace nsa_kernel::rules {

constexpr int64_t kMaxStored = 2147483647;

constexpr int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }
constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/// A value as it is stored.
constexpr int32_t saturated(int64_t value) { return static_cast<int32_t>(min(value, kMaxStored)); }

/// a + b as it is stored; neither is negative. Associative, so it scans.
constexpr int32_t saturating_add(int32_t a, int32_t b) {
  const uint32_t sum = static_cast<uint32_t>(a) + static_cast<uint32_t>(b);
  return static_cast<int32_t>(sum < kMaxStored ? sum : kMaxStored);
}

/// A length as it is read: a negative one counts as 0.
constexpr int64_t length(int64_t value) { return max(value, 0); }

/// The same, where 2**32 - 1 stands for all that is longer: a few more or less make no difference as it is stored.
constexpr uint32_t length32(int64_t value) { return static_cast<uint32_t>(min(length(value), 4294967295)); }

/// A length and a few entries more or, below 0, less, as it is stored.
constexpr int32_t saturating_offset(uint32_t length, int32_t more) {
  const uint32_t most = static_cast<uint32_t>(kMaxStored - more);
  return static_cast<int32_t>((length < most ? length : most) + static_cast<uint32_t>(more));
}

/// KV entries of a request: those that `seq_lens` counts, and those of tokens that it does not count yet.
constexpr int32_t kv_length(uint32_t seq_len, int32_t pending_tokens) {
  return saturating_offset(seq_len, pending_tokens);
}

/// KV length that the first of q tokens sees, before it is bounded below: negative in a padded row.
constexpr int32_t first_seqlen(int64_t seq_len, int32_t pending_tokens, int64_t q) {
  return saturated(max(min(seq_len - q, kMaxStored) + pending_tokens + 1, -kMaxStored));
}

/// The same where q is a number of the host.
constexpr int32_t first_seqlen_of_uniform(uint32_t seq_len, int32_t pending_tokens, int32_t q) {
  return saturating_offset(seq_len, pending_tokens + 1 - q);
}

/// KV length that token `j` sees.
constexpr int32_t expanded_seqlen(int32_t first, int32_t j) {
  if (first >= 0) return saturating_add(first, j);
  return first + j > 0 ? first + j : 0;
}

/// That length as sparse attention reads it.
constexpr int32_t clipped_seqlen(int32_t seqlen, int32_t topk) { return seqlen < topk ? seqlen : topk; }

/// Sum of min(i, topk) over 0 <= i < x.
constexpr uint64_t clipped_sum_below(uint32_t x, uint32_t topk) {
  const uint32_t ramp = x < topk ? x : topk;
  return uint64_t{ramp} * (ramp - 1) / 2 + uint64_t{x - ramp} * topk;
}

/// Sum of the clipped lengths of tokens 0 .. tokens-1 as it is stored: zeros, then a ramp up to topk, then a plateau.
constexpr int32_t clipped_sum(int32_t first, int32_t tokens, int32_t topk) {
  const int32_t skipped = first < 0 ? -first : 0;
  if (tokens <= skipped) return 0;
  const uint32_t begin = static_cast<uint32_t>(first + skipped);
  const uint32_t end = begin + static_cast<uint32_t>(tokens - skipped);
  const uint64_t sum = clipped_sum_below(end, topk) - clipped_sum_below(begin, topk);
  return static_cast<int32_t>(sum < kMaxStored ? sum : kMaxStored);
}

/// Division by a number that is known long before the dividend: a multiplication and a shift.
class Divisor {
 public:
  /// `value` is from 1 to 2**31 - 1.
  constexpr explicit Divisor(int64_t value) {
    while ((int64_t{1} << (shift_ - 31)) < value) ++shift_;
    // For a dividend below 2**31, the rounded-up factor is off by too little to matter.
    factor_ = static_cast<uint32_t>(((uint64_t{1} << shift_) + static_cast<uint64_t>(value) - 1) /
                                    static_cast<uint64_t>(value));
  }

  /// Rounded down; the dividend is not negative.
  constexpr int32_t quotient(int32_t dividend) const {
    return static_cast<int32_t>((uint64_t{static_cast<uint32_t>(dividend)} * factor_) >> shift_);
  }

 private:
  uint32_t factor_ = 0;
  int shift_ = 31;
};

/// The same of 64-bit numbers.
class WideDivisor {
 public:
  /// `value` is from 1 to 2**31 - 1.
  constexpr explicit WideDivisor(int64_t value) : value_(static_cast<int32_t>(value)) {
    while ((int64_t{1} << shift_) < value) ++shift_;
    factor_ = static_cast<uint64_t>(((Wide{1} << (shift_ + 63)) + static_cast<uint64_t>(value) - 1) /
                                    static_cast<uint64_t>(value));
  }

  constexpr int32_t value() const { return value_; }

  /// Rounded down; the dividend is not negative.
  constexpr int64_t quotient(int64_t dividend) const {
    if (value_ == 1) return dividend;
    return static_cast<int64_t>(static_cast<uint64_t>((Wide{static_cast<uint64_t>(dividend) * 2} * factor_) >> 64) >>
                                shift_);
  }

 private:
  using Wide = unsigned __int128;

  uint64_t factor_ = 0;
  int shift_ = 0;
  int32_t value_;
};

/// KV length that the first of q tokens sees, before it saturates; of a padded row, -2**62 stands for all below.
constexpr int64_t wide_first_seqlen(int64_t seq_len, uint64_t q) {
  const uint64_t k = static_cast<uint64_t>(seq_len);
  constexpr int64_t kLeast = -(int64_t{1} << 62);
  if (q > k) return q - k <= static_cast<uint64_t>(-kLeast) ? 1 - static_cast<int64_t>(q - k) : kLeast;
  return static_cast<int64_t>(q > 0 ? k - q + 1 : k);  // of no token, none sees more than all
}

/// KV length that token `j` sees, before it saturates.
constexpr int64_t expanded_seqlen(int64_t first, int32_t j) { return max(first + j, 0); }

/// The part of a KV cache that one rank of decode context parallelism holds: ranks take turns, `interleave` entries
/// each.
class ContextShard {
 public:
  /// world * interleave is at most 2**31 - 1, and rank below world.
  constexpr ContextShard(int64_t world, int64_t rank, int64_t interleave)
      : round_(world * interleave), interleave_(interleave), skipped_(static_cast<int32_t>(rank * interleave)) {}

  /// Whether there is but one rank.
  constexpr bool has_all() const { return round_.value() == interleave_.value(); }

  /// Of the first `entries`, those that the rank holds.
  constexpr int64_t local(int64_t entries) const {
    if (has_all()) return entries;
    const int64_t rounds = round_.quotient(entries);
    const int64_t rest = entries - rounds * round_.value() - skipped_;
    return rounds * interleave_.value() + max(min(rest, interleave_.value()), 0);
  }

  /// How many entries may follow the first `entries` before the rank holds more than `held`, or `most` if that is less.
  constexpr int64_t room(int64_t entries, int64_t held, int64_t most) const {
    const int64_t rounds = round_.quotient(entries), held_rounds = interleave_.quotient(held);
    if (held_rounds - rounds > most) return most;  // a round has one entry at least
    const int64_t last = (held_rounds - rounds) * round_.value() + skipped_ + held - held_rounds * interleave_.value();
    return min(last - (entries - rounds * round_.value()), most);
  }

 private:
  WideDivisor round_;
  WideDivisor interleave_;
  int32_t skipped_;  ///< of each round, what ranks before this one hold
};

/// States of a sequence in the indexer's cache of a rank: one for `compress_ratio` entries.
constexpr int64_t final_states(int64_t entries, const ContextShard& shard, const WideDivisor& compress_ratio) {
  return compress_ratio.quotient(shard.local(entries));
}

/// The same as it is stored.
constexpr int32_t final_length(int64_t entries, const ContextShard& shard, const WideDivisor& compress_ratio) {
  return saturated(final_states(entries, shard, compress_ratio));
}

/// Slots of a request that a row of `page_table` holds.
constexpr int32_t live_slots(int32_t kv, int32_t source_width, int32_t output_width) {
  const int32_t width = source_width < output_width ? source_width : output_width;
  return kv < width ? kv : width;
}

/// Pages that `slots` slots fill, the last one perhaps in part.
constexpr int32_t page_count(int32_t slots, const Divisor& page_size) {
  return slots == 0 ? 0 : page_size.quotient(slots - 1) + 1;
}

/// Pages of a request that a row of `real_page_table` holds.
constexpr int32_t live_pages(int32_t kv, int32_t source_width, int32_t output_width, const Divisor& page_size) {
  const int32_t pages = page_count(kv < source_width ? kv : source_width, page_size);
  return pages < output_width ? pages : output_width;
}

/// Columns of a block table that show a sequence of so many states: at least one.
constexpr int32_t live_blocks(int64_t states, const WideDivisor& page_size) {
  return saturated(page_size.quotient(max(states - 1, 0)) + 1);
}

/// Page of a slot: the quotient rounded down, also below 0.
constexpr int32_t page_id(int32_t slot, const Divisor& page_size) {
  return slot >= 0 ? page_size.quotient(slot) : ~page_size.quotient(~slot);
}

}  // namespace nsa_kernel::rules
