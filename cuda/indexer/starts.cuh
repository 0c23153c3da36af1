// Which request an element belongs to, found by each element for itself.
#pragma once

#include <cstdint>

#include "grid.h"
#include "rules.h"
#include "scan.cuh"

namespace nsa_kernel::cuda {

/// Requests in a tile, and threads in a block.
constexpr int kSearchTile = 256;
constexpr int kSearchBlocksPerMultiprocessor = 4;

/// The first element of each request of a tile. They ascend; beyond the tile's requests stand the largest numbers.
struct Starts {
  int32_t of[kSearchTile];

  /// The last request that starts at an element or before; there is one.
  __device__ int place_of(int32_t element) const {
    int place = 0;
#pragma unroll
    for (int step = kSearchTile / 2; step > 0; step /= 2) {
      if (of[place + step] <= element) place += step;
    }
    return place;
  }
};

/// Calls `store(element)` for this thread's part of the elements begin .. end-1, which the blocks of a tile share.
template <class Store>
__device__ void for_each_element(const Tile& tile, int32_t begin, int32_t end, Store store) {
  const int32_t count = end - begin, step = static_cast<int32_t>(tile.shares * kSearchTile);
#pragma unroll 1
  for (int32_t i = tile.share * kSearchTile + threadIdx.x; i < count; i += step) store(begin + i);
}

/// The blocks for so many elements of `n` requests.
inline Grid search_grid(int64_t n, int64_t elements, int multiprocessors) {
  constexpr int64_t kElementsOfThread = 2;
  return Grid(n, kSearchTile, rules::ceil_div(elements, kSearchTile * kElementsOfThread),
              int64_t{multiprocessors} * kSearchBlocksPerMultiprocessor);
}

}  // namespace nsa_kernel::cuda
