// What the kernels of replay read, and what each kernel takes for granted of it.
#pragma once

#include <cstdint>

#include "nsa_kernel/replay.h"
#include "rules.h"
#include "scan.cuh"

namespace nsa_kernel::cuda {

enum class TokenCounts { uniform, ragged, either };

/// A unit of a table covers up to this many rows of a request.
constexpr int kUnitRows = kShort;

/// The arguments that engines have: up to 512 requests, tables of aligned rows, distances of up to 32 bits. Where
/// counts are uniform, they are up to kUnitRows.
template <TokenCounts kValue>
struct Plain {
  using Step = uint32_t;
  using Stride = uint32_t;
  static constexpr TokenCounts kCounts = kValue;
  static constexpr bool kAligned = true;
  static constexpr bool kMany = false;  ///< more than one tile of requests
};

/// All others.
struct General {
  using Step = uint64_t;
  using Stride = uint64_t;
  static constexpr TokenCounts kCounts = TokenCounts::either;
  static constexpr bool kAligned = false;
  static constexpr bool kMany = true;
};

/// A table; without rows where it is absent.
template <class T, class Stride>
struct Rows {
  T* data;
  Stride row_bytes;  ///< from one row to the next
  int32_t rows;

  explicit Rows(const TableView<T>& table)
      : data(table.data), row_bytes(static_cast<Stride>(bytes_apart(table))), rows(rules::saturated(table.rows)) {}

  static int64_t bytes_apart(const TableView<T>& table) { return table.row_stride * static_cast<int64_t>(sizeof(T)); }

  /// How many of `count` rows from `first` on it has; below 1: none.
  __device__ int32_t rows_from(int32_t first, int32_t count) const { return min(count, rows - first); }
  __device__ T* row(int32_t i) const { return below(data, static_cast<uint32_t>(i)); }
  __device__ T* below(T* at, uint64_t rows_on = 1) const {
    return reinterpret_cast<T*>(const_cast<char*>(reinterpret_cast<const char*>(at)) + rows_on * row_bytes);
  }
};

/// One value a token, for the first `size` of them.
struct Tokens {
  int32_t* data;
  int32_t size;

  explicit Tokens(const View<int32_t>& view, int64_t skipped = 0)
      : data(view.data + skipped), size(rules::saturated(rules::max(view.size - skipped, 0))) {}

  __device__ void store(int32_t t, int32_t value) const {
    if (t < size) data[t] = value;
  }
};

/// The warps that write lengths where requests are few: first those of tokens, then those of requests, then the rest,
/// which write what belongs to no token.
struct FewWarps {
  unsigned tokens = 0;
  unsigned token_shares = 0;  ///< warps that share the tokens of each request
  unsigned requests = 0;
  unsigned rest = 0;

  unsigned all() const { return tokens + requests + rest; }
};

/// The warps that the tables of each request have to themselves; see replay_tables.cuh.
struct OwnWarps {
  int32_t each = 0;
  int32_t slot_warps = 0;  ///< the first of them, which have a unit of slots each; the others have one of pages
  int32_t kv = 0;          ///< KV entries up to which they are enough
};

/// A part of a request's rows, from their start.
struct Part {
  int32_t slots = 0;
  int32_t pages = 0;
};

/// The lengths of a request as they lie in memory.
struct Request {
  Words seq_len;
  Words tokens;  ///< where ragged
};

/// Arguments are fetched by lines of 64 bytes, one after the other: what a warp of tables reads first stands first. On
/// an H100, three lines hold all that tables take where arguments are Plain.
template <class Form>
struct Args {
  // Blocks of a row of the grid: first those that write lengths, then those that write tables.
  unsigned length_blocks;
  unsigned table_blocks;
  int32_t bs;
  rules::Divisor bs_divisor;
  int32_t uniform_tokens;  ///< tokens of each request, where they are not ragged
  Elements<typename Form::Step> seq_lens;
  Elements<typename Form::Step> req_pool_indices;
  Elements<typename Form::Step> extend_seq_lens;  ///< given: tokens are ragged
  int32_t uncounted;                              ///< tokens of each request that seq_lens does not count yet
  // Tables.
  OwnWarps own;
  Part widest;  ///< live at most, however long the request
  Rows<const int32_t, typename Form::Stride> req_to_token;
  uint32_t page_size;
  rules::Divisor page_size_divisor;
  int32_t table_rows;  ///< rows of the longer table
  Rows<int32_t, typename Form::Stride> page_table;
  Rows<int32_t, typename Form::Stride> real_page_table;
  Part own_part;       ///< what a request's own warps do of it, at most
  uint32_t home_step;  ///< between the homes of two requests of a tile, as a part of 2**32 of the ring
  bool aligned;        ///< every row of req_to_token and page_table starts at a multiple of 16 bytes
  // Lengths.
  unsigned request_blocks;  ///< length blocks that write one value a request, where requests are many
  FewWarps few;
  // One value a token.
  int32_t topk;
  int32_t capacity;  ///< tokens that the longest of these outputs holds
  Tokens seqlens_expanded;
  Tokens nsa_cache_seqlens;
  Tokens nsa_cu_seqlens_k;          ///< from its second element on
  int32_t* nsa_cu_seqlens_k_start;  ///< this one and all after it may be null
  int32_t* num_tokens;
  // One value a request.
  int32_t* cache_seqlens;
  int32_t* cu_seqlens_k;
  Rows<int32_t, typename Form::Stride> ctx_lens_2d;

  __device__ bool ragged() const {
    if constexpr (Form::kCounts == TokenCounts::either) return static_cast<bool>(extend_seq_lens);
    return Form::kCounts == TokenCounts::ragged;
  }

  __device__ Request read(int b) const {
    Request request{seq_lens.read(b), {}};
    if (ragged()) request.tokens = extend_seq_lens.read(b);
    return request;
  }
  __device__ int32_t tokens(const Request& request) const {
    return ragged() ? rules::adjusted(extend_seq_lens.length32(request.tokens), 0) : uniform_tokens;
  }
  __device__ int32_t kv(const Request& request) const {
    return rules::kv_length(seq_lens.length32(request.seq_len), uncounted);
  }
  /// KV length that the first token of a request sees.
  __device__ int32_t first(const Request& request) const {
    if constexpr (Form::kCounts == TokenCounts::uniform) {
      return rules::first_seqlen_of_uniform(seq_lens.length32(request.seq_len), uncounted, uniform_tokens);
    }
    const int64_t added = ragged() ? rules::length(extend_seq_lens.value(request.tokens)) : int64_t{uniform_tokens};
    return rules::first_seqlen(rules::length(seq_lens.value(request.seq_len)), uncounted, added);
  }
  /// rules::live_slots and rules::live_pages of a request.
  __device__ int32_t live_slots(int32_t kv) const { return min(kv, widest.slots); }
  __device__ int32_t live_pages(int32_t kv) const {
    return min(rules::page_count(kv, page_size_divisor), widest.pages);
  }
  /// A row of req_to_token, -1 outside the pool.
  __device__ int32_t pool_row(const Words& pool_index) const {
    const int64_t index = req_pool_indices.value(pool_index);
    return static_cast<uint64_t>(index) < static_cast<uint64_t>(req_to_token.rows) ? static_cast<int32_t>(index) : -1;
  }
  __device__ int32_t uniform_tokens_before(int b) const {
    if constexpr (Form::kCounts == TokenCounts::uniform) return b * uniform_tokens;
    return rules::saturated(int64_t{b} * uniform_tokens);
  }
};

}  // namespace nsa_kernel::cuda
