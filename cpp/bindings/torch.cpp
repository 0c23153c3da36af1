#include "torch.h"

#include <atomic>
#include <stdexcept>
#include <string>

#include "attribute.h"

namespace nb = nanobind;

namespace nsa_kernel::bindings {
namespace {

/// A function of torch without arguments, looked up once; or None.
class TorchFunction {
 public:
  explicit TorchFunction(nb::handle function) : function_(nb::borrow(function)) {
    if (!PyCFunction_CheckExact(function.ptr())) return;
    const int flags = PyCFunction_GetFlags(function.ptr());
    const PyCFunction called = PyCFunction_GetFunction(function.ptr());
    self_ = PyCFunction_GetSelf(function.ptr());
    if (flags == METH_NOARGS) plain_ = called;
    if (flags == (METH_FASTCALL | METH_KEYWORDS)) {
      fast_ = reinterpret_cast<FastFunction>(reinterpret_cast<void (*)()>(called));
    }
  }

  /// Whether it gives something that counts as true; false of None.
  bool is_true() const {
    if (function_.is_none()) return false;
    const auto result = checked(plain_ != nullptr  ? plain_(self_, nullptr)
                                : fast_ != nullptr ? fast_(self_, nullptr, 0, nullptr)
                                                   : PyObject_CallNoArgs(function_.ptr()));
    const int truth = PyObject_IsTrue(result.ptr());
    if (truth < 0) throw nb::python_error();
    return truth != 0;
  }

  /// Called past the call protocol, which takes longer than the function; null where that cannot be.
  PyCFunction plain() const { return plain_; }

  static nb::object checked(PyObject* result) {
    if (result == nullptr) throw nb::python_error();
    return nb::steal(result);
  }

 private:
  using FastFunction = PyObject* (*)(PyObject*, PyObject* const*, Py_ssize_t, PyObject*);

  nb::object function_;
  PyCFunction plain_ = nullptr;
  FastFunction fast_ = nullptr;
  PyObject* self_ = nullptr;
};

/// A method of tensors without arguments, looked up once.
class TensorMethod {
 public:
  TensorMethod(nb::handle tensor, const char* name)
      : name_(nb::steal(PyUnicode_InternFromString(name))), plain_(TorchFunction(tensor.attr(name)).plain()) {}

  nb::object operator()(nb::handle tensor) const {
    if (plain_ == nullptr) return tensor.attr(name_)();
    return TorchFunction::checked(plain_(tensor.ptr(), nullptr));
  }

 private:
  nb::object name_;
  PyCFunction plain_;
};

/// Made once by whoever comes first; threads may be several.
template <class Made>
class Once {
 public:
  template <class... Arguments>
  const Made& get(const Arguments&... arguments) {
    const Made* made = made_.load(std::memory_order_acquire);
    if (made == nullptr) made_.store(made = new Made(arguments...), std::memory_order_release);
    return *made;
  }

 private:
  std::atomic<const Made*> made_{nullptr};
};

nb::module_ torch_c() { return nb::module_::import_("torch._C"); }

/// What torch keeps private, another version may lack.
struct Recorders {
  TorchFunction is_tracing{attribute(torch_c(), "_is_tracing")};
  TorchFunction count_modes{attribute(torch_c(), "_len_torch_function_stack")};
};

struct TensorMethods {
  explicit TensorMethods(nb::handle tensor) : is_neg(tensor, "is_neg"), untyped_storage(tensor, "untyped_storage") {}

  TensorMethod is_neg, untyped_storage;
};

Once<Recorders> recorders;
Once<TensorMethods> tensor_methods;

/// Whether one of the modes that are active records the operators that are called.
bool is_recorded() {
  const nb::object proxy = attribute(attribute(torch_c(), "_TorchDispatchModeKey"), "PROXY");
  const nb::object operators = attribute(nb::module_::import_("torch"), "_ops");
  const auto is_active = [&](nb::handle mode_of) { return !mode_of.is_none() && !mode_of(proxy).is_none(); };
  return !proxy.is_none() && (is_active(attribute(torch_c(), "_get_dispatch_mode")) ||
                              is_active(attribute(operators, "_get_dispatch_mode_pre_dispatch")));
}

}  // namespace

void refuse_tracing(const char* op) {
  const Recorders& ask = recorders.get();
  if (!ask.is_tracing.is_true() && (!ask.count_modes.is_true() || !is_recorded())) return;
  throw std::runtime_error(std::string(op) +
                           ": torch is tracing, which does not record this call, must record torch.ops.nsa_kernel." +
                           op + " (import nsa_kernel.torch_ops)");
}

bool is_tensor_type(nb::handle type) {
  const int is_tensor = PyObject_IsSubclass(type.ptr(), nb::module_::import_("torch").attr("Tensor").ptr());
  if (is_tensor < 0) throw nb::python_error();
  return is_tensor != 0;
}

bool is_negated(nb::handle tensor) { return tensor_methods.get(tensor).is_neg(tensor).ptr() == Py_True; }

nb::object storage_of(nb::handle tensor) { return tensor_methods.get(tensor).untyped_storage(tensor); }

}  // namespace nsa_kernel::bindings
