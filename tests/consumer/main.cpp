// The ops through the public C++ API, on the CPU and on every usable GPU. Exit status 1 on a wrong value.
#include <nsa_kernel/draft_extend.h>
#include <nsa_kernel/error.h>
#include <nsa_kernel/indexer.h>
#include <nsa_kernel/info.h>
#include <nsa_kernel/replay.h>
#include <nsa_kernel/types.h>

#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <stdexcept>
#include <string>
#include <vector>

#ifdef CONSUMER_CUDA
#include <cuda_runtime.h>
#endif

using nsa_kernel::Device;
using nsa_kernel::DeviceType;

namespace {

int failures = 0;

/// Words that the device and the host can read.
class Words {
 public:
  Words(Device device, const std::vector<int32_t>& values) : device_(device), size_(values.size()) {
#ifdef CONSUMER_CUDA
    if (device.type == DeviceType::cuda && cudaMallocManaged(&data_, size_ * sizeof(int32_t)) != cudaSuccess) {
      throw std::runtime_error("cannot allocate GPU memory");
    }
#endif
    if (device.type == DeviceType::cpu) data_ = static_cast<int32_t*>(std::malloc(size_ * sizeof(int32_t)));
    for (size_t i = 0; i < size_; ++i) data_[i] = values[i];
  }
  Words(Device device, size_t size) : Words(device, std::vector<int32_t>(size, -1)) {}
  Words(const Words&) = delete;
  ~Words() {
#ifdef CONSUMER_CUDA
    if (device_.type == DeviceType::cuda) cudaFree(data_);
#endif
    if (device_.type == DeviceType::cpu) std::free(data_);
  }

  nsa_kernel::LengthView lengths() const { return {data_, static_cast<int64_t>(size_)}; }
  nsa_kernel::View<int32_t> view() const { return {data_, static_cast<int64_t>(size_)}; }
  template <class T>
  nsa_kernel::TableView<T> table(int64_t rows) const {
    return {data_, rows, static_cast<int64_t>(size_) / rows};
  }

  void expect(const std::string& what, const std::vector<int32_t>& values) const {
#ifdef CONSUMER_CUDA
    if (device_.type == DeviceType::cuda && cudaDeviceSynchronize() != cudaSuccess) {
      throw std::runtime_error("the GPU failed");
    }
#endif
    if (std::vector<int32_t>(data_, data_ + size_) == values) return;
    std::cerr << what << " is wrong:";
    for (size_t i = 0; i < size_; ++i) std::cerr << ' ' << data_[i];
    std::cerr << '\n';
    ++failures;
  }

