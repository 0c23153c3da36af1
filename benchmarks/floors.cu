// What page tables cost at least: kernels that are told all that a refresh has to find out.
//
//     mkdir -p build && nvcc -std=c++17 -O3 -arch=native -o build/floors benchmarks/floors.cu && build/floors
//     build/floors 32    # the same where the cache fetches 32 bytes of memory at a time, which is 64 otherwise
//
// The host lists the work of each warp: which slots of which row of the pool go to which rows of the tables. The device
// reads one entry of the list, copies, and does nothing else: no lengths, no sums, no check. Beside it stands the copy
// that bench.py compares with, of as many bytes. Sets of arrays take turns, as in bench.py.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <numeric>
#include <random>
#include <vector>

namespace {

constexpr int kWarp = 32, kVectors = 4, kBlock = 256;
constexpr int kPage = 64, kSets = 16, kRounds = 11, kNodes = 160;
constexpr double kDramAccess = 64;  // bytes that an entry costs where entries lie a page apart; ncu counts them

void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(status));
  std::exit(1);
}

struct Case {
  const char* name;
  int bs, tokens, kv, width;
  bool ragged, compact, skewed;
};

/// The work of one warp: elements begin .. end-1 of one row of the pool, for `rows` rows of a table.
struct alignas(16) CopyTask {
  int64_t source;  ///< first element of the row in the pool
  int64_t out;     ///< first element of the first row in the table
  int32_t begin, end;
  int32_t rows;
  int32_t pages;  ///< 1: elements are pages
};

__global__ __launch_bounds__(kBlock) void run_tasks(const CopyTask* tasks, int count, const int32_t* pool, int width,
                                                    int32_t* slots, int32_t* pages, int page_columns) {
  const int warp = (blockIdx.x * kBlock + threadIdx.x) / kWarp, lane = threadIdx.x % kWarp;
  if (warp >= count) return;
  const CopyTask task = tasks[warp];
  const int32_t* source = pool + task.source;
  if (task.pages != 0) {
    const int p = task.begin + lane;
    if (p >= task.end) return;
    const int32_t page = source[int64_t{p} * kPage] / kPage;
    for (int r = 0; r < task.rows; ++r) pages[task.out + int64_t{r} * page_columns + p] = page;
    return;
  }
  int4 vectors[kVectors];
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    const int c = task.begin + (lane + kWarp * i) * 4;
    if (c < task.end) vectors[i] = *reinterpret_cast<const int4*>(source + c);
  }
  for (int r = 0; r < task.rows; ++r) {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      const int c = task.begin + (lane + kWarp * i) * 4;
      if (c < task.end) *reinterpret_cast<int4*>(slots + task.out + int64_t{r} * width + c) = vectors[i];
    }
  }
}

/// Microseconds of one call in a graph of many, the median of some rounds.
double timed(cudaStream_t stream, const std::function<void(int)>& call) {
  cudaGraph_t graph;
  cudaGraphExec_t runnable;
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
  for (int i = 0; i < kNodes; ++i) call(i % kSets);
  check(cudaStreamEndCapture(stream, &graph), "capture");
  check(cudaGraphInstantiate(&runnable, graph, 0ull), "graph");
  cudaEvent_t start, end;
  cudaEventCreate(&start);
  cudaEventCreate(&end);
  std::vector<float> taken;
  for (int round = 0; round < kRounds; ++round) {
    check(cudaGraphLaunch(runnable, stream), "replay");
    cudaEventRecord(start, stream);
    check(cudaGraphLaunch(runnable, stream), "replay");
    cudaEventRecord(end, stream);
    check(cudaEventSynchronize(end), "replay");
    float milliseconds = 0;
    cudaEventElapsedTime(&milliseconds, start, end);
    taken.push_back(milliseconds * 1e3f / kNodes);
  }
  cudaGraphExecDestroy(runnable);
  cudaGraphDestroy(graph);
  std::sort(taken.begin(), taken.end());
  return taken[taken.size() / 2];
}

template <class T>
T* allocate(size_t count) {
  void* memory = nullptr;
  check(cudaMalloc(&memory, count * sizeof(T)), "memory");
  check(cudaMemset(memory, 0, count * sizeof(T)), "memory");
  return static_cast<T*>(memory);
}

