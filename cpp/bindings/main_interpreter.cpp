// The extension's first function: nanobind's, with a check before all that nanobind does in an interpreter. The check
// is a step of the module's own, since Python 3.13 calls the function itself in the main interpreter.
#include <Python.h>

#include <vector>

extern "C" PyObject* nanobind_init();  // what NB_MODULE defines as PyInit__ext

namespace {

/// nanobind's calls use the state of the interpreter that imported the extension last, and that one may be gone. Python
/// itself refuses from 3.12 on, yet not where an interpreter shares the GIL of the main one.
int require_main_interpreter(PyObject*) {
  if (PyInterpreterState_GetID(PyInterpreterState_Get()) == 0) return 0;
  PyErr_SetString(PyExc_ImportError, "nsa_kernel: the interpreter is a subinterpreter, must be the main one");
  return -1;
}

}  // namespace

extern "C" __attribute__((visibility("default"))) PyObject* PyInit__ext() {
  PyObject* definition = nanobind_init();
  static std::vector<PyModuleDef_Slot> slots;
  if (definition && slots.empty()) {
    PyModuleDef_Slot*& nanobinds = reinterpret_cast<PyModuleDef*>(definition)->m_slots;
    slots.push_back({Py_mod_exec, reinterpret_cast<void*>(require_main_interpreter)});
    for (const PyModuleDef_Slot* slot = nanobinds; slot->slot != 0; ++slot) slots.push_back(*slot);
    slots.push_back({0, nullptr});
    nanobinds = slots.data();
  }
  return definition;
}
