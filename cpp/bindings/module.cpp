// The Python names: signatures, docstrings and the exception.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>
#include <unistd.h>

#include <algorithm>
#include <limits>
#include <string>
#include <utility>

#include "array.h"
#include "docs.h"
#include "nsa_kernel/draft_extend.h"
#include "nsa_kernel/error.h"
#include "nsa_kernel/info.h"
#include "nsa_kernel/replay.h"
#include "text.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace nsa_kernel::bindings {
namespace {

constexpr const char* kDraftExtend = "fill_draft_extend_metadata";
constexpr const char* kReplay = "fill_replay_metadata";
constexpr const char* kLaunchEmpty = "launch_empty_kernel";

/// The value that a word stands for.
template <class T, size_t kWords>
T parse(const char* op, const char* name, nb::handle word, const std::pair<const char*, T> (&words)[kWords]) {
  const auto argument = [&] { return std::string(op) + ": " + name + " is "; };
  if (!PyUnicode_Check(word.ptr())) {
    throw nb::type_error((argument() + a_type(word) + ", must be a str").c_str());
  }
  for (const auto& [text, value] : words) {
    if (PyUnicode_CompareWithASCIIString(word.ptr(), text) == 0) return value;
  }
  std::string all;
  for (const auto& [text, value] : words) all += (all.empty() ? "'" : ", '") + std::string(text) + "'";
  throw nb::value_error((argument() + text_by(PyObject_Repr, word) + ", must be one of " + all).c_str());
}

constexpr std::pair<const char*, Variant> kVariants[] = {
    {"optimized", Variant::optimized}, {"adaptive", Variant::adaptive}, {"basic", Variant::basic}};

constexpr std::pair<const char*, Mode> kModes[] = {
    {"decode", Mode::decode}, {"target_verify", Mode::target_verify}, {"draft_extend", Mode::draft_extend}};

/// Lets other threads run Python.
class ReleasedGil {
 public:
  ReleasedGil() = default;
  ReleasedGil(const ReleasedGil&) = delete;
  ReleasedGil& operator=(const ReleasedGil&) = delete;

  /// Once the interpreter shuts down, Python before 3.14 ends a thread that asks for the GIL by unwinding its stack,
  /// which the frames below would answer by ending the process. Such a thread stops here, as it does in later versions.
  ~ReleasedGil() {
    try {
      PyEval_RestoreThread(state_);
    } catch (...) {
      for (;;) pause();
    }
  }

 private:
  PyThreadState* state_ = PyEval_SaveThread();
};

/// Does `work` while other threads run Python: it may wait for a stream that is full, or for the device, which may wait
/// for a callback in Python. The caller of the Python function holds the arrays meanwhile.
template <class Work>
auto without_gil(Work work) {
  const ReleasedGil released;
  return work();
}

/// A plan and what keeps its memory alive.
template <class Plan>
class Bound {
 public:
  /// `all` are the arguments that the views of `args` borrow from.
  template <size_t kCount>
  Bound(const char* op, Plan plan, Arguments& args, const nb::handle (&all)[kCount])
      : op_(op),
        plan_(std::move(plan)),
        device_(args.device()),
        source_(args.source()),
        imports_(args.take_imports()),
        held_(args.take_buffers()) {
    for (const nb::handle argument : all) held_.push_back(nb::borrow(argument));
  }

  Bound(const Bound&) = delete;
  Bound& operator=(const Bound&) = delete;

  /// To free a workspace is to wait for the device.
  ~Bound() {
    without_gil([&] { [[maybe_unused]] const Plan gone = std::move(plan_); });
  }

  void run(nb::handle stream) const {
    const Stream on = stream.is_none() ? source_.current(device_) : stream_handle(op_, stream);
    without_gil([&] { plan_.run(on); });
  }

  static int traverse(PyObject* self, visitproc visit, void* arg) {
    Py_VISIT(Py_TYPE(self));
    if (!nb::inst_ready(self)) return 0;
    for (const nb::object& held : nb::inst_ptr<Bound>(self)->held_) Py_VISIT(held.ptr());
    return 0;
  }

  /// Only an unreachable plan is cleared, so nothing can run it afterwards.
  static int clear(PyObject* self) {
    if (!nb::inst_ready(self)) return 0;
    auto* bound = nb::inst_ptr<Bound>(self);
    bound->held_.clear();
    bound->imports_.clear();
    return 0;
  }