void run(const Case& of, cudaStream_t stream) {
  std::mt19937 draw(of.bs);
  const auto up_to = [&](int low, int high) { return low + static_cast<int>(draw() % (high - low + 1)); };
  const int page_columns = (of.width + kPage - 1) / kPage;
  const int64_t pool_rows = int64_t{kSets} * of.bs + 1, rows = int64_t{of.bs} * of.tokens;
  std::vector<int64_t> order(pool_rows);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), draw);
  int32_t* pool = allocate<int32_t>(pool_rows * of.width);
  int32_t* slots = of.compact ? nullptr : allocate<int32_t>(kSets * rows * of.width);
  int32_t* pages = allocate<int32_t>(kSets * rows * page_columns);
  CopyTask* tasks[kSets];
  int counts[kSets];
  double bytes = 0;
  for (int set = 0; set < kSets; ++set) {
    std::vector<CopyTask> list;
    int64_t row = 0;
    for (int b = 0; b < of.bs; ++b) {
      const int kv = of.skewed ? (b == of.bs / 2 ? of.kv : 500) : up_to(of.kv / 2, of.kv);
      const int tokens = of.ragged ? up_to(1, of.tokens) : of.tokens;
      const int64_t source = order[int64_t{set} * of.bs + b] * of.width;
      const int live_pages = (kv + kPage - 1) / kPage;
      for (int c = 0; c < kv && !of.compact; c += kWarp * 4 * kVectors) {
        list.push_back({source, (set * rows + row) * of.width, c, std::min(kv, c + kWarp * 4 * kVectors), tokens, 0});
      }
      for (int p = 0; p < live_pages; p += kWarp) {
        list.push_back({source, (set * rows + row) * page_columns, p, std::min(live_pages, p + kWarp), tokens, 1});
      }
      row += tokens;
      if (set == 0) {
        bytes += of.compact ? kDramAccess * live_pages : 4.0 * kv;
        bytes += 4.0 * tokens * (live_pages + (of.compact ? 0 : kv));
      }
    }
    counts[set] = static_cast<int>(list.size());
    tasks[set] = allocate<CopyTask>(list.size());
    check(cudaMemcpy(tasks[set], list.data(), list.size() * sizeof(CopyTask), cudaMemcpyHostToDevice), "memory");
  }
  const size_t half = static_cast<size_t>(bytes) / 32 * 16;
  char* copied = allocate<char>(kSets * 2 * half);
  const double copy = timed(stream, [&](int set) {
    char* at = copied + set * 2 * half;
    check(cudaMemcpyAsync(at + half, at, half, cudaMemcpyDeviceToDevice, stream), "copy");
  });
  const double floor = timed(stream, [&](int set) {
    const int blocks = (counts[set] + kBlock / kWarp - 1) / (kBlock / kWarp);
    run_tasks<<<blocks, kBlock, 0, stream>>>(tasks[set], counts[set], pool, of.width, slots, pages, page_columns);
  });
  check(cudaGetLastError(), "launch");
  std::printf("%-34s %8.2f %8.2f %8.2f %8.2fx\n", of.name, bytes / 1e6, copy, floor, floor / copy);
  for (void* memory :
       {static_cast<void*>(pool), static_cast<void*>(slots), static_cast<void*>(pages), static_cast<void*>(copied)}) {
    cudaFree(memory);
  }
  for (CopyTask* list : tasks) cudaFree(list);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1) check(cudaDeviceSetLimit(cudaLimitMaxL2FetchGranularity, std::atoi(argv[1])), "fetch granularity");
  cudaDeviceProp device;
  check(cudaGetDeviceProperties(&device, 0), "device");
  cudaStream_t stream;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream");
  std::printf("%s, us in a graph\n%-34s %8s %8s %8s %9s\n", device.name, "", "MB", "copy", "floor", "floor/copy");
  for (const Case& of : {
           Case{"decode 128 x 1, kv 8192", 128, 1, 8192, 131072, false, false, false},
           Case{"uniform 128 x 4, kv 8192", 128, 4, 8192, 131072, false, false, false},
           Case{"ragged 128 x 4, kv 8192", 128, 4, 8192, 131072, true, false, false},
           Case{"ragged 32 x 4, kv 32768", 32, 4, 32768, 131072, true, false, false},
           Case{"uniform 512 x 4, kv 2048", 512, 4, 2048, 131072, false, false, false},
           Case{"ragged 512 x 4, kv 2048", 512, 4, 2048, 131072, true, false, false},
           Case{"skewed 128 x 4, kv 131072", 128, 4, 131072, 131072, false, false, true},
           Case{"compact 64 x 4, kv 32768", 64, 4, 32768, 32768, false, true, false},
           Case{"compact 256 x 2, kv 131072", 256, 2, 131072, 131072, false, true, false},
       }) {
    run(of, stream);
  }
  return 0;
}
