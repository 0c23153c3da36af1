// One block at a time, each of its threads on a stack of its own.
#include "machine.h"

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda_runtime.h"

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

int multiprocessors = 1;

namespace {

constexpr int kWarp = 32;
constexpr size_t kStack = 64 << 10;

enum class State { ready, at_warp, at_block, done };

struct Thread {
  ucontext_t start;  ///< only to enter its stack: switching contexts would ask the kernel each time
  jmp_buf at;
  bool entered;
  State state;
  Place place;
  int64_t value;
  std::unique_ptr<char[]> stack{new char[kStack]};
};

std::mt19937_64 random;
std::vector<Thread> threads;
std::vector<int64_t> values;  ///< that the lanes of each warp brought, where they last met
const std::function<void()>* body;
jmp_buf scheduler;
Thread* current;

void enter() {
  (*body)();
  current->state = State::done;
  _longjmp(scheduler, 1);
}

void wait(State state, Place place) {
  current->state = state;
  current->place = place;
  if (_setjmp(current->at) == 0) _longjmp(scheduler, 1);
}

/// Until it waits or is done.
void run(int index) {
  current = &threads[index];
  threadIdx = dim3(index, 0, 0);
  if (_setjmp(scheduler) != 0) return;
  if (current->entered) _longjmp(current->at, 1);
  current->entered = true;
  setcontext(&current->start);
}

[[noreturn]] void fail(const char* what, const Thread& thread) {
  throw std::logic_error(std::string(what) + " at " + thread.place.file + ":" + std::to_string(thread.place.line) +
                         " in block " + std::to_string(blockIdx.x));
}

/// Whether threads begin .. end-1 all wait in `state` at one place; throws if some wait there in vain.
bool have_met(int begin, int end, State state) {
  const auto first = threads.begin() + begin, last = threads.begin() + end;
  const auto waiting = std::find_if(first, last, [&](const Thread& thread) { return thread.state == state; });
  if (waiting == last) return false;
  for (auto thread = first; thread != last; ++thread) {
    if (thread->state != state) fail("a thread is missing", *waiting);
    if (thread->place.line != waiting->place.line || thread->place.file != waiting->place.file) {
      fail("threads meet others elsewhere", *waiting);
    }
  }
  return true;
}

/// Runs the lanes of a warp that can run; returns whether there were any.
bool step(int warp) {
  int lanes[kWarp];
  std::iota(lanes, lanes + kWarp, warp * kWarp);
  std::shuffle(lanes, lanes + kWarp, random);
  bool any = false;
  for (const int lane : lanes) {
    if (threads[lane].state != State::ready) continue;
    any = true;
    run(lane);
  }
  if (any && have_met(warp * kWarp, (warp + 1) * kWarp, State::at_warp)) {
    for (const int lane : lanes) {
      values[lane] = threads[lane].value;
      threads[lane].state = State::ready;
    }
  }
  return any;
}

void run_block(int count) {
  for (int i = 0; i < count; ++i) {
    Thread& thread = threads[i];
    getcontext(&thread.start);
    thread.start.uc_stack.ss_sp = thread.stack.get();
    thread.start.uc_stack.ss_size = kStack;
    thread.start.uc_link = nullptr;
    makecontext(&thread.start, enter, 0);
    thread.entered = false;
  }
  do {
    for (int i = 0; i < count; ++i) threads[i].state = State::ready;
    std::vector<int> warps(count / kWarp);
    std::iota(warps.begin(), warps.end(), 0);
    while (!warps.empty()) {
      const size_t turn = random() % warps.size();
      const auto steps = random() % 2 == 0 ? 1 : random();
      for (uint64_t i = 0; i < steps; ++i) {
        if (step(warps[turn])) continue;
        warps.erase(warps.begin() + turn);
        break;
      }
    }
  } while (have_met(0, count, State::at_block));
}

}  // namespace

void seed(uint64_t value) { random.seed(value); }

const int64_t* meet_warp(int64_t mine, Place place) {
  current->value = mine;
  const int64_t* all = &values[(current - threads.data()) / kWarp * kWarp];
  wait(State::at_warp, place);
  return all;
}

void meet_block(Place place) { wait(State::at_block, place); }

void launch(dim3 grid, dim3 block, const std::function<void()>& thread) {
  if (grid.x < 1 || grid.y < 1 || grid.y > 65535 || block.x % kWarp != 0 || block.x > 1024) {
    throw std::logic_error("a grid that no device takes");
  }
  gridDim = grid;
  blockDim = block;
  body = &thread;
  if (threads.size() < block.x) threads.resize(block.x);
  values.resize(threads.size());
  std::vector<unsigned> order(size_t{grid.x} * grid.y);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), random);
  for (const unsigned place : order) {
    blockIdx = dim3(place % grid.x, place / grid.x, 0);
    run_block(static_cast<int>(block.x));
  }
}

}  // namespace emulation
