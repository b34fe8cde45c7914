// csrc/team.cuh on the CPU: a block is some threads behind a barrier, a warp one thread with one lane.
//
// Threads and barriers are real, so that ThreadSanitizer sees an access that no barrier orders. Only fetch_add is atomic.
#pragma once

#include <pthread.h>

#include <functional>
#include <thread>
#include <vector>

namespace smartgpu {

template <typename T>
inline T fetch_add(T* at, T value) { return __atomic_fetch_add(at, value, __ATOMIC_RELAXED); }

inline void add_global(long long* at, long long value) { fetch_add(at, value); }

// What the threads of one block share.
struct Scratch {
    std::vector<Best> best;
    pthread_barrier_t* block;
    pthread_barrier_t* team;
    int threads, rank, ranks;
    long long said;
};

inline thread_local int host_thread = 0;  // this thread's number in its block: threadIdx.x

template <int SPAN>
struct Team {
    static constexpr int lanes = 1, lane = 0;
    int thread, threads, warp, warps, rank, ranks;
    Scratch* scratch;
    Exchange* exchange;
    int parity = 0;

    Team(Scratch* scratch_, Exchange* exchange_) : scratch(scratch_), exchange(exchange_) {
        thread = warp = host_thread, threads = warps = scratch->threads;
        rank = scratch->rank, ranks = scratch->ranks;
    }

    bool leader() const { return thread == 0 && rank == 0; }
    int index() const { return rank * threads + thread; }
    int total() const { return ranks * threads; }
    int warp_index() const { return warp * ranks + rank; }
    int warp_total() const { return warps * ranks; }
    void sync_block() { pthread_barrier_wait(scratch->block); }
    void sync() { pthread_barrier_wait(scratch->team); }

    long long tell(long long value) {
        long long& said = SPAN == BLOCK ? scratch->said : exchange->said;
        if (leader()) said = value;
        sync();
        value = said;
        sync();
        return value;
    }

    Best best_of_block(Best mine, bool low) {
        scratch->best[thread] = mine;
        sync_block();
        for (const Best& other : scratch->best)
            if (beats(other, mine, low)) mine = other;
        sync_block();
        return mine;
    }

    Best best_of_blocks(Best found, bool low) {
        if (ranks == 1) return found;
        Best* slots = exchange->slots[parity];
        parity ^= 1;
        if (thread == 0) slots[rank] = found;
        sync();
        for (int r = 0; r < ranks; ++r)
            if (beats(slots[r], found, low)) found = slots[r];
        return found;
    }

    Best best(Best mine, bool low) { return best_of_blocks(best_of_block(mine, low), low); }
    static double sum_of_warp(double value) { return value; }
    static int from_first_lane(int value) { return value; }
    static void sync_warp() {}
};

// Runs body(scratch) in ranks x threads threads at the same time: one team.
inline void run_team(int ranks, int threads, const std::function<void(Scratch*)>& body) {
    pthread_barrier_t team;
    pthread_barrier_init(&team, nullptr, ranks * threads);
    std::vector<pthread_barrier_t> blocks(ranks);
    std::vector<Scratch> scratch(ranks);
    std::vector<std::thread> all;
    for (int r = 0; r < ranks; ++r) {
        pthread_barrier_init(&blocks[r], nullptr, threads);
        scratch[r] = {std::vector<Best>(threads, nobody()), &blocks[r], &team, threads, r, ranks, 0};
    }
    for (int r = 0; r < ranks; ++r)
        for (int t = 0; t < threads; ++t)
            all.emplace_back([&, r, t] {
                host_thread = t;
                body(&scratch[r]);
            });
    for (auto& thread : all) thread.join();
    for (auto& barrier : blocks) pthread_barrier_destroy(&barrier);
    pthread_barrier_destroy(&team);
}

}  // namespace smartgpu
