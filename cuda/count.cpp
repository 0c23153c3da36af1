#include "count.h"

#include <atomic>
#include <chrono>
#include <mutex>
#include <vector>

#include "check.h"

namespace nsa_kernel::cuda {
namespace {

constexpr int32_t kPending = -1;
constexpr size_t kSlotBytes = 64;  // a cache line each
constexpr size_t kSlabBytes = 4096;

/// Free slots. Slabs are never given back: the process may end after the driver has.
class Slots {
 public:
  volatile int32_t* take(const char* op) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (free_.empty()) add_slab(op);
    volatile int32_t* slot = free_.back();
    free_.pop_back();
    return slot;
  }

  void give_back(volatile int32_t* slot) noexcept {
    const std::lock_guard<std::mutex> lock(mutex_);
    free_.push_back(slot);
  }

 private:
  void add_slab(const char* op) {
    const RelaxedCapture relaxed;  // another thread may be capturing
    char* slab = nullptr;
    check(cudaHostAlloc(reinterpret_cast<void**>(&slab), kSlabBytes, cudaHostAllocPortable | cudaHostAllocMapped), op);
    capacity_ += kSlabBytes / kSlotBytes;
    free_.reserve(capacity_);  // so that give_back never allocates
    for (size_t at = 0; at < kSlabBytes; at += kSlotBytes) free_.push_back(reinterpret_cast<int32_t*>(slab + at));
  }

  std::mutex mutex_;
  std::vector<volatile int32_t*> free_;
  size_t capacity_ = 0;
};

Slots& slots() {
  static Slots* const slots = new Slots;  // lives as long as the process
  return *slots;
}

}  // namespace

void refuse_capture(cudaStream_t stream, const char* op) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  const cudaError_t queried = cudaStreamIsCapturing(stream, &status);
  if (queried != cudaSuccess && queried != cudaErrorStreamCaptureImplicit) raise(queried, op);
  if (queried == cudaSuccess && status == cudaStreamCaptureStatusNone) return;
  raise(cudaErrorStreamCaptureUnsupported, op,
        "; returning the count synchronizes, which stream capture forbids: call fill_draft_extend_metadata instead");
}

HostCount::HostCount(const char* op) : op_(op), slot_(slots().take(op)) { *slot_ = kPending; }

HostCount::~HostCount() {
  if (settled_) slots().give_back(slot_);
}

int32_t HostCount::wait(cudaStream_t stream) {
  using Clock = std::chrono::steady_clock;
  constexpr int kPollsPerLook = 4096;
  auto next_query = Clock::time_point::max();
  for (int64_t polls = 1;; ++polls) {
    const int32_t count = *slot_;
    if (count != kPending) {
      std::atomic_thread_fence(std::memory_order_acquire);
      settled_ = true;
      return count;
    }
    if (polls % kPollsPerLook != 0) continue;
    // The stream is asked seldom: the query costs more than a poll, and the count comes first unless a kernel died.
    const auto now = Clock::now();
    if (next_query == Clock::time_point::max()) next_query = now + std::chrono::milliseconds(1);
    if (now < next_query) continue;
    next_query = now + std::chrono::milliseconds(1);
    // Asking the legacy stream while another thread captures would end that capture.
    cudaStreamCaptureStatus capturing = cudaStreamCaptureStatusNone;
    if (cudaStreamIsCapturing(stream, &capturing) == cudaErrorStreamCaptureImplicit) {
      cudaGetLastError();
      continue;
    }
    const RelaxedCapture relaxed;  // nor must it end that of another stream
    const cudaError_t status = cudaStreamQuery(stream);
    if (status == cudaErrorNotReady) {
      cudaGetLastError();
      continue;
    }
    if (*slot_ != kPending) continue;
    check(status, op_);
    raise(cudaErrorUnknown, op_, "; the stream ended without a count");
  }
}

}  // namespace nsa_kernel::cuda
