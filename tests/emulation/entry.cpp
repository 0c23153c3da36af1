// The ops on the emulated device, for a test that is not written in C++.
#include <string>

#include "check.h"
#include "kernels.h"
#include "machine.h"
#include "nsa_kernel/draft_extend.h"
#include "nsa_kernel/replay.h"

namespace nsa_kernel::cuda {

Target Kernels::load(Device) const { return {emulation::multiprocessors, false}; }

void DeviceGuard::enter(Device) {}
void DeviceGuard::leave() {}

}  // namespace nsa_kernel::cuda

namespace {

using namespace nsa_kernel;

/// Asked for anew at each launch, unlike what is known of the first few devices.
constexpr Device kDevice{DeviceType::cuda, 1000};

/// Any argument; null data: not given.
struct Array {
  void* data;
  int64_t size;  ///< elements, or rows
  int64_t cols;
  int64_t stride;  ///< elements from one to the next, or from one row to the next
  int64_t is_int64;

  LengthView lengths() const {
    if (is_int64 != 0) return {static_cast<const int64_t*>(data), size, stride};
    return {static_cast<const int32_t*>(data), size, stride};
  }
  View<int32_t> values() const { return {static_cast<int32_t*>(data), size}; }
  template <class T>
  TableView<T> table() const {
    return {static_cast<T*>(data), size, cols, stride};
  }
};

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

EXPORTED const char* draft_extend(int multiprocessors, uint64_t seed, int variant, int64_t topk, const Array* of) {
  return error_of(multiprocessors, seed, [&] {
    fill_draft_extend_metadata(
        {of[0].lengths(), of[1].lengths(), topk, of[2].values(), of[3].values(), of[4].values(), kDevice},
        static_cast<Variant>(variant));
  });
}

/// `num_draft_tokens` below 0: not given.
EXPORTED const char* replay(int multiprocessors, uint64_t seed, int mode, int64_t topk, int64_t num_draft_tokens,
                            int64_t page_size, const Array* of) {
  return error_of(multiprocessors, seed, [&] {
    const auto tokens = num_draft_tokens < 0 ? std::nullopt : std::optional<int64_t>(num_draft_tokens);
    ReplayPlan({static_cast<Mode>(mode), of[0].lengths(), topk, of[1].lengths(), of[2].table<const int32_t>(),
                of[3].lengths(), tokens, page_size, of[4].values(), of[5].values(), of[6].values(), of[7].values(),
                of[8].values(), of[9].table<int32_t>(), of[10].table<int32_t>(), of[11].table<int32_t>(),
                of[12].values(), kDevice})
        .run();
  });
}