  static inline PyType_Slot slots[] = {
      {Py_tp_traverse, reinterpret_cast<void*>(traverse)}, {Py_tp_clear, reinterpret_cast<void*>(clear)}, {0, nullptr}};

 private:
  const char* op_;
  Plan plan_;
  Device device_;
  StreamSource source_;
  std::vector<nb::ndarray<nb::ro>> imports_;
  std::vector<nb::object> held_;  ///< the arguments, and the buffers of some
};

// draft_extend.

DraftExtend draft_extend_buffers(Arguments& args, nb::handle extend_seq_lens, nb::handle seq_lens,
                                 nb::handle nsa_index_topk, nb::handle out_seqlens_expanded,
                                 nb::handle out_nsa_cache_seqlens, nb::handle out_num_tokens) {
  DraftExtend buffers;
  // Numbers before addresses: reading one may run Python code.
  buffers.nsa_index_topk = args.integer("nsa_index_topk", nsa_index_topk);
  buffers.extend_seq_lens = args.lengths("extend_seq_lens", extend_seq_lens);
  buffers.seq_lens = args.lengths("seq_lens", seq_lens);
  buffers.out_seqlens_expanded = args.output("out_seqlens_expanded", out_seqlens_expanded);
  buffers.out_nsa_cache_seqlens = args.output("out_nsa_cache_seqlens", out_nsa_cache_seqlens);
  if (!out_num_tokens.is_none()) buffers.out_num_tokens = args.output("out_num_tokens", out_num_tokens);
  buffers.device = args.device();
  return buffers;
}

void fill_draft_extend(nb::handle q, nb::handle k, nb::handle topk, nb::handle expanded, nb::handle clipped,
                       nb::handle num_tokens, nb::handle variant, nb::handle stream) {
  const nb::handle all[] = {q, k, expanded, clipped, num_tokens};
  Arguments args(kDraftExtend, all, stream);
  const DraftExtend buffers = draft_extend_buffers(args, q, k, topk, expanded, clipped, num_tokens);
  const Variant how = parse(kDraftExtend, "variant", variant, kVariants);
  const Stream on = args.stream();
  without_gil([&] { fill_draft_extend_metadata(buffers, how, on); });
}

int64_t fill_draft_extend_and_wait(nb::handle q, nb::handle k, nb::handle topk, nb::handle expanded, nb::handle clipped,
                                   nb::handle use_adaptive, nb::handle use_optimized, nb::handle stream) {
  const nb::handle all[] = {q, k, expanded, clipped};
  Arguments args(kDraftExtend, all, stream);
  const bool adaptive = args.flag("use_adaptive", use_adaptive);
  const bool optimized = args.flag("use_optimized", use_optimized);
  const DraftExtend buffers = draft_extend_buffers(args, q, k, topk, expanded, clipped, nb::none());
  const Variant variant = optimized ? Variant::optimized : adaptive ? Variant::adaptive : Variant::basic;
  const Stream on = args.stream();
  const int64_t tokens = without_gil([&] { return fill_draft_extend_metadata_and_count(buffers, variant, on); });
  const int64_t capacity = std::min(buffers.out_seqlens_expanded.size, buffers.out_nsa_cache_seqlens.size);
  if (tokens > capacity) {
    const bool clipped_is_shorter = buffers.out_seqlens_expanded.size > capacity;
    const std::string shorter = clipped_is_shorter ? "out_nsa_cache_seqlens" : "out_seqlens_expanded";
    const std::string message = std::string(kDraftExtend) + ": " + shorter + " has " + std::to_string(capacity) +
                                " elements, must have at least " + std::to_string(tokens) + ", the number of tokens";
    throw nb::value_error(message.c_str());
  }
  return tokens;
}

template <Variant kVariant>
nb::object fill_draft_extend_and_return_count(nb::handle q, nb::handle k, nb::handle topk, nb::handle expanded,
                                              nb::handle clipped, nb::handle stream) {
  const nb::handle all[] = {q, k, expanded, clipped};
  Arguments args(kDraftExtend, all, stream);
  DraftExtend buffers = draft_extend_buffers(args, q, k, topk, expanded, clipped, nb::none());
  const Element count = one_element(q, expanded, buffers.device);
  buffers.out_num_tokens = args.output("out_num_tokens", count.array);
  const Stream on = args.stream();
  without_gil([&] { fill_draft_extend_metadata(buffers, kVariant, on); });
  return count.result();
}

void new_draft_extend_plan(Bound<DraftExtendPlan>* self, nb::handle q, nb::handle k, nb::handle topk,
                           nb::handle expanded, nb::handle clipped, nb::handle num_tokens, nb::handle variant) {
  const nb::handle all[] = {q, k, expanded, clipped, num_tokens};
  Arguments args(kDraftExtend, all, nb::none());
  const DraftExtend buffers = draft_extend_buffers(args, q, k, topk, expanded, clipped, num_tokens);
  const Variant how = parse(kDraftExtend, "variant", variant, kVariants);
  DraftExtendPlan plan = without_gil([&] { return DraftExtendPlan(buffers, how); });
  new (self) Bound<DraftExtendPlan>(kDraftExtend, std::move(plan), args, all);
}

// replay.

/// The arguments of a refresh, as Python gives them.
struct ReplayArguments {
  nb::handle mode, seq_lens, nsa_index_topk, req_pool_indices, req_to_token, extend_seq_lens, num_draft_tokens,
      page_size, cache_seqlens, cu_seqlens_k, seqlens_expanded, nsa_cache_seqlens, nsa_cu_seqlens_k, page_table,
      real_page_table, ctx_lens_2d, num_tokens;
};

Replay replay_buffers(Arguments& args, const ReplayArguments& in) {
  const auto lengths = [&](const char* name, nb::handle array) {
    return array.is_none() ? LengthView{} : args.lengths(name, array);
  };
  const auto output = [&](const char* name, nb::handle array) {
    return array.is_none() ? View<int32_t>{} : args.output(name, array);
  };
  const auto output_table = [&](const char* name, nb::handle array) {
    return array.is_none() ? TableView<int32_t>{} : args.output_table(name, array);
  };
  Replay buffers;
  buffers.mode = parse(kReplay, "mode", in.mode, kModes);
  // Numbers before addresses: reading one may run Python code.
  buffers.nsa_index_topk = args.integer("nsa_index_topk", in.nsa_index_topk);
  if (!in.num_draft_tokens.is_none()) buffers.num_draft_tokens = args.integer("num_draft_tokens", in.num_draft_tokens);
  buffers.page_size = args.integer("page_size", in.page_size);
  buffers.seq_lens = args.lengths("seq_lens", in.seq_lens);
  buffers.req_pool_indices = lengths("req_pool_indices", in.req_pool_indices);
  if (!in.req_to_token.is_none()) buffers.req_to_token = args.table("req_to_token", in.req_to_token);
  buffers.extend_seq_lens = lengths("extend_seq_lens", in.extend_seq_lens);
  buffers.cache_seqlens = output("cache_seqlens", in.cache_seqlens);
  buffers.cu_seqlens_k = output("cu_seqlens_k", in.cu_seqlens_k);
  buffers.seqlens_expanded = output("seqlens_expanded", in.seqlens_expanded);
  buffers.nsa_cache_seqlens = output("nsa_cache_seqlens", in.nsa_cache_seqlens);
  buffers.nsa_cu_seqlens_k = output("nsa_cu_seqlens_k", in.nsa_cu_seqlens_k);
  buffers.page_table = output_table("page_table", in.page_table);
  buffers.real_page_table = output_table("real_page_table", in.real_page_table);
  buffers.ctx_lens_2d = output_table("ctx_lens_2d", in.ctx_lens_2d);
  buffers.num_tokens = output("num_tokens", in.num_tokens);
  buffers.device = args.device();
  return buffers;
}

template <size_t>
using Handle = nb::handle;

/// Defines the refresh, as a function and as a plan, over one handle for each of ReplayArguments.
template <size_t... kIndex, class... Extra>
void def_replay(nb::module_& m, nb::class_<Bound<ReplayPlan>>& plan, std::index_sequence<kIndex...>,
                const Extra&... arguments) {
  m.def(
      "fill_replay_metadata",
      [](Handle<kIndex>... in, nb::handle stream) {
        const nb::handle all[] = {in...};
        Arguments args(kReplay, all, stream);
        const Replay buffers = replay_buffers(args, ReplayArguments{in...});
        const Stream on = args.stream();
        without_gil([&] { fill_replay_metadata(buffers, on); });
      },
      arguments..., "stream"_a = nb::none(), nb::sig(kFillReplaySignature), kFillReplayDoc);
  plan.def(
      "__init__",
      [](Bound<ReplayPlan>* self, Handle<kIndex>... in) {
        const nb::handle all[] = {in...};
        Arguments args(kReplay, all, nb::none());
        ReplayPlan plan(replay_buffers(args, ReplayArguments{in...}));
        new (self) Bound<ReplayPlan>(kReplay, std::move(plan), args, all);
      },
      arguments..., nb::sig(kReplayPlanSignature));
}

// The rest.

nb::dict kernel_info() {
  const Info found = info();
  nb::dict variants;
  variants["basic"] = "prefix sum as its own launch, then a binary search for each token";
  variants["adaptive"] = "the same prefix sum, linear search up to " + std::to_string(kLinearSearchRequests) +
                         " requests, binary search above";
  variants["optimized"] = "one launch: every block scans the requests itself, no workspace";
  nb::list devices;
  for (const DeviceInfo& device : found.devices) {
    nb::dict entry;
    entry["name"] = device.name;
    entry["compute_capability"] = std::to_string(device.major) + "." + std::to_string(device.minor);
    entry["usable"] = device.usable;
    devices.append(entry);
  }
  const bool available = found.reason.empty();
  nb::dict result;
  result["available"] = available;
  result["backend"] = available ? "CUDA C++" : "CPU C++";
  result["variants"] = variants;
  result["default"] = "optimized";
  result["adaptive"] = true;
  result["binary_search_threshold"] = kLinearSearchRequests;
  result["block_size"] = kBlockSize;
  result["prefix_sum_fusion"] = true;
  result["version"] = found.version;
  result["cuda_version"] = found.cuda_version.empty() ? nb::none() : nb::object(nb::cast(found.cuda_version));
  result["architectures"] = found.architectures;
  result["devices"] = devices;
  if (!available) result["reason"] = found.reason;
  return result;
}

void launch_empty(nb::handle stream, nb::handle device) {
  const nb::handle all[] = {device};
  const Arguments args(kLaunchEmpty, all, stream);
  const int64_t index = args.integer("device", device);
  constexpr int kMost = std::numeric_limits<int>::max();
  if (index < 0 || index > kMost) {
    const std::string message = std::string(kLaunchEmpty) + ": device is " + std::to_string(index) +
                                ", must be from 0 to " + std::to_string(kMost);
    throw nb::value_error(message.c_str());
  }
  const Stream on = args.stream();
  without_gil([&] { launch_empty_kernel({DeviceType::cuda, static_cast<int>(index)}, on); });
}

/// Makes `CudaError` and has C++ errors raised as it.
void def_cuda_error(nb::module_& m) {
  const nb::object type =
      nb::steal(PyErr_NewExceptionWithDoc("nsa_kernel.CudaError", kCudaErrorDoc, PyExc_RuntimeError, nullptr));
  if (!type.is_valid()) throw nb::python_error();
  m.attr("CudaError") = type;
  nb::register_exception_translator(
      [](const std::exception_ptr& thrown, void* type) {
        try {
          std::rethrow_exception(thrown);
        } catch (const CudaError& error) {
          nb::object raised = nb::handle(static_cast<PyObject*>(type))(error.what());
          raised.attr("code") = error.code();
          PyErr_SetObject(static_cast<PyObject*>(type), raised.ptr());
        }
      },
      type.ptr());
}

}  // namespace

