// The Python names.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <limits>
#include <string>

#include "array.h"
#include "call.h"
#include "docs.h"
#include "draft_extend_arguments.h"
#include "error.h"
#include "indexer_arguments.h"
#include "nsa_kernel/info.h"
#include "plan.h"
#include "replay_arguments.h"
#include "signature.h"

namespace nb = nanobind;

namespace nsa_kernel::bindings {
namespace {

std::vector<Parameter> with_stream(std::vector<Parameter> parameters) {
  parameters.push_back(stream_parameter());
  return parameters;
}

// An op: its list, and what it calls.

struct DraftExtendOp {
  using Buffers = DraftExtendArguments;
  using Plan = DraftExtendPlan;
  static constexpr const auto& kArguments = kDraftExtendArguments;
  static constexpr const char* kFill = "fill_draft_extend_metadata";
  static constexpr const char* kPlan = "DraftExtendPlan";
  static constexpr const Docs& kFillDocs = kFillDraftExtendDocs;
  static constexpr const Docs& kPlanDocs = kDraftExtendPlanDocs;

  static void fill(const Buffers& buffers, Stream stream) {
    fill_draft_extend_metadata(buffers, buffers.variant, stream);
  }
  static Plan bind(const Buffers& buffers) { return Plan(buffers, buffers.variant); }
};

struct ReplayOp {
  using Buffers = Replay;
  using Plan = ReplayPlan;
  static constexpr const auto& kArguments = kReplayArguments;
  static constexpr const char* kFill = "fill_replay_metadata";
  static constexpr const char* kPlan = "ReplayPlan";
  static constexpr const Docs& kFillDocs = kFillReplayDocs;
  static constexpr const Docs& kPlanDocs = kReplayPlanDocs;

  static void fill(const Buffers& buffers, Stream stream) { fill_replay_metadata(buffers, stream); }
  static Plan bind(const Buffers& buffers) { return Plan(buffers); }
};

struct IndexerDecodeOp {
  using Buffers = IndexerDecode;
  using Plan = IndexerDecodePlan;
  static constexpr const auto& kArguments = kIndexerDecodeArguments;
  static constexpr const char* kFill = "fill_indexer_decode_metadata";
  static constexpr const char* kPlan = "IndexerDecodePlan";
  static constexpr const Docs& kFillDocs = kFillIndexerDecodeDocs;
  static constexpr const Docs& kPlanDocs = kIndexerDecodePlanDocs;

  static void fill(const Buffers& buffers, Stream stream) { fill_indexer_decode_metadata(buffers, stream); }
  static Plan bind(const Buffers& buffers) { return Plan(buffers); }
};

// Ops without a plan: their arrays are others each time.

struct IndexerPrefillOp {
  using Buffers = IndexerPrefill;
  static constexpr const auto& kArguments = kIndexerPrefillArguments;
  static constexpr const char* kFill = "fill_indexer_prefill_metadata";
  static constexpr const Docs& kFillDocs = kFillIndexerPrefillDocs;

  static void fill(const Buffers& buffers, Stream stream) { fill_indexer_prefill_metadata(buffers, stream); }
};

struct TokenRequestsOp {
  using Buffers = TokenRequests;
  static constexpr const auto& kArguments = kTokenRequestsArguments;
  static constexpr const char* kFill = "fill_token_requests";
  static constexpr const Docs& kFillDocs = kFillTokenRequestsDocs;

  static void fill(const Buffers& buffers, Stream stream) { fill_token_requests(buffers, stream); }
};

// A function: its name, its parameters, and a call with a value for each of them, null where none is given.

/// Fills an op's buffers.
template <class Op>
struct Fill {
  using Buffers = typename Op::Buffers;
  static constexpr const char* kName = Op::kFill;
  static constexpr const Docs& kDocs = Op::kFillDocs;
  static constexpr size_t kPositional = Op::kArguments.positional, kStream = Op::kArguments.kSize, kCount = kStream + 1;

  static std::vector<Parameter> parameters() { return with_stream(parameters_of<Buffers>(Op::kArguments)); }

