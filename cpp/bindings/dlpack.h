// The C exchange table of DLPack 1.2, as its specification lays it out: how a framework hands over its arrays and its
// current stream without a Python call.
#pragma once

#include <nanobind/ndarray.h>

#include <cstdint>

namespace nsa_kernel::bindings {

struct ManagedTensor {
  uint32_t major;
  uint32_t minor;
  void* manager_ctx;
  void (*deleter)(ManagedTensor*);
  uint64_t flags;
  nanobind::dlpack::dltensor tensor;
};

struct ExchangeTable {
  uint32_t major;
  uint32_t minor;
  const ExchangeTable* previous;
  int (*allocate)(nanobind::dlpack::dltensor* prototype, ManagedTensor** out, void* error_context,
                  void (*set_error)(void* context, const char* kind, const char* message));
  int (*managed_from_object)(void* object, ManagedTensor** out);
  int (*managed_to_object)(ManagedTensor* tensor, void** out);
  int (*borrow_from_object)(void* object, nanobind::dlpack::dltensor* out);
  int (*current_stream)(int32_t device_type, int32_t device_id, void** out);
};

/// Of the structures above.
constexpr uint32_t kDlpackMajor = 1;

}  // namespace nsa_kernel::bindings