 private:
  Device device_;
  size_t size_;
  int32_t* data_ = nullptr;
};

void run_draft_extend(Device device) {
  const Words q(device, {2, 3}), k(device, {10, 15});
  for (auto variant : {nsa_kernel::Variant::basic, nsa_kernel::Variant::adaptive, nsa_kernel::Variant::optimized}) {
    const Words expanded(device, 6), clipped(device, 6), num_tokens(device, 1);
    nsa_kernel::DraftExtend buffers;
    buffers.extend_seq_lens = q.lengths();
    buffers.seq_lens = k.lengths();
    buffers.nsa_index_topk = 12;
    buffers.out_seqlens_expanded = expanded.view();
    buffers.out_nsa_cache_seqlens = clipped.view();
    buffers.out_num_tokens = num_tokens.view();
    buffers.device = device;
    const nsa_kernel::DraftExtendPlan plan(buffers, variant);
    plan.run();
    expanded.expect("expanded", {9, 10, 13, 14, 15, -1});
    clipped.expect("clipped", {9, 10, 12, 12, 12, -1});
    num_tokens.expect("num_tokens", {5});
    if (nsa_kernel::fill_draft_extend_metadata_and_count(buffers, variant) != 5) {
      std::cerr << "the count is wrong\n";
      ++failures;
    }
  }
}

void run_replay(Device device) {
  const Words seq_lens(device, {3, 2}), rows(device, {1, 0}), source(device, {10, 11, 12, 13, 20, 21, 22, 23});
  const Words page_table(device, 8), pages(device, 4), running(device, 3);
  nsa_kernel::Replay buffers;
  buffers.mode = nsa_kernel::Mode::decode;
  buffers.seq_lens = seq_lens.lengths();
  buffers.nsa_index_topk = 2;
  buffers.req_pool_indices = rows.lengths();
  buffers.req_to_token = source.table<const int32_t>(2);
  buffers.page_size = 2;
  buffers.page_table = page_table.table<int32_t>(2);
  buffers.real_page_table = pages.table<int32_t>(2);
  buffers.nsa_cu_seqlens_k = running.view();
  buffers.device = device;
  nsa_kernel::ReplayPlan(buffers).run();
  page_table.expect("page_table", {20, 21, 22, -1, 10, 11, -1, -1});
  pages.expect("real_page_table", {10, 11, 5, -1});
  running.expect("nsa_cu_seqlens_k", {0, 2, 4});
}

void run_indexer(Device device) {
  const Words starts(device, {0, 2, 3}), seq_lens(device, {5, 9}), blocks(device, {10, 11, 12, 20, 21, 22});
  const Words lengths(device, 5), indices(device, 4), table(device, 12), schedule(device, 6);
  nsa_kernel::IndexerDecode decode;
  decode.seq_lens = seq_lens.lengths();
  decode.query_start_loc = starts.lengths();
  decode.block_table = blocks.table<const int32_t>(2);
  decode.num_tokens = 4;
  decode.page_size = 4;
  decode.decode_seq_lens = {lengths.view()};
  decode.indices = indices.view();
  decode.expanded_block_table = table.table<int32_t>(4);
  decode.schedule = schedule.table<int32_t>(3);
  decode.schedule_format = nsa_kernel::ScheduleFormat::deepgemm_sm90;
  decode.device = device;
  nsa_kernel::IndexerDecodePlan(decode).run();
  lengths.expect("decode_seq_lens", {4, 5, 9, 0, 0});
  indices.expect("indices", {0, 0, 1, 2});
  table.expect("expanded_block_table", {10, 11, -1, 10, 11, -1, 20, 21, 22, 0, -1, -1});
  schedule.expect("schedule", {0, 0, 1, 0, 4, 0});

  const Words states(device, 3), ends(device, 3);
  nsa_kernel::IndexerPrefill prefill;
  prefill.query_start_loc = starts.lengths();
  prefill.seq_lens = seq_lens.lengths();
  prefill.end_request = 2;
  prefill.cu_seq_lens = states.view();
  prefill.cu_seqlen_ke = ends.view();
  prefill.device = device;
  nsa_kernel::fill_indexer_prefill_metadata(prefill);
  states.expect("cu_seq_lens", {0, 5, 14});
  ends.expect("cu_seqlen_ke", {4, 5, 14});

  const Words requests(device, 4);
  nsa_kernel::fill_token_requests({starts.lengths(), requests.view(), 3, device});
  requests.expect("token_requests", {0, 0, 1, 0});
}

/// The address of an empty vector may be null, like that of an array that is not given.
void refresh_no_request(Device device) {
  const std::vector<int32_t> none;
  const Words running(device, 1), slots(device, 8), num_tokens(device, 1);
  nsa_kernel::Replay buffers;
  buffers.seq_lens = {none.data(), 0};
  buffers.cu_seqlens_k = running.view();
  buffers.num_tokens = num_tokens.view();
  buffers.device = device;
  for (auto mode : {nsa_kernel::Mode::decode, nsa_kernel::Mode::target_verify, nsa_kernel::Mode::draft_extend}) {
    buffers.mode = mode;
    if (mode == nsa_kernel::Mode::draft_extend) buffers.extend_seq_lens = {none.data(), 0};
    buffers.req_pool_indices = {none.data(), 0};
    buffers.page_table = slots.table<int32_t>(2);
    nsa_kernel::ReplayPlan(buffers).run();
    running.expect("cu_seqlens_k", {0});
    num_tokens.expect("num_tokens", {0});
    slots.expect("page_table", std::vector<int32_t>(8, -1));
  }
}

/// Expects the call to be refused in words that contain `what`.
template <class Call>
void expect_refusal(const std::string& what, Call call) {
  std::string words = "nothing";
  try {
    call();
  } catch (const std::invalid_argument& error) {
    words = error.what();
  }
  if (words.find(what) != std::string::npos) return;
  std::cerr << "the refusal is: " << words << ", must contain: " << what << '\n';
  ++failures;
}

/// A decode of two requests that fits, once `change` has changed it; its plan refuses it.
template <class Change>
void expect_refused_replay(const std::string& what, Change change) {
  static const Words seq_lens({}, {3, 2}), rows({}, {1, 0}), source({}, 8), slots({}, 8), sums({}, 3);
  nsa_kernel::Replay buffers;
  buffers.seq_lens = seq_lens.lengths();
  buffers.req_pool_indices = rows.lengths();
  buffers.req_to_token = source.table<const int32_t>(2);
  buffers.page_table = slots.table<int32_t>(2);
  buffers.cu_seqlens_k = sums.view();
  const nsa_kernel::ReplayPlan fits(buffers);
  change(buffers);
  expect_refusal("fill_replay_metadata: " + what, [&] { const nsa_kernel::ReplayPlan plan(buffers); });
  slots.expect("page_table of a refused plan", std::vector<int32_t>(8, -1));
  sums.expect("cu_seqlens_k of a refused plan", std::vector<int32_t>(3, -1));
}

/// What the type of an array cannot say, and Python's arrays have right by then.
void refuse_bad_layouts() {
  using nsa_kernel::Replay;
  expect_refused_replay("page_table has row stride 0, must be at least 4", [](Replay& buffers) {
    nsa_kernel::TableView<int32_t> by_fields;
    by_fields.data = buffers.page_table.data;
    by_fields.rows = 2;
    by_fields.cols = 4;
    buffers.page_table = by_fields;
  });
  expect_refused_replay("req_to_token has row stride 0, must be at least 1",
                        [](Replay& buffers) { buffers.req_to_token.row_stride = 0; });
  expect_refused_replay("req_to_token has row stride -4, must be at least 1",
                        [](Replay& buffers) { buffers.req_to_token.row_stride = -4; });
  expect_refused_replay("page_table has row stride -4, must be at least 4",
                        [](Replay& buffers) { buffers.page_table.row_stride = -4; });
  expect_refused_replay("page_table has row stride 3, must be at least 4",
                        [](Replay& buffers) { buffers.page_table.row_stride = 3; });
  expect_refused_replay("page_table has size -2, must have none below 0",
                        [](Replay& buffers) { buffers.page_table.rows = -2; });
  expect_refused_replay("req_to_token has size -4, must have none below 0",
                        [](Replay& buffers) { buffers.req_to_token.cols = -4; });
  expect_refused_replay("cu_seqlens_k has size -1, must have none below 0",
                        [](Replay& buffers) { buffers.cu_seqlens_k.size = -1; });
  expect_refused_replay("seq_lens has size -2, must have none below 0",
                        [](Replay& buffers) { buffers.seq_lens.size = buffers.req_pool_indices.size = -2; });
  expect_refused_replay("seq_lens has stride 0, must have a positive one",
                        [](Replay& buffers) { buffers.seq_lens.stride = 0; });
  expect_refused_replay("req_pool_indices has stride -1, must have a positive one",
                        [](Replay& buffers) { buffers.req_pool_indices.stride = -1; });
  expect_refused_replay("seq_lens has elements and no address, must have both",
                        [](Replay& buffers) { buffers.seq_lens.int32 = nullptr; });
  expect_refused_replay("cu_seqlens_k has elements and no address, must have both",
                        [](Replay& buffers) { buffers.cu_seqlens_k.data = nullptr; });
  expect_refused_replay("page_table has elements and no address, must have both",
                        [](Replay& buffers) { buffers.page_table.data = nullptr; });
  expect_refused_replay("req_to_token has elements and no address, must have both",
                        [](Replay& buffers) { buffers.req_to_token.data = nullptr; });
  expect_refused_replay("req_to_token reaches past the last address, must lie in memory",
                        [](Replay& buffers) { buffers.req_to_token.row_stride = int64_t{1} << 62; });
  expect_refused_replay("page_table reaches past the last address, must lie in memory",
                        [](Replay& buffers) { buffers.page_table.rows = int64_t{1} << 62; });
  expect_refused_replay("device type is 7, must be cpu or cuda",
                        [](Replay& buffers) { buffers.device.type = static_cast<DeviceType>(7); });
  expect_refused_replay("page_table overlaps req_to_token, must have memory of its own", [](Replay& buffers) {
    buffers.page_table.data = const_cast<int32_t*>(buffers.req_to_token.data) + 7;
  });
  expect_refused_replay("schedule has row stride 3, must be contiguous", [](Replay& buffers) {
    alignas(8) static int32_t pairs[6];
    buffers.schedule = {pairs, 2, 2, 3};
    buffers.schedule_format = nsa_kernel::ScheduleFormat::deepgemm_sm90;
  });
}

/// One row has no next one, and nothing has no address.
void accept_strides_that_mean_nothing() {
  const Words seq_lens({}, {3, 3}), source({}, {10, 11, 12}), slots({}, 3);
  nsa_kernel::Replay buffers;
  buffers.seq_lens = {seq_lens.lengths().int32, 1, 0};
  buffers.req_pool_indices = {seq_lens.lengths().int32, 1, -7};
  buffers.req_to_token = {source.view().data, 4, 3, 0};
  buffers.req_to_token.rows = 1;
  buffers.page_table = {slots.view().data, 1, 3, 0};
  buffers.real_page_table = {slots.view().data, 5, 0, -1};
  nsa_kernel::ReplayPlan(buffers).run();
  slots.expect("page_table of one row", {0, 0, 0});  // row 3 is outside the pool
}

void refuse_bad_arguments() {
  const Words q({}, {2, 3}), k({}, {10});
  nsa_kernel::DraftExtend buffers;
  expect_refusal("variant is 3, must be basic, adaptive or optimized",
                 [&] { nsa_kernel::DraftExtendPlan(buffers, static_cast<nsa_kernel::Variant>(3)); });
  buffers.extend_seq_lens = q.lengths();
  buffers.seq_lens = k.lengths();
  expect_refusal("seq_lens has 10 elements, must have as many as extend_seq_lens (2)",
                 [&] { nsa_kernel::fill_draft_extend_metadata(buffers); });
  nsa_kernel::Replay replay;
  replay.mode = static_cast<nsa_kernel::Mode>(3);
  expect_refusal("mode is 3, must be decode", [&] { nsa_kernel::fill_replay_metadata(replay); });
  expect_refusal("device is the CPU, must be a CUDA device", [] { nsa_kernel::launch_empty_kernel({}); });
}

void run(Device device, const std::string& name) {
  run_draft_extend(device);
  run_replay(device);
  run_indexer(device);
  refresh_no_request(device);
  std::cout << name << (failures == 0 ? " ok" : " wrong") << '\n';
}

}  // namespace

int main() {
  try {
    const nsa_kernel::Info info = nsa_kernel::info();
    std::cout << "nsa_kernel " << info.version << '\n';
    refuse_bad_arguments();
    refuse_bad_layouts();
    accept_strides_that_mean_nothing();
    run({}, "cpu");
#ifdef CONSUMER_CUDA
    std::cout << "CUDA " << CUDART_VERSION / 1000 << '.' << CUDART_VERSION % 1000 / 10 << '\n';
    for (size_t i = 0; i < info.devices.size(); ++i) {
      if (!info.devices[i].usable || cudaSetDevice(static_cast<int>(i)) != cudaSuccess) continue;
      run({DeviceType::cuda, static_cast<int>(i)}, "cuda:" + std::to_string(i));
    }
#endif
  } catch (const nsa_kernel::CudaError& error) {
    std::cerr << error.what() << " (" << error.code() << ")\n";
    return 1;
  }
  return failures == 0 ? 0 : 1;
}