  static nb::object call(PyObject* const* values) {
    const Call call(Op::kArguments, values, values[kStream]);
    Arguments arguments = call.arguments();
    const Buffers buffers = call.template read<Buffers>(arguments);
    const Stream stream = arguments.stream();
    without_gil([&] { Op::fill(buffers, stream); });
    return nb::none();
  }
};

/// The arguments that all functions of draft_extend share.
template <class... More>
constexpr auto drop_in_list(const More&... more) {
  return std::apply(
      [&](const auto& q, const auto& k, const auto& topk, const auto& expanded, const auto& clipped, const auto&...) {
        return argument_list(kDraftExtendArguments.op, 5 + sizeof...(more), q, k, topk, expanded, clipped, more...);
      },
      kDraftExtendArguments.entries);
}

/// The buffers, and the flags from which the original chooses a variant.
struct DropInArguments : DraftExtend {
  bool use_adaptive = true;
  bool use_optimized = true;

  Variant variant() const {
    return use_optimized ? Variant::optimized : use_adaptive ? Variant::adaptive : Variant::basic;
  }
};

struct FillAndWait {
  static constexpr auto kArguments =
      drop_in_list(optional("use_adaptive", &DropInArguments::use_adaptive,
                            "Without `use_optimized`, the variant `adaptive` rather than `basic`."),
                   optional("use_optimized", &DropInArguments::use_optimized, "The variant `optimized`."));
  static constexpr const char* kName = "fill_draft_extend_metadata_cuda";
  static constexpr const Docs& kDocs = kFillDraftExtendAndWaitDocs;
  static constexpr size_t kPositional = kArguments.positional, kStream = kArguments.kSize, kCount = kStream + 1;

  static std::vector<Parameter> parameters() { return with_stream(parameters_of<DropInArguments>(kArguments)); }

  static nb::object call(PyObject* const* values) {
    const Call call(kArguments, values, values[kStream]);
    Arguments arguments = call.arguments();
    const auto buffers = call.read<DropInArguments>(arguments);
    const Stream stream = arguments.stream();
    const int64_t tokens =
        without_gil([&] { return fill_draft_extend_metadata_and_count(buffers, buffers.variant(), stream); });
    const int64_t capacity = std::min(buffers.out_seqlens_expanded.size, buffers.out_nsa_cache_seqlens.size);
    if (tokens > capacity) {
      const bool clipped_is_shorter = buffers.out_seqlens_expanded.size > capacity;
      const std::string shorter = clipped_is_shorter ? "out_nsa_cache_seqlens" : "out_seqlens_expanded";
      const std::string message = std::string(kArguments.op) + ": " + shorter + " has " + std::to_string(capacity) +
                                  " elements, must have at least " + std::to_string(tokens) + ", the number of tokens";
      throw nb::value_error(message.c_str());
    }
    return nb::int_(tokens);
  }
};

template <Variant kVariant>
struct FillAndReturnCount {
  static constexpr auto kArguments = drop_in_list();
  static constexpr size_t kPositional = kArguments.positional, kStream = kArguments.kSize, kCount = kStream + 1;

  static std::vector<Parameter> parameters() { return with_stream(parameters_of<DraftExtend>(kArguments)); }

  static nb::object call(PyObject* const* values) {
    const Call call(kArguments, values, values[kStream]);
    Arguments arguments = call.arguments();
    auto buffers = call.template read<DraftExtend>(arguments);
    const Element count = one_element(values[0], values[3], buffers.device);
    buffers.out_num_tokens = arguments.output("out_num_tokens", count.array);
    const Stream stream = arguments.stream();
    without_gil([&] { fill_draft_extend_metadata(buffers, kVariant, stream); });
    return count.result();
  }
};

struct FillBasic : FillAndReturnCount<Variant::basic> {
  static constexpr const char* kName = "fill_draft_extend_metadata_cuda_basic";
  static constexpr const Docs& kDocs = kBasicDocs;
};

struct FillAdaptive : FillAndReturnCount<Variant::adaptive> {
  static constexpr const char* kName = "fill_draft_extend_metadata_cuda_adaptive";
  static constexpr const Docs& kDocs = kAdaptiveDocs;
};

struct FillOptimized : FillAndReturnCount<Variant::optimized> {
  static constexpr const char* kName = "fill_draft_extend_metadata_cuda_optimized";
  static constexpr const Docs& kDocs = kOptimizedDocs;
};

/// What takes no argument.
struct NoArguments {
  static constexpr size_t kPositional = 0, kCount = 1;
  static std::vector<Parameter> parameters() { return {}; }
};

struct IsAvailable : NoArguments {
  static constexpr const char* kName = "is_cuda_kernel_available";
  static constexpr const Docs& kDocs = kIsAvailableDocs;
  static nb::object call(PyObject* const*) { return nb::bool_(info().reason.empty()); }
};

struct KernelInfo : NoArguments {
  static constexpr const char* kName = "get_kernel_info";
  static constexpr const Docs& kDocs = kKernelInfoDocs;

