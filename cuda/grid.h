// The grid of a launch that divides a batch of requests: from sizes that the host knows, never from lengths.
#pragma once

#include <cstdint>

#include "nsa_kernel/types.h"
#include "rules.h"

namespace nsa_kernel::cuda {

/// Blocks that are worth their start for the tokens of a batch that outputs of `capacity` elements hold: one for each
/// token of a request, of up to a few, and more where long requests may be shared.
inline int64_t useful_token_blocks(int64_t capacity, int64_t bs) {
  const int64_t average = rules::ceil_div(capacity, rules::max(bs, 1));
  int64_t tokens = 1;  // a power of two, since some requests have more than the average
  while (tokens < average && tokens < 8) tokens *= 2;
  return rules::max(tokens, rules::ceil_div(capacity, 2048));
}

/// Rows of blocks walk the tiles of requests; the blocks of a row share each of its tiles. With few tiles, many blocks
/// share each; with many, each row walks several.
struct Grid {
  unsigned shares;
  unsigned rows;

  /// For `bs` requests in tiles of `tile`, of which each can use `useful` blocks, and about `limit` blocks in all.
  Grid(int64_t bs, int64_t tile, int64_t useful, int64_t limit) {
    const int64_t tiles = rules::max(rules::ceil_div(bs, tile), 1);
    rows = static_cast<unsigned>(rules::min(tiles, limit));
    shares = static_cast<unsigned>(rules::max(rules::min(limit / rows, useful), 1));
  }
};

}  // namespace nsa_kernel::cuda
