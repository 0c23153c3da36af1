// Both ops through the public C++ API, on the CPU and on every usable GPU. Exit status 1 on a wrong value.
#include <nsa_kernel/draft_extend.h>
#include <nsa_kernel/error.h>
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

template <class Call>
void expect_refusal(const std::string& what, Call call) {
  try {
    call();
    std::cerr << what << " is not refused\n";
    ++failures;
  } catch (const std::invalid_argument&) {
  }
}

void refuse_bad_arguments() {
  const Words q({}, {2, 3}), k({}, {10});
  nsa_kernel::DraftExtend buffers;
  expect_refusal("an unknown variant",
                 [&] { nsa_kernel::DraftExtendPlan(buffers, static_cast<nsa_kernel::Variant>(3)); });
  buffers.extend_seq_lens = q.lengths();
  buffers.seq_lens = k.lengths();
  expect_refusal("a length more", [&] { nsa_kernel::fill_draft_extend_metadata(buffers); });
  nsa_kernel::Replay replay;
  replay.mode = static_cast<nsa_kernel::Mode>(3);
  expect_refusal("an unknown mode", [&] { nsa_kernel::fill_replay_metadata(replay); });
}

void run(Device device, const std::string& name) {
  run_draft_extend(device);
  run_replay(device);
  refresh_no_request(device);
  std::cout << name << (failures == 0 ? " ok" : " wrong") << '\n';
}

}  // namespace

int main() {
  try {
    const nsa_kernel::Info info = nsa_kernel::info();
    std::cout << "nsa_kernel " << info.version << '\n';
    refuse_bad_arguments();
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
