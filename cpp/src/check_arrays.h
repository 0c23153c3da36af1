// What a plan refuses of any op's arrays: layouts that nothing reads or writes, and outputs that overlap.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "arguments.h"
#include "require.h"

namespace nsa_kernel {

/// The memory of an array: runs of equally many bytes, equally far apart.
struct Region {
  uint64_t begin;
  uint64_t end;  ///< of the last run
  int64_t runs;
  uint64_t run_bytes;
  uint64_t step;  ///< bytes from one run to the next
};

/// Of an array without elements.
inline constexpr Region kNoRegion{};

/// Whether the bytes from `begin` to `end` meet a run of `region`.
inline bool meets(uint64_t begin, uint64_t end, const Region& region) {
  if (end <= region.begin || begin >= region.end) return false;
  if (region.runs == 1) return true;
  // The first run that ends behind `begin`.
  const uint64_t first_end = region.begin + region.run_bytes;
  const uint64_t run = begin < first_end ? 0 : (begin - first_end) / region.step + 1;
  return region.begin + run * region.step < end;
}

inline bool first_run_meets(const Region& a, const Region& b) { return meets(a.begin, a.begin + a.run_bytes, b); }

/// Whether two regions share a byte; columns of one table share none.
inline bool overlap(const Region& a, const Region& b) {
  if (a.end <= b.begin || b.end <= a.begin) return false;
  if (a.runs > b.runs) return overlap(b, a);
  // Runs that are equally far apart meet only where the first of one does.
  if (a.runs == 1 || a.step == b.step) return first_run_meets(a, b) || (a.runs > 1 && first_run_meets(b, a));
  for (int64_t i = 0; i < a.runs; ++i) {
    const uint64_t begin = a.begin + static_cast<uint64_t>(i) * a.step;
    if (meets(begin, begin + a.run_bytes, b)) return true;
  }
  return false;
}

/// Checks the layout of arrays, and says what memory they have.
class RegionOf {
 public:
  explicit constexpr RegionOf(const Require& require) : require_(require) {}

  Region operator()(const char* name, const LengthView& view) const {
    check_size(name, view.size);
    const bool is_int64 = view.int64 != nullptr;
    const void* data = is_int64 ? static_cast<const void*>(view.int64) : view.int32;
    require_.layout(view.stride >= 1 || view.size <= 1, name, " has stride ", view.stride,
                    ", must have a positive one");
    const int64_t element_bytes = is_int64 ? sizeof(int64_t) : sizeof(int32_t);
    if (view.stride == 1) return region(name, data, element_bytes, 1, view.size, 0);
    return region(name, data, element_bytes, view.size, 1, view.stride);
  }

  Region operator()(const char* name, const View<int32_t>& view) const {
    check_size(name, view.size);
    return region(name, view.data, sizeof(int32_t), 1, view.size, 0);
  }

  template <class T>
  Region operator()(const char* name, const TableView<T>& table) const {
    constexpr bool kIsOutput = !std::is_const_v<T>;
    check_size(name, table.rows);
    check_size(name, table.cols);
    if (table.rows > 1 && table.cols > 0) {
      const int64_t least = kIsOutput ? table.cols : 1;
      require_.layout(table.row_stride >= least, name, " has row stride ", table.row_stride, ", must be at least ",
                      least);
    }
    return region(name, table.data, sizeof(int32_t), table.rows, table.cols, table.row_stride);
  }

 private:
  void check_size(const char* name, int64_t size) const {
    require_.layout(size >= 0, name, " has size ", size, ", must have none below 0");
  }

  /// Of runs whose elements follow each other, `step` elements apart.
  Region region(const char* name, const void* data, int64_t element_bytes, int64_t runs, int64_t run,
                int64_t step) const {
    if (runs == 0 || run == 0) return kNoRegion;
    require_(data != nullptr, name, " has elements and no address, must have both");
    const auto begin = reinterpret_cast<uint64_t>(data);
    int64_t size = run;
    uint64_t end = begin;
    bool too_far =
        runs > 1 && (__builtin_mul_overflow(runs - 1, step, &size) || __builtin_add_overflow(size, run, &size));
    too_far =
        too_far || __builtin_mul_overflow(size, element_bytes, &size) || __builtin_add_overflow(begin, size, &end);
    require_.layout(!too_far, name, " reaches past the last address, must lie in memory");
    const auto bytes = [&](int64_t elements) {
      return static_cast<uint64_t>(elements) * static_cast<uint64_t>(element_bytes);
    };
    return {begin, end, runs, bytes(run), bytes(step)};
  }

  const Require& require_;
};

/// Throws where an output overlaps another array.
template <class List, class Buffers>
[[gnu::noinline, gnu::cold]] void check_overlaps(const Require& require, const List& list, const Buffers& buffers) {
  const RegionOf region_of(require);
  list.for_each_array([&](size_t i, const auto& output) {
    if constexpr (is_output(kRoleOf<decltype(output)>)) {
      const Region region = region_of(output.name, buffers.*output.field);
      list.for_each_array([&](size_t j, const auto& other) {
        require(i == j || !overlap(region, region_of(other.name, buffers.*other.field)), output.name, " overlaps ",
                other.name, ", must have memory of its own");
      });
    }
  });
}

/// Ranges of addresses, at most `kMost`.
template <size_t kMost>
class Ranges {
 public:
  /// Adds that of a region, if it has any.
  void add(const Region& region) {
    begins_[count_] = region.begin;
    ends_[count_] = region.end;
    count_ += region.runs != 0;
  }

  /// Whether two of them meet. Without branches on addresses: most often none do.
  bool any_meet() const {
    uint64_t signs = 0;  // of differences that are negative where two ranges meet
    for (size_t i = 1; i < count_; ++i) {
      for (size_t j = 0; j < i; ++j) signs |= (begins_[i] - ends_[j]) & (begins_[j] - ends_[i]);
    }
    return signs >> 63 != 0;
  }

 private:
  std::array<uint64_t, kMost> begins_, ends_;
  size_t count_ = 0;
};

/// Throws unless each array of the list is one that kernels can read or write, and no output overlaps another array.
template <class List, class Buffers>
void check_arrays(const Require& require, const List& list, const Buffers& buffers) {
  const DeviceType type = buffers.device.type;
  require(type == DeviceType::cpu || type == DeviceType::cuda, "device type is ", static_cast<int64_t>(type),
          ", must be cpu or cuda");
  const RegionOf region_of(require);
  Ranges<List::kArrays> ranges;
  list.for_each_array(
      [&](size_t, const auto& argument) { ranges.add(region_of(argument.name, buffers.*argument.field)); });
  if (ranges.any_meet()) check_overlaps(require, list, buffers);
}

}  // namespace nsa_kernel
