// How a batch of requests is read, by CPU loops and kernels alike: the tokens, the KV length and the source row of
// each.
#pragma once

#include <cstdint>
#include <type_traits>

#include "nsa_kernel/types.h"
#include "rules.h"

#ifdef __CUDACC__
#define NSA_KERNEL_HOST_DEVICE __host__ __device__
#else
#define NSA_KERNEL_HOST_DEVICE
#endif

namespace nsa_kernel {

/// A length or an index as it lies in memory.
struct alignas(int64_t) RawIndex {
  uint32_t low;
  int32_t high;  ///< of int64 only
};

/// Lengths or indices. Reading one is kept apart from making a number of it, so that several are read before the first
/// is looked at.
template <class Step = uint64_t>
struct IndexArray {
  const char* data;  ///< null: not given
  Step step;         ///< bytes from one element to the next
  int32_t is_int64;  ///< not a bool: kernels compare constants of this width

  explicit IndexArray(const LengthView& view)
      : data(view.int64 != nullptr ? reinterpret_cast<const char*>(view.int64)
                                   : reinterpret_cast<const char*>(view.int32)),
        step(static_cast<Step>(step_bytes(view))),
        is_int64(view.int64 != nullptr ? 1 : 0) {}

  static int64_t step_bytes(const LengthView& view) {
    return view.stride * static_cast<int64_t>(view.int64 != nullptr ? sizeof(int64_t) : sizeof(int32_t));
  }

  NSA_KERNEL_HOST_DEVICE explicit operator bool() const { return data != nullptr; }

  NSA_KERNEL_HOST_DEVICE RawIndex read(int b) const {
    const char* at = data + uint64_t{static_cast<uint32_t>(b)} * step;
    if (is_int64 != 0) return *reinterpret_cast<const RawIndex*>(at);
    return {*reinterpret_cast<const uint32_t*>(at), 0};
  }

  NSA_KERNEL_HOST_DEVICE int64_t value(const RawIndex& raw) const {
    return static_cast<int64_t>(uint64_t{static_cast<uint32_t>(high_word(raw))} << 32 | raw.low);
  }

  /// rules::length32 of an element, without a branch.
  NSA_KERNEL_HOST_DEVICE uint32_t length32(const RawIndex& raw) const {
    const int32_t high = high_word(raw);
    return (raw.low | (high > 0 ? ~0u : 0u)) & ~static_cast<uint32_t>(high >> 31);
  }

 private:
  NSA_KERNEL_HOST_DEVICE int32_t high_word(const RawIndex& raw) const {
    return is_int64 != 0 ? raw.high : static_cast<int32_t>(raw.low) >> 31;
  }
};

/// How the tokens of a request are given: as one number for all, or in an array.
enum class TokenCounts {
  uniform,
  lengths,             ///< one number a request
  uniform_or_lengths,  ///< known at run time
  any,                 ///< at run time; an array may also hold the cumulative sum, [bs + 1]
};

/// The token count of a request as it lies in memory; of a cumulative sum, its two ends.
template <bool kMayBeCumulative>
struct RawTokens {
  RawIndex count;
};
template <>
struct RawTokens<true> {
  RawIndex count;
  RawIndex end;
};

/// In place of a member that is not there.
struct Absent {};

/// A batch of requests. The tokens of all requests, in order, are the rows of per-token outputs and tables.
/// Without kHasSourceRows, the source row of a request is its own number.
template <TokenCounts kCounts_, class Step = uint64_t, bool kHasSourceRows = true>
struct Batch {
  static constexpr TokenCounts kCounts = kCounts_;
  static constexpr bool kMayBeCumulative = kCounts == TokenCounts::any;
  static constexpr int32_t kCumulative = -1;

  /// Of KV entries. Those of TokenCounts::any are divided, among ranks or states, before they saturate.
  using Length = std::conditional_t<kMayBeCumulative, int64_t, int32_t>;

  int32_t bs;                 ///< requests
  int32_t uniform_tokens;     ///< tokens of each request, where no array says it; kCumulative where its sum does
  IndexArray<Step> seq_lens;  ///< [bs] KV length of each request
  /// [bs] row of each request in the source table
  [[no_unique_address]] std::conditional_t<kHasSourceRows, IndexArray<Step>, Absent> source_rows;
  IndexArray<Step> token_counts;
  int32_t pending_tokens;  ///< draft tokens of each request that are not yet in seq_lens; 0 of TokenCounts::any
  int32_t capacity;        ///< tokens that the per-token outputs hold

  using Tokens = RawTokens<kMayBeCumulative>;

  /// What a request is, as it lies in memory.
  struct Request {
    RawIndex seq_len;
    Tokens tokens;
  };