NB_MODULE(_ext, m) {
  nb::set_leak_warnings(false);  // a thread that still runs at exit may hold a plan
  m.attr("__version__") = version();
  def_cuda_error(m);

  m.def("fill_draft_extend_metadata", fill_draft_extend, "extend_seq_lens"_a.none(), "seq_lens"_a.none(),
        "nsa_index_topk"_a.none(), "out_seqlens_expanded"_a.none(), "out_nsa_cache_seqlens"_a.none(),
        "out_num_tokens"_a = nb::none(), nb::kw_only(), "variant"_a.none() = "optimized", "stream"_a = nb::none(),
        nb::sig(kFillDraftExtendSignature), kFillDraftExtendDoc);
  m.def("fill_draft_extend_metadata_cuda", fill_draft_extend_and_wait, "extend_seq_lens"_a.none(), "seq_lens"_a.none(),
        "nsa_index_topk"_a.none(), "out_seqlens_expanded"_a.none(), "out_nsa_cache_seqlens"_a.none(),
        "use_adaptive"_a.none() = true, "use_optimized"_a.none() = true, nb::kw_only(), "stream"_a = nb::none(),
        nb::sig(kFillDraftExtendCudaSignature), kFillDraftExtendCudaDoc);
  m.attr("fill_draft_extend_metadata_inplace") = m.attr("fill_draft_extend_metadata_cuda");
  const auto def_direct = [&](const char* name, auto function, const char* signature, const char* doc) {
    m.def(name, function, "extend_seq_lens"_a.none(), "seq_lens"_a.none(), "nsa_index_topk"_a.none(),
          "out_seqlens_expanded"_a.none(), "out_nsa_cache_seqlens"_a.none(), nb::kw_only(), "stream"_a = nb::none(),
          nb::sig(signature), doc);
  };
  def_direct("fill_draft_extend_metadata_cuda_basic", fill_draft_extend_and_return_count<Variant::basic>,
             kBasicSignature, kBasicDoc);
  def_direct("fill_draft_extend_metadata_cuda_adaptive", fill_draft_extend_and_return_count<Variant::adaptive>,
             kAdaptiveSignature, kAdaptiveDoc);
  def_direct("fill_draft_extend_metadata_cuda_optimized", fill_draft_extend_and_return_count<Variant::optimized>,
             kOptimizedSignature, kOptimizedDoc);

  nb::class_<Bound<DraftExtendPlan>>(m, "DraftExtendPlan", nb::type_slots(Bound<DraftExtendPlan>::slots),
                                     kDraftExtendPlanDoc)
      .def("__init__", new_draft_extend_plan, "extend_seq_lens"_a.none(), "seq_lens"_a.none(),
           "nsa_index_topk"_a.none(), "out_seqlens_expanded"_a.none(), "out_nsa_cache_seqlens"_a.none(),
           "out_num_tokens"_a = nb::none(), nb::kw_only(), "variant"_a.none() = "optimized",
           nb::sig(kDraftExtendPlanSignature))
      .def("run", &Bound<DraftExtendPlan>::run, "stream"_a = nb::none(), nb::sig(kRunSignature), kRunDoc);

  nb::class_<Bound<ReplayPlan>> replay_plan(m, "ReplayPlan", nb::type_slots(Bound<ReplayPlan>::slots), kReplayPlanDoc);
  replay_plan.def("run", &Bound<ReplayPlan>::run, "stream"_a = nb::none(), nb::sig(kRunSignature), kRunDoc);
  def_replay(m, replay_plan, std::make_index_sequence<sizeof(ReplayArguments) / sizeof(nb::handle)>(), "mode"_a.none(),
             nb::kw_only(), "seq_lens"_a.none(), "nsa_index_topk"_a.none(), "req_pool_indices"_a = nb::none(),
             "req_to_token"_a = nb::none(), "extend_seq_lens"_a = nb::none(), "num_draft_tokens"_a = nb::none(),
             "page_size"_a.none() = 1, "cache_seqlens"_a = nb::none(), "cu_seqlens_k"_a = nb::none(),
             "seqlens_expanded"_a = nb::none(), "nsa_cache_seqlens"_a = nb::none(), "nsa_cu_seqlens_k"_a = nb::none(),
             "page_table"_a = nb::none(), "real_page_table"_a = nb::none(), "ctx_lens_2d"_a = nb::none(),
             "num_tokens"_a = nb::none());

  m.def(
      "is_cuda_kernel_available", [] { return info().reason.empty(); }, nb::sig(kIsAvailableSignature),
      kIsAvailableDoc);
  m.def("get_kernel_info", kernel_info, nb::sig(kKernelInfoSignature), kKernelInfoDoc);
  m.def("launch_empty_kernel", launch_empty, "stream"_a = nb::none(), nb::kw_only(), "device"_a.none() = 0,
        nb::sig(kLaunchEmptySignature), kLaunchEmptyDoc);
}

}  // namespace nsa_kernel::bindings
