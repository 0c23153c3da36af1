#include "array.h"

#include <algorithm>
#include <array>
#include <atomic>

#include "attribute.h"
#include "text.h"
#include "torch.h"

namespace nb = nanobind;

namespace nsa_kernel::bindings {
namespace {

using nb::dlpack::dltensor;

constexpr int32_t kDlCpu = 1, kDlCuda = 2, kDlCudaHost = 3, kDlCudaManaged = 13;
constexpr nb::dlpack::dtype kInt32 = nb::dtype<int32_t>();
constexpr nb::dlpack::dtype kInt64 = nb::dtype<int64_t>();

/// The exchange table that a type carries, or null.
const ExchangeTable* look_up_table(PyTypeObject* type) {
  const nb::object capsule = attribute(nb::handle(reinterpret_cast<PyObject*>(type)), "__dlpack_c_exchange_api__");
  if (!PyCapsule_IsValid(capsule.ptr(), "dlpack_exchange_api")) return nullptr;
  auto table = static_cast<const ExchangeTable*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
  while (table != nullptr && table->major != kDlpackMajor) table = table->previous;
  return table != nullptr && table->borrow_from_object != nullptr ? table : nullptr;
}

/// torch's stand-ins for tensors state an address, counted from null.
bool is_fake(nb::handle type) {
  return package_of(type) == "torch" && utf8(nb::type_name(type)) == "torch._subclasses.fake_tensor.FakeTensor";
}

/// Whether a type exports as NumPy's arrays do: it is theirs, or inherits it.
bool is_numpy(nb::handle type) {
  return package_of(attribute(attribute(type, "__dlpack__"), "__objclass__")) == "numpy";
}

/// What gives the tensor that holds the elements of one of torch's that hold none; null for other types.
const char* unwrapping(nb::handle type) {
  if (framework_of(type) != Framework::torch) return nullptr;
  if (!attribute(type, "to_local").is_none()) return ".to_local()";
  return utf8(nb::type_name(type)).find("AsyncCollectiveTensor") != std::string::npos ? ".wait()" : nullptr;
}

/// What is known of a type once it has been met.
struct TypeFacts {
  const ExchangeTable* table = nullptr;
  Framework framework = Framework::other;
  const char* unwrapping = nullptr;
  bool is_fake = false;      ///< its arrays have no memory
  bool is_buffer = false;    ///< it has a buffer and no DLPack
  bool is_subclass = false;  ///< of torch's tensors
  bool has_storage = false;  ///< its arrays are tensors, views of torch's storages
  bool is_numpy = false;     ///< its arrays are on the CPU, like buffers, and own their memory or hold who does

  /// JAX's arrays are immutable, which not every export says.
  bool is_jax() const { return framework == Framework::jax; }
};

/// The facts of a few types, found by their address; a full cache just looks again.
class TypeCache {
 public:
  TypeFacts of(PyTypeObject* type) {
    for (Entry& entry : entries_) {
      PyTypeObject* known = entry.type.load(std::memory_order_acquire);
      if (known == type) return entry.facts;
      if (known == nullptr) break;
    }
    return meet(type);
  }

 private:
  struct Entry {
    std::atomic<PyTypeObject*> type{nullptr};
    TypeFacts facts;
  };

  [[gnu::noinline]] TypeFacts meet(PyTypeObject* type) {
    const nb::handle handle = reinterpret_cast<PyObject*>(type);
    TypeFacts facts{look_up_table(type), framework_of(handle)};
    facts.unwrapping = unwrapping(handle);
    facts.is_fake = is_fake(handle);
    facts.is_buffer = PyType_GetSlot(type, Py_bf_getbuffer) != nullptr && attribute(handle, "__dlpack__").is_none();
    facts.has_storage = facts.framework == Framework::torch && is_tensor_type(handle);
    facts.is_subclass = facts.has_storage && utf8(nb::type_name(handle)) != "torch.Tensor";
    facts.is_numpy = is_numpy(handle);
    add(type, facts);
    return facts;
  }

