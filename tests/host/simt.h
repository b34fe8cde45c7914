// A GPU of threads of the CPU: kernels of csrc/ as nvcc sees them, with every lane a thread of its own.
//
// To be included before anything else (g++ -include simt.h). A block is one thread of the system whose lanes take turns,
// in an order drawn anew at every turn; they change places at barriers, shuffles and matrix products, which wait for all
// whom they concern. So a barrier that some lanes miss is a deadlock, and is told; copies to shared memory arrive at the
// last moment, with rubbish in their place until then. Blocks run at the same time, in memory that is really shared.
#pragma once

#include <sched.h>
#include <ucontext.h>

#include <atomic>
#include <climits>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#define SMARTGPU_SIMT 1
#define __CUDACC__ 1
#define __CUDA_ARCH__ 900
#define __host__
#define __device__
#define __global__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __shared__ thread_local  // of a block

namespace simt {

struct Dim {
    unsigned x;
};

// Lanes that wait for each other.
struct Gate {
    int expected, arrived = 0;
    std::vector<int> waiting;
};

// What the lanes of a warp show each other; two of them, used in turn.
struct Board {
    unsigned char value[32][32];  // of a lane
};

struct Warp {
    Gate gate;
    Board boards[2];
};

struct Copy {
    unsigned* to;
    const char* from;
    bool there;
};

struct Lane {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    Dim thread;
    int board = 0;
    std::deque<std::vector<Copy>> stages = {{}};  // the last one is still open
    bool done = false;
};

struct Launch {
    Dim blocks, threads;
    int cluster;  // blocks of one
    std::vector<std::atomic<unsigned>> arrived;  // of each cluster
};

struct Block {
    static constexpr size_t STACK = 1 << 16;
    Launch& launch;
    Dim number;
    std::vector<Lane> lanes;
    std::vector<Warp> warps;
    Gate gate;
    unsigned clusters = 0;  // barriers of the cluster so far
    std::vector<int> ready;
    std::mt19937 draw;
    ucontext_t turn;
    int now = 0, left;
    const std::function<void()>* body;

    Block(Launch& launch_, unsigned number_, unsigned seed)
        : launch(launch_), number{number_}, lanes(launch_.threads.x), warps(lanes.size() / 32), draw(seed + 977 * number_) {
        gate.expected = left = static_cast<int>(lanes.size());
        for (Warp& warp : warps) warp.gate.expected = 32;
    }
    void run(const std::function<void()>& body);
    void leave() { swapcontext(&lanes[now].context, &turn); }
    void yield() {
        ready.push_back(now);
        leave();
    }
    void wait(Gate& at) {
        if (++at.arrived < at.expected) {
            at.waiting.push_back(now);
            leave();
            return;
        }
        at.arrived = 0;
        ready.insert(ready.end(), at.waiting.begin(), at.waiting.end());
        at.waiting.clear();
        yield();
    }
    Lane& lane() { return lanes[now]; }
    Warp& warp() { return warps[now / 32]; }
};

inline thread_local Block* block = nullptr;

[[noreturn]] inline void stop(const char* why) {
    std::fprintf(stderr, "simt: block %u: %s\n", block->number.x, why);
    std::_Exit(3);
}

inline void begin() {
    (*block->body)();
    Block& here = *block;
    for (const auto& stage : here.lane().stages)
        if (!stage.empty()) stop("a lane ends while copies are on their way");
    here.lane().done = true;
    --here.left;
    here.leave();
}

inline void Block::run(const std::function<void()>& body_) {
    body = &body_, block = this;
    for (size_t t = 0; t < lanes.size(); ++t) {
        Lane& lane = lanes[t];
        lane.thread = {static_cast<unsigned>(t)};
        lane.stack.reset(new char[STACK]);
        getcontext(&lane.context);
        lane.context.uc_stack.ss_sp = lane.stack.get(), lane.context.uc_stack.ss_size = STACK, lane.context.uc_link = nullptr;
        makecontext(&lane.context, begin, 0);
        ready.push_back(static_cast<int>(t));
    }
    while (left > 0) {
        if (ready.empty()) stop("deadlock: some lanes have not come to a barrier where others wait");
        std::swap(ready[draw() % ready.size()], ready.back());
        now = ready.back();
        ready.pop_back();
        swapcontext(&turn, &lanes[now].context);
    }
}

// Every lane of the warp shows some bytes: what all of them showed. Good until this lane's next but one.
inline const Board& show(const void* value, size_t bytes) {
    Lane& lane = block->lane();
    Board& board = block->warp().boards[lane.board];
    lane.board ^= 1;
    std::memcpy(board.value[lane.thread.x % 32], value, bytes);
    block->wait(block->warp().gate);
    return board;
}

template <class T>
T shuffle(T value, int from) {
    std::memcpy(&value, show(&value, sizeof value).value[from], sizeof value);
    return value;
}

}  // namespace simt

#define threadIdx (simt::block->lane().thread)
#define blockIdx (simt::block->number)
#define blockDim (simt::block->launch.threads)
#define gridDim (simt::block->launch.blocks)

inline void __syncthreads() { simt::block->wait(simt::block->gate); }
inline void __syncwarp() { simt::shuffle(0, 0); }

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int step) {
    if (mask != UINT_MAX) simt::stop("a shuffle of some lanes");
    return simt::shuffle(value, (simt::block->lane().thread.x % 32) ^ step);
}
template <class T>
T __shfl_sync(unsigned mask, T value, int from) {
    if (mask != UINT_MAX) simt::stop("a shuffle of some lanes");
    return simt::shuffle(value, from);
}

template <class T>
T atomicAdd(T* at, T value) { return __atomic_fetch_add(at, value, __ATOMIC_RELAXED); }

// Compile with -ffp-contract=off.
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float a) { return std::sqrt(a); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __dsqrt_rn(double a) { return std::sqrt(a); }
inline int __float_as_int(float a) {
    int out;
    std::memcpy(&out, &a, sizeof out);
    return out;
}
inline float __int_as_float(int a) {
    float out;
    std::memcpy(&out, &a, sizeof out);
    return out;
}
