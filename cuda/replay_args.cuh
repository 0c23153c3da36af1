// What the kernels of replay read, and what each kernel takes for granted of it.
#pragma once

#include <cstdint>

#include "nsa_kernel/replay.h"
#include "rules.h"
#include "scan.cuh"

namespace nsa_kernel::cuda {

enum class TokenCounts { uniform, ragged, either };

/// The arguments that engines have: packed lengths, tables of aligned rows, up to 512 requests. Where counts are
/// uniform, they are up to kShort.
template <TokenCounts kValue>
struct Plain {
  using Stride = uint32_t;
  static constexpr TokenCounts kCounts = kValue;
  static constexpr bool kAligned = true;
};

/// All others.
struct General {
  using Stride = uint64_t;
  static constexpr TokenCounts kCounts = TokenCounts::either;
  static constexpr bool kAligned = false;
};

/// A table; without rows where it is absent.
template <class T, class Stride>
struct Rows {
  T* data;
  Stride row_stride;
  int32_t rows;
  int32_t width;

  explicit Rows(const TableView<T>& table)
      : data(table.data),
        row_stride(static_cast<Stride>(table.row_stride)),
        rows(rules::saturated(table.rows)),
        width(rules::saturated(table.cols)) {}

  __device__ T* row(int32_t i) const { return data + uint64_t{static_cast<uint32_t>(i)} * row_stride; }
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

template <class Form>
struct Args {
  Elements seq_lens;
  Elements extend_seq_lens;  ///< given: tokens are ragged
  Elements req_pool_indices;
  int32_t bs;
  int32_t uniform_tokens;  ///< tokens of each request, where they are not ragged
  int32_t uncounted;       ///< tokens of each request that seq_lens does not count yet
  // Blocks of a row of the grid: first those that write one value a request, then one a token, then tables.
  unsigned request_blocks;
  unsigned token_blocks;
  unsigned table_blocks;  ///< for each request of few, for each tile of more
  rules::Divisor table_blocks_divisor;
  uint32_t home_step;  ///< between the homes of two requests of a tile, as a part of 2**32 of the ring
  // Tables.
  bool aligned;        ///< every row of req_to_token and page_table starts at a multiple of 16 bytes
  int32_t table_rows;  ///< rows of the longer table
  int32_t page_size;
  rules::Divisor page_size_divisor;
  Rows<const int32_t, typename Form::Stride> req_to_token;
  Rows<int32_t, typename Form::Stride> page_table;
  Rows<int32_t, typename Form::Stride> real_page_table;
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
  __device__ int64_t added(int b) const {
    return ragged() ? rules::length(extend_seq_lens[b]) : int64_t{uniform_tokens};
  }
  __device__ int32_t tokens(int b) const { return rules::saturated(added(b)); }
  __device__ int32_t kv(int b) const { return rules::kv_length(rules::length(seq_lens[b]), uncounted); }
  __device__ int32_t uniform_tokens_before(int b) const {
    if constexpr (Form::kCounts == TokenCounts::uniform) return b * uniform_tokens;
    return rules::saturated(int64_t{b} * uniform_tokens);
  }
};

}  // namespace nsa_kernel::cuda