  static nb::object call(PyObject* const*) {
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
};

struct LaunchEmpty {
  static constexpr const char* kName = "launch_empty_kernel";
  static constexpr const Docs& kDocs = kLaunchEmptyDocs;
  static constexpr size_t kPositional = 1, kCount = 2;

  static std::vector<Parameter> parameters() {
    return {stream_parameter("None for the legacy default stream, an int handle, or an object with `__cuda_stream__`."),
            {"device", "number", false, nb::int_(0), {}, "", "CUDA ordinal."}};
  }

  static nb::object call(PyObject* const* values) {
    const Arguments arguments(kName, nullptr, {}, values[0]);
    const int64_t index = values[1] == nullptr ? 0 : arguments.integer("device", values[1]);
    constexpr int kMost = std::numeric_limits<int>::max();
    if (index < 0 || index > kMost) {
      const std::string message =
          std::string(kName) + ": device is " + std::to_string(index) + ", must be from 0 to " + std::to_string(kMost);
      throw nb::value_error(message.c_str());
    }
    const Stream stream = arguments.stream();
    without_gil([&] { launch_empty_kernel({DeviceType::cuda, static_cast<int>(index)}, stream); });
    return nb::none();
  }
};

// The module.

/// Every callable, for `signatures`.
std::vector<const Signature*> all_signatures;

struct Signatures : NoArguments {
  static constexpr const char* kName = "signatures";
  static constexpr const Docs& kDocs = kSignaturesDocs;

  static nb::object call(PyObject* const*) {
    nb::dict rows;
    for (const Signature* signature : all_signatures) rows[signature->name()] = signature->row();
    return rows;
  }
};

template <class Function>
const Signature* signature_of = nullptr;

template <class Function>
PyObject* entry(PyObject*, PyObject* const* given, Py_ssize_t count, PyObject* names) noexcept {
  return guarded([&] {
    std::array<PyObject*, Function::kCount> values{};
    signature_of<Function>->place(given, count, names, values.data());
    return Function::call(values.data()).release().ptr();
  });
}

template <class Function>
void def(nb::module_& module) {
  signature_of<Function> =
      new Signature(Function::kName, Function::kPositional, Function::parameters(), Function::kDocs);
  all_signatures.push_back(signature_of<Function>);
  static const std::string doc = signature_of<Function>->doc("");
  static PyMethodDef method{Function::kName,
                            reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(entry<Function>)),
                            METH_FASTCALL | METH_KEYWORDS, doc.c_str()};
  // The public module, not this one, so that it is found there by name.
  const nb::object function = nb::steal(PyCFunction_NewEx(&method, nullptr, nb::str("nsa_kernel").ptr()));
  if (!function.is_valid()) throw nb::python_error();
  module.attr(Function::kName) = function;
}

template <class Op>
void def_op(nb::module_& module) {
  def<Fill<Op>>(module);
  module.attr(Op::kPlan) = PlanType<Op>::make();
  all_signatures.push_back(PlanType<Op>::signature);
  all_signatures.push_back(PlanType<Op>::run_signature);
}

}  // namespace

NB_MODULE(_ext, m) {
  nb::set_leak_warnings(false);  // a thread that still runs at exit may hold a plan
  m.attr("__version__") = version();
  def_cuda_error(m);
  def_op<DraftExtendOp>(m);
  def<FillAndWait>(m);
  m.attr("fill_draft_extend_metadata_inplace") = m.attr(FillAndWait::kName);
  def<FillBasic>(m);
  def<FillAdaptive>(m);
  def<FillOptimized>(m);
  def_op<ReplayOp>(m);
  def_op<IndexerDecodeOp>(m);
  def<Fill<IndexerPrefillOp>>(m);
  def<Fill<TokenRequestsOp>>(m);
  def<IsAvailable>(m);
  def<KernelInfo>(m);
  def<LaunchEmpty>(m);
  def<Signatures>(m);
}

}  // namespace nsa_kernel::bindings
