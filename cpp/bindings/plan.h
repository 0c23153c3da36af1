// The Python type of a plan.
#pragma once

#include <nanobind/nanobind.h>
#include <structmember.h>

#include <memory>
#include <string>
#include <utility>

#include "call.h"
#include "docs.h"
#include "error.h"
#include "signature.h"
#include "stream.h"
#include "torch.h"

namespace nsa_kernel::bindings {

/// A plan and what keeps its memory alive.
template <class Plan>
class Bound {
 public:
  /// The views of `plan` borrow from `arguments`, which are kept.
  Bound(const char* op, Plan plan, Arguments& arguments)
      : op_(op),
        plan_(std::move(plan)),
        device_(arguments.device()),
        source_(arguments.source()),
        has_torch_(arguments.has_torch()),
        held_(arguments.take_held()) {}

  Bound(const Bound&) = delete;
  Bound& operator=(const Bound&) = delete;

  /// To free a workspace is to wait for the device.
  ~Bound() {
    without_gil([&] { [[maybe_unused]] const Plan gone = std::move(plan_); });
  }

  /// `stream` may be null.
  void run(nanobind::handle stream) const {
    if (has_torch_) refuse_tracing(op_);
    const bool is_given = stream.is_valid() && !stream.is_none();
    const Stream on = is_given ? stream_handle(op_, stream) : source_.current(device_);
    without_gil([&] { plan_.run(on); });
  }

  int traverse(visitproc visit, void* arg) const {
    for (const nanobind::object& held : held_.objects) Py_VISIT(held.ptr());
    return 0;
  }

 private:
  const char* op_;
  Plan plan_;
  Device device_;
  StreamSource source_;
  bool has_torch_;
  HeldArrays held_;
};

/// The type of an op's plans. A plan is bound where it is made, in `__new__`, so that there is none without its arrays.
template <class Op>
class PlanType {
 public:
  static constexpr const char* kName = Op::kPlan;

  static nanobind::object make() {
    signature = new Signature(kName, Op::kArguments.positional, parameters_of<typename Op::Buffers>(Op::kArguments),
                              Op::kPlanDocs);
    static const std::string run_name = std::string(kName) + ".run";
    run_signature = new Signature(run_name.c_str(), 1, {stream_parameter()}, kRunDocs);
    static const std::string doc = signature->doc(""), run_doc = run_signature->doc("$self");
    static const std::string full_name = "nsa_kernel." + std::string(kName);
    static PyMethodDef methods[] = {{"run", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(run)),
                                     METH_FASTCALL | METH_KEYWORDS, run_doc.c_str()},
                                    {nullptr, nullptr, 0, nullptr}};
    static PyMemberDef members[] = {
        {"__weaklistoffset__", T_PYSSIZET, offsetof(Object, weak_references), READONLY, nullptr},
        {nullptr, 0, 0, 0, nullptr}};
    static PyType_Slot slots[] = {{Py_tp_new, reinterpret_cast<void*>(create)},
                                  {Py_tp_init, reinterpret_cast<void*>(init)},
                                  {Py_tp_dealloc, reinterpret_cast<void*>(dealloc)},
                                  {Py_tp_traverse, reinterpret_cast<void*>(traverse)},
                                  {Py_tp_clear, reinterpret_cast<void*>(clear)},
                                  {Py_tp_methods, methods},
                                  {Py_tp_members, members},
                                  {Py_tp_doc, const_cast<char*>(doc.c_str())},
                                  {0, nullptr}};
    static PyType_Spec spec = {full_name.c_str(), sizeof(Object), 0,
                               Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC, slots};
    nanobind::object type = nanobind::steal(PyType_FromSpec(&spec));
    if (!type.is_valid()) throw nanobind::python_error();
    return type;
  }

  static inline const Signature* signature = nullptr;
  static inline const Signature* run_signature = nullptr;

 private:
  using Held = Bound<typename Op::Plan>;

  struct Object {
    PyObject_HEAD PyObject* weak_references;
    Held* bound;  ///< null once the plan is being collected
  };

  static Held*& bound(PyObject* self) { return reinterpret_cast<Object*>(self)->bound; }

  static PyObject* create(PyTypeObject* type, PyObject* given, PyObject* by_name) noexcept {
    return guarded([&]() -> PyObject* {
      std::array<PyObject*, Op::kArguments.kSize> values{};
      signature->place(given, by_name, values.data());
      const Call call(Op::kArguments, values.data());
      Arguments arguments = call.arguments(true);
      const auto buffers = call.template read<typename Op::Buffers>(arguments);
      auto plan = without_gil([&] { return Op::bind(buffers); });
      auto made = std::make_unique<Held>(Op::kArguments.op, std::move(plan), arguments);
      PyObject* self = reinterpret_cast<allocfunc>(PyType_GetSlot(type, Py_tp_alloc))(type, 0);
      if (self != nullptr) bound(self) = made.release();
      return self;
    });
  }

  /// Takes what `__new__` took, also from a subclass that hands its arguments on.
  static int init(PyObject*, PyObject*, PyObject*) { return 0; }

  static void dealloc(PyObject* self) {
    PyTypeObject* type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    if (reinterpret_cast<Object*>(self)->weak_references != nullptr) PyObject_ClearWeakRefs(self);
    delete bound(self);
    reinterpret_cast<freefunc>(PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF(type);
  }

  static int traverse(PyObject* self, visitproc visit, void* arg) {
    Py_VISIT(Py_TYPE(self));
    return bound(self) == nullptr ? 0 : bound(self)->traverse(visit, arg);
  }

  static int clear(PyObject* self) {
    delete std::exchange(bound(self), nullptr);
    return 0;
  }

  static PyObject* run(PyObject* self, PyObject* const* given, Py_ssize_t count, PyObject* names) noexcept {
    return guarded([&]() -> PyObject* {
      PyObject* stream = nullptr;
      if (count != 0 || names != nullptr) run_signature->place(given, count, names, &stream);
      if (bound(self) == nullptr)
        throw std::runtime_error(run_signature->name() + std::string(": the plan is being collected, must not run"));
      bound(self)->run(stream);
      Py_RETURN_NONE;
    });
  }
};

}  // namespace nsa_kernel::bindings
