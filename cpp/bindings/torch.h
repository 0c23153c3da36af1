// What torch alone is asked.
#pragma once

#include <nanobind/nanobind.h>

namespace nsa_kernel::bindings {

/// Throws while torch records what is called (`torch.jit.trace`, `make_fx`, `torch.export`): it would miss a call of
/// `op`, and what it records would lack it. For calls with arrays of torch.
void refuse_tracing(const char* op);

/// Whether the objects of a type are tensors.
bool is_tensor_type(nanobind::handle type);

/// Whether a tensor is a view whose elements are negated as they are read.
bool is_negated(nanobind::handle tensor);

/// The storage of a tensor, which lives as long as what is returned.
nanobind::object storage_of(nanobind::handle tensor);

}  // namespace nsa_kernel::bindings
