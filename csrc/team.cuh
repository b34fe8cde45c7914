// A team: the threads that work on one selection. Those of a block, of a cluster of blocks, or of the whole grid.
//
// The kernels are written once against this: on the device the three spans below, in tests threads of the CPU
// (tests/host/host_team.h), where whole selections are compared with numpy. There a warp is one thread with one lane.
#pragma once

#include "ptx.cuh"

#if defined(__CUDACC_RTC__) || defined(__CUDACC__)
#define SMARTGPU_DEVICE __device__ __forceinline__
#else
#define SMARTGPU_DEVICE inline
#endif

namespace smartgpu {

// A candidate and what it is compared by; at < 0: nobody.
struct alignas(16) Best {  // one access of memory
    double key;
    long long at;
};

SMARTGPU_HD Best nobody() { return {0.0, -1}; }

// The larger key first; among equals the lower index, or the higher where low is false.
SMARTGPU_HD bool beats(Best a, Best b, bool low) {
    if (a.at < 0 || b.at < 0) return b.at < 0 && a.at >= 0;
    return low ? better(a.key, a.at, b.key, b.at) : better(a.key, -a.at, b.key, -b.at);
}

enum Span : int { BLOCK, CLUSTER, GRID };

constexpr int MOST_WARPS = 32;    // of a block
constexpr int MOST_RANKS = 1024;  // blocks of a team
constexpr int SLOTS_AT_ONCE = 5;  // of a lane: 160 blocks wait for memory once

// Of a team of several blocks, in global memory, zero before the launch: what they tell each other.
struct Exchange {
    Best slots[2][MOST_RANKS];
    long long said;
    unsigned arrived;  // at barriers of the grid so far, by blocks
};

}  // namespace smartgpu

#if defined(__CUDACC_RTC__) || defined(__CUDACC__)

namespace smartgpu {

template <typename T>
SMARTGPU_DEVICE T fetch_add(T* at, T value);
template <>
SMARTGPU_DEVICE int fetch_add(int* at, int value) { return atomicAdd(at, value); }
template <>
SMARTGPU_DEVICE long long fetch_add(long long* at, long long value) {
    return static_cast<long long>(  // two's complement: the same bits
        atomicAdd(reinterpret_cast<unsigned long long*>(at), static_cast<unsigned long long>(value)));
}

// The same in global memory, where the sum before is not asked for.
SMARTGPU_DEVICE void add_global(long long* at, long long value) { ptx::add(at, value); }

// Of one block, in shared memory.
struct Scratch {
    Best best[MOST_WARPS];
    Best result;
    long long said;
};

template <int SPAN>
struct Team {
    static constexpr int lanes = 32;
    int thread, threads, lane, warp, warps, rank, ranks;
    Scratch* scratch;
    Exchange* exchange;
    int parity = 0;
    unsigned awaited = 0;  // arrivals that the next barrier of the grid waits for

    SMARTGPU_DEVICE Team(Scratch* scratch_, Exchange* exchange_) : scratch(scratch_), exchange(exchange_) {
        thread = threadIdx.x, threads = blockDim.x;
        lane = thread % 32, warp = thread / 32, warps = threads / 32;
        rank = 0, ranks = 1;
        if (SPAN == GRID) rank = blockIdx.x, ranks = gridDim.x;
#if __CUDA_ARCH__ >= 900
        if (SPAN == CLUSTER) rank = ptx::cluster_rank(), ranks = ptx::cluster_ranks();
#endif
    }

    SMARTGPU_DEVICE bool leader() const { return thread == 0 && rank == 0; }
    SMARTGPU_DEVICE int index() const { return rank * threads + thread; }
    SMARTGPU_DEVICE int total() const { return ranks * threads; }
    // Neighbouring numbers lie in different blocks, so that a few items spread over all multiprocessors.
    SMARTGPU_DEVICE int warp_index() const { return warp * ranks + rank; }
    SMARTGPU_DEVICE int warp_total() const { return warps * ranks; }

    SMARTGPU_DEVICE void sync_block() { __syncthreads(); }

