// Calls that torch records.
#pragma once

namespace nsa_kernel::bindings {

/// Throws while torch records what is called (`torch.jit.trace`, `make_fx`, `torch.export`): it would miss a call of
/// `op`, and what it records would lack it. For calls with arrays of torch.
void refuse_tracing(const char* op);

}  // namespace nsa_kernel::bindings
