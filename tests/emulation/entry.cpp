// The ops on the emulated device, for a test that is not written in C++.
#include <cstdlib>
#include <cstring>
#include <optional>
#include <string>
#include <type_traits>

#include "check.h"
#include "draft_extend_arguments.h"
#include "indexer_arguments.h"
#include "kernels.h"
#include "machine.h"
#include "replay_arguments.h"

namespace nsa_kernel::cuda {

Target Kernels::load(Device) const {
  return {.multiprocessors = std::abs(emulation::multiprocessors),
          .dependent_launch = false,
          .has_fast = emulation::multiprocessors > 0};
}

void DeviceGuard::enter(Device) {}
void DeviceGuard::leave() {}

}  // namespace nsa_kernel::cuda

namespace {

using namespace nsa_kernel;

/// Asked for anew at each launch, unlike what is known of the first few devices.
constexpr Device kDevice{DeviceType::cuda, 1000};

/// One argument, in the order of the op's list.
struct Value {
  int64_t is_given;
  int64_t number;
  const char* word;
  void* data;
  int64_t size;  ///< elements, or rows
  int64_t cols;
  int64_t stride;  ///< elements from one to the next, or from one row to the next
  int64_t is_int64;

  void get(LengthView& view) const {
    if (is_int64 != 0) {
      view = {static_cast<const int64_t*>(data), size, stride};
    } else {
      view = {static_cast<const int32_t*>(data), size, stride};
    }
  }
  void get(FlatView& view) const { view = {{static_cast<int32_t*>(data), size * cols}}; }
  void get(View<int32_t>& view) const { view = {static_cast<int32_t*>(data), size}; }
  template <class T>
  void get(TableView<T>& view) const {
    view = {static_cast<T*>(data), size, cols, stride};
  }
  void get(int64_t& value) const { value = number; }
  template <class T>
  void get(std::optional<T>& value) const {
    get(value.emplace());
  }
  template <class T, std::enable_if_t<std::is_enum_v<T>, int> = 0>
  void get(T& value) const {
    for (const Word<T>& known : kWords<T>) {
      if (std::strcmp(known.text, word) == 0) value = known.value;
    }
  }
};

/// The struct that a list describes.
template <class Buffers, class List>
Buffers buffers_of(const List& list, const Value* values) {
  Buffers buffers;
  list.for_each([&](size_t i, const auto& argument) {
    if (values[i].is_given != 0) values[i].get(buffers.*argument.field);
  });
  buffers.device = kDevice;
  return buffers;
}

template <class Op>
const char* error_of(int multiprocessors, uint64_t seed, Op op) {
  static std::string message;
  emulation::multiprocessors = multiprocessors;
  emulation::seed(seed);
  try {
    op();
    return nullptr;
  } catch (const std::exception& error) {
    message = error.what();
    return message.c_str();
  }
}

}  // namespace

#define EXPORTED extern "C" __attribute__((visibility("default")))

EXPORTED const char* fill_draft_extend_metadata(int multiprocessors, uint64_t seed, const Value* values) {
  return error_of(multiprocessors, seed, [&] {
    const auto buffers = buffers_of<DraftExtendArguments>(kDraftExtendArguments, values);
    nsa_kernel::fill_draft_extend_metadata(buffers, buffers.variant);
  });
}

EXPORTED const char* fill_replay_metadata(int multiprocessors, uint64_t seed, const Value* values) {
  return error_of(multiprocessors, seed,
                  [&] { nsa_kernel::fill_replay_metadata(buffers_of<Replay>(kReplayArguments, values)); });
}

EXPORTED const char* fill_indexer_decode_metadata(int multiprocessors, uint64_t seed, const Value* values) {
  return error_of(multiprocessors, seed, [&] {
    nsa_kernel::fill_indexer_decode_metadata(buffers_of<IndexerDecode>(kIndexerDecodeArguments, values));
  });
}

EXPORTED const char* fill_indexer_prefill_metadata(int multiprocessors, uint64_t seed, const Value* values) {
  return error_of(multiprocessors, seed, [&] {
    nsa_kernel::fill_indexer_prefill_metadata(buffers_of<IndexerPrefill>(kIndexerPrefillArguments, values));
  });
}

EXPORTED const char* fill_token_requests(int multiprocessors, uint64_t seed, const Value* values) {
  return error_of(multiprocessors, seed,
                  [&] { nsa_kernel::fill_token_requests(buffers_of<TokenRequests>(kTokenRequestsArguments, values)); });
}