    // All threads of the team have come here, and see what the others wrote before: to global memory as well, and also
    // where it was read, and so is in the level 1 cache, of this multiprocessor before.
    SMARTGPU_DEVICE void sync() {
        if (SPAN == BLOCK) {
            __syncthreads();
        } else if (SPAN == CLUSTER) {
#if __CUDA_ARCH__ >= 900
            ptx::sync_cluster();
#endif
        } else {
            sync_grid();
        }
    }

    // Every block must be resident: a cooperative launch sees to that. The count is of one launch, whose barriers are too
    // few for it to wrap around (smartgpu/backends/cuda_tail.py: 8,192 of at most 1,024 blocks).
    SMARTGPU_DEVICE void sync_grid() {
        awaited += ranks;
        __syncthreads();
        if (thread == 0) {
            // The block's barriers before and after make this the release, and the acquire, of all its threads.
            ptx::arrive(&exchange->arrived);
            while (ptx::look(&exchange->arrived) < awaited) {
            }
        }
        __syncthreads();
    }

    // What the leader says, to all threads.
    SMARTGPU_DEVICE long long tell(long long value) {
        long long& said = SPAN == BLOCK ? scratch->said : exchange->said;
        if (leader()) said = value;
        sync();
        value = said;
        sync();  // read by all before it is written again
        return value;
    }

    SMARTGPU_DEVICE static Best best_of_warp(Best mine, bool low) {
#pragma unroll
        for (int step = 16; step > 0; step /= 2) {
            const Best other = {__shfl_xor_sync(0xffffffffu, mine.key, step), __shfl_xor_sync(0xffffffffu, mine.at, step)};
            if (beats(other, mine, low)) mine = other;
        }
        return mine;
    }

    // The best that any thread of the block has, for all of them. Two barriers.
    SMARTGPU_DEVICE Best best_of_block(Best mine, bool low) {
        mine = best_of_warp(mine, low);
        if (lane == 0) scratch->best[warp] = mine;
        __syncthreads();
        if (warp == 0) {
            mine = best_of_warp(lane < warps ? scratch->best[lane] : nobody(), low);
            if (lane == 0) scratch->result = mine;
        }
        __syncthreads();
        return scratch->result;
    }

    // The best of what each block has found (the same in all its threads), for all blocks. Slots alternate: who is
    // late still reads those of this round while the next ones are written.
    SMARTGPU_DEVICE Best best_of_blocks(Best found, bool low) {
        if (ranks == 1) return found;
        Best* slots = exchange->slots[parity];
        parity ^= 1;
        if (thread == 0) slots[rank] = found;
        sync();
        if (warp == 0) {
            found = nobody();
            for (int r = lane; r < ranks; r += 32 * SLOTS_AT_ONCE) {
                Best other[SLOTS_AT_ONCE];
#pragma unroll
                for (int u = 0; u < SLOTS_AT_ONCE; ++u)
                    other[u] = r + 32 * u < ranks ? slots[r + 32 * u] : nobody();
#pragma unroll
                for (int u = 0; u < SLOTS_AT_ONCE; ++u)
                    if (beats(other[u], found, low)) found = other[u];
            }
            found = best_of_warp(found, low);
            if (lane == 0) scratch->result = found;
        }
        __syncthreads();
        found = scratch->result;
        __syncthreads();  // read by all before it is written again
        return found;
    }

    SMARTGPU_DEVICE Best best(Best mine, bool low) { return best_of_blocks(best_of_block(mine, low), low); }

    // By one tree: the same bits wherever a sum is asked for.
    SMARTGPU_DEVICE static double sum_of_warp(double value) {
#pragma unroll
        for (int step = 16; step > 0; step /= 2) value = add(value, __shfl_xor_sync(0xffffffffu, value, step));
        return value;
    }

    SMARTGPU_DEVICE static int from_first_lane(int value) { return __shfl_sync(0xffffffffu, value, 0); }
    SMARTGPU_DEVICE static void sync_warp() { __syncwarp(); }
};

}  // namespace smartgpu

#else
#include "host_team.h"
#endif
