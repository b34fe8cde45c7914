// The kernels of csrc/ on the CPU: the same loops, with threads for lanes and blocks. See host_team.h.
#include "batched_greedy.cu"
#include "tail.cu"

#include <string>

namespace smartgpu {

// mma.sync of 32 lanes: acc (16 x 8) += a (16 x 32 bytes) b (8 x 32 bytes)', fragments as tiles.cuh lays them out.
template <class A>
void host_multiply(Fragments<A>* part, int n) {
    constexpr int PER_WORD = 4 / A::bytes;
    for (int m = 0; m < M_TILES; ++m)
        for (int row = 0; row < 16; ++row)
            for (int col = 0; col < 8; ++col) {
                Fragments<A>& to = part[row % 8 * 4 + col / 2];
                const int r = row / 8 * 2 + col % 2;
                for (int word = 0; word < STEP_WORDS; ++word) {
                    const unsigned a = part[row % 8 * 4 + word % 4].a[m][word / 4 * 2 + row / 8];
                    const unsigned b = part[col * 4 + word % 4].b[word / 4];
                    if constexpr (A::chains == 1) {
                        for (int k = 0; k < PER_WORD; ++k) to.acc[0][m][n][r] += A::value(&a, k) * A::value(&b, k);
                    } else {
                        const double a_high = word_float(high_part(a)), a_low = word_float(low_part(a));
                        const double b_high = word_float(high_part(b)), b_low = word_float(low_part(b));
                        to.acc[0][m][n][r] += a_high * b_high;
                        to.acc[1][m][n][r] += a_high * b_low;
                        to.acc[2][m][n][r] += a_low * b_high;
                    }
                }
            }
}

// What a launch of one team does, and one of the kernel that makes quanta.
template <class A>
struct Emulated {
    static void on_team(int ranks, const std::function<void(Scratch*, unsigned*)>& body) {
        std::vector<std::vector<unsigned>> staged(ranks, std::vector<unsigned>(STAGED_BYTES<A> / 4));
        run_team(ranks, TILE_WARPS, [&](Scratch* scratch) { body(scratch, staged[scratch->rank].data()); });
    }
    static void greedy(const Batch& batch, int ranks) {
        std::vector<char> arena(batch.arena);
        on_team(ranks, [&](Scratch* scratch, unsigned* staged) {
            if (ranks == 1) batched_greedy<A, BLOCK>(batch, 0, staged, arena.data(), scratch);
            else batched_greedy<A, CLUSTER>(batch, 0, staged, nullptr, scratch);
        });
    }
    static void quanta(const Batch& batch, int* q, int pitch) {
        on_team(1, [&](Scratch* scratch, unsigned* staged) {
            Team<BLOCK> team(scratch, nullptr);
            const Rows pool = {batch.x, batch.stride, batch.rows, static_cast<int>(batch.start[1]),
                               static_cast<int>(batch.d) * A::bytes};
            similarities<A>(team, pool, static_cast<Kind>(batch.kind), q, pitch, staged);
        });
    }
};

// work(Emulated<...>) of an arithmetic by name
template <class Work>
void with(const std::string& name, Work work) {
    if (name == "fp16") work(Emulated<Fp16>());
    if (name == "bf16") work(Emulated<Bf16>());
    if (name == "tf32") work(Emulated<Tf32>());
    if (name == "tf32x3") work(Emulated<Tf32x3>());
}

}  // namespace smartgpu

using namespace smartgpu;

extern "C" void host_batched_greedy(const char* arithmetic, const Batch* batch, int ranks) {
    with(arithmetic, [&](auto kernels) { kernels.greedy(*batch, ranks); });
}

extern "C" void host_quanta(const char* arithmetic, const Batch* batch, int* q, long long pitch) {
    with(arithmetic, [&](auto kernels) { kernels.quanta(*batch, q, static_cast<int>(pitch)); });
}

// what: 0 counts, 1 fills, 2 picks
extern "C" void host_tail(const Tail* tail, int what, int ranks, int threads) {
    run_team(ranks, threads, [&](Scratch* scratch) {
        Team<GRID> team(scratch, tail->exchange);
        if (what == 0) count_by_row(team, *tail);
        if (what == 1) fill_by_row(team, *tail);
        if (what == 2) sparse_tail(team, *tail);
    });
}

extern "C" long long host_layout(long long objective, long long squared, long long n, long long k, long long d) {
    return Layout(static_cast<Objective>(objective), squared != 0, n, k, d).bytes;
}
extern "C" long long host_size(int what) {
    const long long sizes[] = {sizeof(Batch), sizeof(Tail), sizeof(Exchange), THREADS, CLUSTER_BLOCKS, TAIL_THREADS,
                               STAGED_BYTES<Fp16>, STAGED_BYTES<Bf16>, STAGED_BYTES<Tf32>, STAGED_BYTES<Tf32x3>};
    return sizes[what];
}
