#include "tracing.h"

#include <nanobind/nanobind.h>

#include <atomic>
#include <stdexcept>
#include <string>

namespace nb = nanobind;

namespace nsa_kernel::bindings {
namespace {

/// What torch is asked in every call, looked up once. Each is null where torch does not have it.
struct TorchState {
  PyObject* is_tracing;
  PyCFunction count_modes;  ///< called past the call protocol, which takes longer than the function
  PyObject* module;
};

const TorchState* look_up() {
  const nb::module_ torch = nb::module_::import_("torch._C");
  const auto function = [&](const char* name) { return nb::getattr(torch, name, nb::handle()).release().ptr(); };
  PyObject* modes = function("_len_torch_function_stack");
  const bool is_plain = modes != nullptr && PyCFunction_CheckExact(modes) && PyCFunction_GetFlags(modes) == METH_NOARGS;
  return new TorchState{function("_is_tracing"), is_plain ? PyCFunction_GetFunction(modes) : nullptr,
                        is_plain ? PyCFunction_GetSelf(modes) : nullptr};
}

std::atomic<const TorchState*> torch_state{nullptr};

nb::object checked(PyObject* result) {
  if (result == nullptr) throw nb::python_error();
  return nb::steal(result);
}

bool is_jit_tracing(const TorchState& state) {
  return state.is_tracing != nullptr && checked(PyObject_CallNoArgs(state.is_tracing)).ptr() == Py_True;
}

/// Whether a mode of torch is active that sees all of its functions.
bool has_mode(const TorchState& state) {
  return state.count_modes != nullptr && PyLong_AsLong(checked(state.count_modes(state.module, nullptr)).ptr()) != 0;
}

/// Whether one of the modes records the operators that are called.
bool is_recorded() {
  const nb::module_ torch = nb::module_::import_("torch._C"), ops = nb::module_::import_("torch._ops");
  const nb::object proxy = torch.attr("_TorchDispatchModeKey").attr("PROXY");
  return !torch.attr("_get_dispatch_mode")(proxy).is_none() ||
         !ops.attr("_get_dispatch_mode_pre_dispatch")(proxy).is_none();
}

}  // namespace

void refuse_tracing(const char* op) {
  const TorchState* state = torch_state.load(std::memory_order_acquire);
  if (state == nullptr) torch_state.store(state = look_up(), std::memory_order_release);
  if (!is_jit_tracing(*state) && !(has_mode(*state) && is_recorded())) return;
  throw std::runtime_error(std::string(op) +
                           ": torch is tracing, which does not record this call, must record torch.ops.nsa_kernel." +
                           op + " (import nsa_kernel.torch_ops)");
}

}  // namespace nsa_kernel::bindings
