// Any stream -> handle.
#pragma once

#include <nanobind/nanobind.h>

#include <string>

#include "dlpack.h"
#include "nsa_kernel/types.h"

namespace nsa_kernel::bindings {

/// The frameworks whose arrays are treated in ways of their own.
enum class Framework { other, torch, cupy, jax };

/// The framework of a type, or of one whose memory its objects extend.
Framework framework_of(nanobind::handle type);

/// Where the current stream comes from: the framework of the first CUDA array that has one.
class StreamSource {
 public:
  /// Takes a framework, or the exchange table of its arrays where that is not null, unless there is a source already.
  void offer(Framework framework, const ExchangeTable* table) {
    if (table_ != nullptr || framework_ != Framework::other) return;
    if (table != nullptr && table->current_stream != nullptr) {
      table_ = table;
    } else if (framework != Framework::jax) {
      framework_ = framework;
    }
  }

  /// The framework's current stream on `device`; the legacy default stream where no framework has one.
  Stream current(Device device) const;

 private:
  const ExchangeTable* table_ = nullptr;
  Framework framework_ = Framework::other;  ///< torch or cupy, where there is no table
};

/// The handle of the argument `stream`, which is not None: an int or an object with `__cuda_stream__`.
Stream stream_handle(const char* op, nanobind::handle stream);

/// The package that a type comes from, such as "torch".
std::string package_of(nanobind::handle type);

}  // namespace nsa_kernel::bindings