  void add(PyTypeObject* type, TypeFacts facts) {
    const nb::ft_lock_guard lock(mutex_);
    if (used_ == entries_.size()) return;
    for (size_t i = 0; i < used_; ++i) {
      if (entries_[i].type.load(std::memory_order_relaxed) == type) return;
    }
    Py_INCREF(reinterpret_cast<PyObject*>(type));  // so that its address is never another type's
    entries_[used_].facts = facts;
    entries_[used_++].type.store(type, std::memory_order_release);
  }

  nb::ft_mutex mutex_;
  size_t used_ = 0;
  std::array<Entry, 16> entries_;
};

TypeCache types;

std::string dtype_name(nb::dlpack::dtype dtype) {
  // As DLPack numbers them. The first need their bits behind them.
  const char* const names[] = {"int",
                               "uint",
                               "float",
                               "opaque",
                               "bfloat",
                               "complex",
                               "bool",
                               "float8_e3m4",
                               "float8_e4m3",
                               "float8_e4m3b11fnuz",
                               "float8_e4m3fn",
                               "float8_e4m3fnuz",
                               "float8_e5m2",
                               "float8_e5m2fnuz",
                               "float8_e8m0fnu",
                               "float6_e2m3fn",
                               "float6_e3m2fn",
                               "float4_e2m1fn"};
  constexpr uint8_t kBool = 6;
  std::string name =
      dtype.code < std::size(names) ? names[dtype.code] : "dtype code " + std::to_string(dtype.code) + ", ";
  if (dtype.code < kBool || dtype.code >= std::size(names)) name += std::to_string(dtype.bits);
  return dtype.lanes == 1 ? name : name + "x" + std::to_string(dtype.lanes);
}

std::string device_name(Device device) {
  return device.type == DeviceType::cpu ? "cpu" : "cuda:" + std::to_string(device.index);
}

std::string is_a(nb::handle value) { return "is " + a_type(value); }

std::string first_line(const nb::python_error& error) {
  const std::string text = text_by(PyObject_Str, error.value());
  return text.substr(0, text.find('\n'));
}

/// The text of the Python error that is set, which it clears.
std::string take_error() {
  if (!PyErr_Occurred()) return "no reason was given";
  nb::python_error error;
  return first_line(error);
}

/// What `__dlpack__` gives, asked with `options`.
nb::object export_with(nb::handle array, const nb::dict& options) {
  const nb::object method = array.attr("__dlpack__");
  try {
    return method(**options, nb::arg("max_version") = nb::make_tuple(kDlpackMajor, 0));
  } catch (nb::python_error& error) {
    if (!error.matches(PyExc_TypeError)) throw;  // a producer from before max_version
  }
  return method(**options);
}

/// The stream to name in an export. Work is enqueued in stream order, so nothing has to be synchronized for it; JAX has
/// no stream that its users could order work on, so it is told `stream` and makes that wait.
int64_t export_stream(Stream stream, bool is_jax) {
  constexpr int64_t kNoSynchronization = -1, kLegacy = 1;  // the protocol has no 0
  return !is_jax ? kNoSynchronization : stream == nullptr ? kLegacy : reinterpret_cast<int64_t>(stream);
}

/// The device that `__dlpack_device__` names; the CPU for arrays that have none, such as a memoryview.
std::pair<int32_t, int32_t> dlpack_device(nb::handle array) {
  if (attribute(array, "__dlpack_device__").is_none()) return {kDlCpu, 0};
  const nb::object device = array.attr("__dlpack_device__")();
  return {nb::cast<int32_t>(nb::int_(device[0])), nb::cast<int32_t>(nb::int_(device[1]))};
}

}  // namespace

/// One array as its producer states it.
struct Arguments::Raw {
  void* data;
  nb::dlpack::dtype dtype;
  nb::dlpack::device device;
  int ndim;
  const int64_t* shape;
  const int64_t* strides;
};

/// One array whose dtype, rank, device and alignment fit. One dimension is one row.
struct Arguments::Tensor {
  void* data;
  bool is_int64;
  int64_t rows;
  int64_t cols;
  int64_t row_stride;
  int64_t stride;
};

Arguments::Arguments(const char* op, PyObject* const* values, std::span<const size_t> arrays, nb::handle stream,
                     bool is_kept)
    : op_(op),
      values_(values),
      arrays_(arrays),
      is_kept_(is_kept),
      given_stream_(stream.is_valid() && !stream.is_none()) {
  if (given_stream_) stream_ = stream_handle(op, stream);
}

void Arguments::refuse(const char* name, const std::string& what) const {
  throw nb::type_error((std::string(op_) + ": " + name + " " + what).c_str());
}

void Arguments::refuse_export(const char* name, nb::handle array, const std::string& reason) const {
  refuse(name, is_a(array) + " that cannot be exported (" + reason + "), must be an array that exports DLPack");
}

int64_t Arguments::integer(const char* name, nb::handle value) const {
  const nb::object index = nb::steal(PyNumber_Index(value.ptr()));
  if (!index.is_valid()) {
    if (!PyErr_ExceptionMatches(PyExc_Exception)) throw nb::python_error();
    const bool has_none = PyErr_ExceptionMatches(PyExc_TypeError);
    const std::string reason = take_error();
    refuse(name, is_a(value) + (has_none ? "" : " whose value cannot be had (" + reason + ")") + ", must be an int");
  }
  int overflow = 0;
  const int64_t result = PyLong_AsLongLongAndOverflow(index.ptr(), &overflow);
  if (overflow != 0) {
    throw nb::value_error(
        (std::string(op_) + ": " + name + " is " + text_by(PyObject_Repr, index) + ", must fit in 64 bits").c_str());
  }
  return result;
}

bool Arguments::flag(const char* name, nb::handle value) const {
  const int truth = PyObject_IsTrue(value.ptr());
  if (truth >= 0) return truth != 0;
  if (!PyErr_ExceptionMatches(PyExc_Exception)) throw nb::python_error();
  const std::string reason = take_error();
  refuse(name, is_a(value) + " whose truth cannot be had (" + reason + "), must be a bool");
}

void Arguments::check_str(const char* name, nb::handle value) const {
  if (!PyUnicode_Check(value.ptr())) refuse(name, is_a(value) + ", must be a str");
}

void Arguments::refuse_word(const char* name, nb::handle value, const std::string& all) const {
  throw nb::value_error(
      (std::string(op_) + ": " + name + " is " + text_by(PyObject_Repr, value) + ", must be one of " + all).c_str());
}

Stream Arguments::stream() const { return given_stream_ ? stream_ : source_.current(device_); }

void Arguments::find_source() {
  for (const size_t i : arrays_) {
    if (values_[i] == nullptr || values_[i] == Py_None) continue;
    const TypeFacts facts = types.of(Py_TYPE(values_[i]));
    source_.offer(facts.framework, facts.table);
  }
}

void Arguments::refuse_device(const char* name, Device device) const {
  throw nb::value_error((std::string(op_) + ": " + name + " is on " + device_name(device) + ", must be on " +
                         device_name(device_) + " like " + first_name_)
                            .c_str());
}

inline void Arguments::share_device(const char* name, Device device) {
  if (first_name_ == nullptr) {
    first_name_ = name;
    device_ = device;
  } else if (device != device_) {
    refuse_device(name, device);
  }
}

/// The capsule that the array exports; the array itself where it exports none.
nb::object Arguments::exported(const char* name, nb::handle array, bool is_jax) {
  try {
    const auto [kind, index] = dlpack_device(array);
    if (attribute(array, "__dlpack__").is_none()) return nb::borrow(array);
    nb::dict options;
    if (kind == kDlCuda || kind == kDlCudaManaged) {  // no stream matters on the CPU
      if (!given_stream_) find_source();
      Stream stream = stream_;
      if (is_jax && !given_stream_) stream = source_.current({DeviceType::cuda, index});
      options["stream"] = export_stream(stream, is_jax);
    }
    nb::object capsule = export_with(array, options);
    if (PyCapsule_CheckExact(capsule.ptr())) return capsule;
    refuse_export(name, array, "__dlpack__ gives " + a_type(capsule));
  } catch (nb::python_error& error) {
    if (!error.matches(PyExc_Exception)) throw;
    refuse_export(name, array, first_line(error));
  } catch (const nb::cast_error&) {
    refuse(name, is_a(array) + " whose device is not a pair of ints, must be an array that exports DLPack");
  }
}

/// The layout of a capsule of another major version is not known.
void Arguments::check_version(const char* name, nb::handle source) const {
  constexpr const char* kVersioned = "dltensor_versioned";
  if (!PyCapsule_IsValid(source.ptr(), kVersioned)) return;
  const auto* tensor = static_cast<const ManagedTensor*>(PyCapsule_GetPointer(source.ptr(), kVersioned));
  if (tensor->major == kDlpackMajor) return;
  refuse(name, "is of DLPack version " + std::to_string(tensor->major) + ", must be of version " +
                   std::to_string(kDlpackMajor));
}

Arguments::Raw Arguments::imported(const char* name, nb::handle array, bool writable) {
  nb::object source = nb::borrow(array);
  const TypeFacts facts = types.of(Py_TYPE(array.ptr()));
  if (facts.is_buffer) {
    // Some buffers state no strides; a memoryview adds them.
    source = nb::steal(PyMemoryView_FromObject(array.ptr()));
    if (!source.is_valid()) refuse_export(name, array, take_error());
  } else if (!facts.is_numpy && !PyCapsule_CheckExact(array.ptr())) {
    source = exported(name, array, facts.is_jax());
  }
  check_version(name, source);
  nb::ndarray<> writable_array;
  nb::ndarray<nb::ro> result;
  if (writable && nb::try_cast(source, writable_array, false)) {
    result = nb::ndarray<nb::ro>(writable_array);
  } else if (!nb::try_cast(source, result, false)) {
    if (facts.is_numpy) exported(name, array, false);  // raises with the reason that NumPy gives
    refuse(name, is_a(array) + ", must be an array that exports DLPack");
  } else if (writable) {
    refuse(name, "is read-only, must be writable");
  }
  // A plan in a cycle with an array is collected only if all that it holds of the array is seen: an import is not.
  if (facts.is_buffer) {
    held_.objects.push_back(source);
  } else if (!facts.is_numpy) {
    held_.imports.push_back(result);
  }
  being_read_ = result;
  return {const_cast<void*>(result.data()), result.dtype(),     {result.device_type(), result.device_id()},
          static_cast<int>(result.ndim()),  result.shape_ptr(), result.stride_ptr()};
}

inline Arguments::Raw Arguments::borrowed(const char* name, nb::handle array, const ExchangeTable& table) const {
  dltensor tensor;
  if (table.borrow_from_object(array.ptr(), &tensor) != 0) refuse_export(name, array, take_error());
  return {static_cast<char*>(tensor.data) + tensor.byte_offset,
          tensor.dtype,
          tensor.device,
          tensor.ndim,
          tensor.shape,
          tensor.strides};
}

Arguments::Tensor Arguments::read(const char* name, nb::handle array, int ndim, int max_ndim, bool writable) {
  const TypeFacts facts = types.of(Py_TYPE(array.ptr()));
  if (facts.framework == Framework::torch && !has_torch_) {
    refuse_tracing(op_);
    has_torch_ = true;
  }
  if (facts.unwrapping != nullptr) {
    refuse(name, is_a(array) + ", which has no memory of its own, must be the tensor that holds the elements (" +
                     facts.unwrapping + ")");
  }
  if (writable && facts.is_jax()) refuse(name, "is a JAX array, which is immutable, must be writable");
  const Raw raw = facts.table != nullptr ? borrowed(name, array, *facts.table) : imported(name, array, writable);
  const bool int64 = raw.dtype == kInt64 && ndim == 1 && !writable;
  if (raw.dtype != kInt32 && !int64) {
    refuse(name,
           "has dtype " + dtype_name(raw.dtype) + ", must be int32" + (ndim == 1 && !writable ? " or int64" : ""));
  }
  if (raw.ndim < ndim || raw.ndim > max_ndim) {
    refuse(name, "has " + std::to_string(raw.ndim) + " dimensions, must have " + std::to_string(ndim) +
                     (max_ndim > ndim ? " or " + std::to_string(max_ndim) : ""));
  }
  ndim = raw.ndim;
  Device device;
  switch (raw.device.device_type) {
    case kDlCpu:
    case kDlCudaHost: break;
    case kDlCuda:
    case kDlCudaManaged: device = {DeviceType::cuda, raw.device.device_id}; break;
    default:
      refuse(name, "is on a device of DLPack type " + std::to_string(raw.device.device_type) +
                       ", must be on the CPU or a CUDA device");
  }

  Tensor tensor;
  tensor.is_int64 = int64;
  tensor.rows = ndim == 2 ? raw.shape[0] : 1;
  tensor.cols = raw.shape[ndim - 1];
  const bool empty = tensor.rows <= 0 || tensor.cols <= 0;
  // A stride means something only where there is a next element.
  const bool has_strides = raw.strides != nullptr && !empty;
  tensor.stride = has_strides && tensor.cols > 1 ? raw.strides[ndim - 1] : 1;
  tensor.row_stride = has_strides && tensor.rows > 1 ? raw.strides[0] : std::max<int64_t>(tensor.cols, 1);
  alignas(8) static int32_t nothing;  // the address of an empty array, so that it still counts as given
  tensor.data = empty ? &nothing : raw.data;
  // Nothing lives on the first pages; an address there is an offset from null.
  constexpr uintptr_t kFirstPages = 65536;
  if (facts.is_fake || reinterpret_cast<uintptr_t>(tensor.data) < kFirstPages) {
    if (!facts.is_fake && facts.is_subclass) {
      refuse(name, is_a(array) + " without memory of its own, must be the tensor that it wraps");
    }
    refuse(name, "has no memory, as a fake or meta tensor, must be a real array");
  }
  if (reinterpret_cast<uintptr_t>(tensor.data) % (int64 ? 8 : 4) != 0) {
    refuse(name, "starts at an address that is not a multiple of its element size, must be aligned");
  }
  share_device(name, device);
  if (facts.table != nullptr) source_.offer(facts.framework, facts.table);
  if (is_kept_) {
    if (facts.has_storage) keep_storage(name, array);
    held_.objects.push_back(nb::borrow(array));
  }
  return tensor;
}

/// A tensor can be given another storage, and an export holds the tensor alone.
void Arguments::keep_storage(const char* name, nb::handle tensor) {
  if (is_negated(tensor)) {
    refuse(name, "is a view whose elements are negated as they are read, must be resolved (.resolve_neg())");
  }
  held_.objects.push_back(storage_of(tensor));
}

LengthView Arguments::lengths(const char* name, nb::handle array) {
  const Tensor tensor = read(name, array, 1, 1, false);
  if (tensor.is_int64) return {static_cast<const int64_t*>(tensor.data), tensor.cols, tensor.stride};
  return {static_cast<const int32_t*>(tensor.data), tensor.cols, tensor.stride};
}

View<int32_t> Arguments::output(const char* name, nb::handle array) {
  const Tensor tensor = read(name, array, 1, 1, true);
  if (tensor.stride != 1) refuse(name, "has stride " + std::to_string(tensor.stride) + ", must be contiguous");
  return {static_cast<int32_t*>(tensor.data), tensor.cols};
}

FlatView Arguments::flat_output(const char* name, nb::handle array) {
  const Tensor tensor = read(name, array, 1, 2, true);
  const bool is_dense = tensor.rows <= 1 || tensor.row_stride == tensor.cols;
  if (tensor.stride != 1 || !is_dense) {
    refuse(name, "has strides " + std::to_string(tensor.row_stride) + " and " + std::to_string(tensor.stride) +
                     ", must be contiguous");
  }
  return {{static_cast<int32_t*>(tensor.data), tensor.rows * tensor.cols}};
}

TableView<int32_t> Arguments::any_table(const char* name, nb::handle array, bool writable) {
  const Tensor tensor = read(name, array, 2, 2, writable);
  if (tensor.stride != 1) {
    refuse(name, "has stride " + std::to_string(tensor.stride) + " in its last dimension, must be contiguous there");
  }
  return {static_cast<int32_t*>(tensor.data), tensor.rows, tensor.cols, tensor.row_stride};
}

TableView<const int32_t> Arguments::table(const char* name, nb::handle array) {
  const TableView<int32_t> view = any_table(name, array, false);
  return {view.data, view.rows, view.cols, view.row_stride};
}

TableView<int32_t> Arguments::output_table(const char* name, nb::handle array) { return any_table(name, array, true); }

namespace {

struct AllocationError {
  std::string message;
};

/// A one-element int32 array through an exchange table.
nb::object allocated(const ExchangeTable& table, Device device) {
  int64_t shape = 1;
  dltensor prototype;
  prototype.device = {device.type == DeviceType::cuda ? kDlCuda : kDlCpu, device.index};
  prototype.ndim = 1;
  prototype.dtype = kInt32;
  prototype.shape = &shape;
  ManagedTensor* tensor = nullptr;
  AllocationError error;
  const auto set_error = [](void* context, const char*, const char* message) {
    static_cast<AllocationError*>(context)->message = message != nullptr ? message : "";
  };
  if (table.allocate(&prototype, &tensor, &error, set_error) != 0) {
    PyErr_Clear();
    throw std::runtime_error("cannot allocate an array of one element: " + error.message);
  }
  void* object = nullptr;
  if (table.managed_to_object(tensor, &object) != 0) throw nb::python_error();
  return nb::steal(static_cast<PyObject*>(object));
}

/// The same through torch before 2.10, which has no table.
nb::object allocated_by_torch(Device device) {
  const nb::module_ torch = nb::module_::import_("torch");
  return torch.attr("empty")(1, nb::arg("dtype") = torch.attr("int32"),
                             nb::arg("device") = device_name(device).c_str());
}

nb::object allocated_by_package(const char* package, Device device) {
  const nb::module_ module = nb::module_::import_(package);
  if (device.type == DeviceType::cpu) return module.attr("empty")(1, nb::arg("dtype") = "int32");
  const nb::object scope = module.attr("cuda").attr("Device")(device.index);
  scope.attr("__enter__")();
  const auto leave = [&] { scope.attr("__exit__")(nb::none(), nb::none(), nb::none()); };
  try {
    const nb::object array = module.attr("empty")(1, nb::arg("dtype") = "int32");
    leave();
    return array;
  } catch (nb::python_error&) {
    leave();
    throw;
  }
}

}  // namespace

Element one_element(nb::handle like, nb::handle writable, Device device) {
  const TypeFacts facts = types.of(Py_TYPE(like.ptr()));
  if (facts.is_jax()) return {one_element(writable, writable, device).array, true};
  const ExchangeTable* table = facts.table;
  if (table != nullptr && table->allocate != nullptr && table->managed_to_object != nullptr) {
    return {allocated(*table, device)};
  }
  if (facts.framework == Framework::torch) return {allocated_by_torch(device)};
  return {allocated_by_package(device.type == DeviceType::cpu ? "numpy" : "cupy", device)};
}

nb::object Element::result() const {
  if (!to_jax) return array;
  return nb::module_::import_("jax").attr("dlpack").attr("from_dlpack")(array);
}

}  // namespace nsa_kernel::bindings
