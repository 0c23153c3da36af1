// Any stream -> handle.
#pragma once

#include <nanobind/nanobind.h>

#include <string>

#include "dlpack.h"
#include "nsa_kernel/types.h"

namespace nsa_kernel::bindings {

/// Where the current stream comes from: the framework of the first CUDA array that has one.
class StreamSource {
 public:
  /// Takes `type`, whose exchange table may be null, as the source unless there is one already.
  void offer(nanobind::handle type, const ExchangeTable* table);

  /// The framework's current stream on `device`; the legacy default stream where no framework has one.
  Stream current(Device device) const;

 private:
  enum class Kind { none, table, torch, cupy };
  Kind kind_ = Kind::none;
  const ExchangeTable* table_ = nullptr;
};

/// The handle of the argument `stream`, which is not None: an int or an object with `__cuda_stream__`.
Stream stream_handle(const char* op, nanobind::handle stream);

/// The package that a type comes from, such as "torch".
std::string package_of(nanobind::handle type);

/// Whether a type, or one whose memory its objects extend, comes from `package`.
bool derives_from(nanobind::handle type, const char* package);

}  // namespace nsa_kernel::bindings