  NSA_KERNEL_HOST_DEVICE bool ragged() const {
    if constexpr (kCounts == TokenCounts::uniform) return false;
    if constexpr (kCounts == TokenCounts::lengths) return true;
    return static_cast<bool>(token_counts);
  }

  /// Whether tokens beyond the capacity are not there. Where the host knows all tokens of a batch, there are none.
  NSA_KERNEL_HOST_DEVICE bool is_bounded() const { return kMayBeCumulative || ragged(); }

  NSA_KERNEL_HOST_DEVICE Tokens read_tokens(int b) const {
    Tokens tokens{};
    if (ragged()) tokens.count = token_counts.read(b);
    if constexpr (kMayBeCumulative) {
      if (is_cumulative()) tokens.end = token_counts.read(b + 1);
    }
    return tokens;
  }

  NSA_KERNEL_HOST_DEVICE Request read(int b) const {
    const RawIndex seq_len = seq_lens.read(b);
    return {seq_len, read_tokens(b)};
  }

  /// Tokens of a request; more than an int32 holds count as that many.
  NSA_KERNEL_HOST_DEVICE int32_t tokens(const Tokens& raw) const {
    if constexpr (kMayBeCumulative) {
      if (is_cumulative()) {
        const uint64_t difference = token_difference(raw);
        return static_cast<int32_t>(difference < rules::kMaxStored ? difference : rules::kMaxStored);
      }
    }
    return ragged() ? rules::saturating_offset(token_counts.length32(raw.count), 0) : uniform_tokens;
  }
  NSA_KERNEL_HOST_DEVICE int32_t tokens(const Request& request) const { return tokens(request.tokens); }

  /// KV entries of a request.
  NSA_KERNEL_HOST_DEVICE Length kv(const Request& request) const {
    if constexpr (kMayBeCumulative) {
      return rules::length(seq_lens.value(request.seq_len));
    } else {
      return rules::kv_length(seq_lens.length32(request.seq_len), pending_tokens);
    }
  }

  /// KV length that the first token of a request sees: below 1 in a padded row.
  NSA_KERNEL_HOST_DEVICE Length first_seqlen(const Request& request) const {
    if constexpr (kCounts == TokenCounts::uniform) {
      return rules::first_seqlen_of_uniform(seq_lens.length32(request.seq_len), pending_tokens, uniform_tokens);
    }
    if constexpr (kMayBeCumulative) {
      uint64_t added = static_cast<uint64_t>(uniform_tokens);
      if (ragged()) added = static_cast<uint64_t>(rules::length(token_counts.value(request.tokens.count)));
      if (is_cumulative()) added = token_difference(request.tokens);
      return rules::wide_first_seqlen(kv(request), added);
    } else {
      int64_t added = uniform_tokens;
      if (ragged()) added = rules::length(token_counts.value(request.tokens.count));
      return rules::first_seqlen(rules::length(seq_lens.value(request.seq_len)), pending_tokens, added);
    }
  }

  /// Tokens before request b, where they are not ragged.
  NSA_KERNEL_HOST_DEVICE int32_t uniform_tokens_before(int b) const {
    if constexpr (kCounts == TokenCounts::uniform) return b * uniform_tokens;
    return rules::saturated(int64_t{b} * uniform_tokens);
  }

  /// Of so many tokens of a request, those that the per-token outputs hold; `before` are the tokens of earlier
  /// requests.
  NSA_KERNEL_HOST_DEVICE int32_t held_tokens(int32_t before, int32_t tokens) const {
    const int32_t left = capacity - (before < capacity ? before : capacity);
    return tokens < left ? tokens : left;
  }

  NSA_KERNEL_HOST_DEVICE RawIndex read_source_row(int b) const {
    if constexpr (kHasSourceRows) {
      return source_rows.read(b);
    } else {
      return {static_cast<uint32_t>(b), 0};
    }
  }

  /// Row of a source table of so many rows; -1 outside it.
  NSA_KERNEL_HOST_DEVICE int32_t source_row(const RawIndex& raw, int32_t rows) const {
    if constexpr (kHasSourceRows) {
      const int64_t row = source_rows.value(raw);
      return static_cast<uint64_t>(row) < static_cast<uint64_t>(rows) ? static_cast<int32_t>(row) : -1;
    } else {
      return static_cast<int32_t>(raw.low);
    }
  }

 private:
  NSA_KERNEL_HOST_DEVICE bool is_cumulative() const { return uniform_tokens == kCumulative; }

  /// May exceed an int64.
  NSA_KERNEL_HOST_DEVICE uint64_t token_difference(const Tokens& raw) const {
    const int64_t begin = token_counts.value(raw.count), end = token_counts.value(raw.end);
    return end > begin ? static_cast<uint64_t>(end) - static_cast<uint64_t>(begin) : 0;
  }
};

}  // namespace nsa_kernel
