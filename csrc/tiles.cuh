// Similarity tiles by tensor cores: from rows of features to quanta, by the chain of kernels/similarity.py.
//
// One pair, one chain: a float32 accumulator, k ascending in steps of the instruction (16 for 16-bit features, 8 for
// tf32), never split. The bits of a pair depend on its two rows alone. Under "tf32x3" there are three chains, hi.hi, hi.lo
// and lo.hi, the last two added to each other first.
//
// A step of k is 32 bytes, or 8 words, of a row, whatever the features are; the fragments of mma.sync m16n8k16 and
// m16n8k8 (PTX ISA, "Matrix Fragments") then hold the same words:
//     A  register 2 u + v: row lane / 4 + 8 v, word lane % 4 + 4 u     B  register u: row lane / 4, word lane % 4 + 4 u
//     C  register 2 v + w: row lane / 4 + 8 v, column 2 (lane % 4) + w
#pragma once

#include "team.cuh"

namespace smartgpu {

constexpr int TILE_WARPS = 8;    // of a block: 4 along a, 2 along b
constexpr int TILE_A = 128;      // rows of side a
constexpr int STEP_WORDS = 8;    // of a row, one step of k
constexpr int STEPS = 2;         // staged together: 64 bytes of a row
constexpr int PITCH = 20;        // words between staged rows: 20 (lane / 4) + lane % 4 falls into 32 banks
constexpr int STAGES = 3;        // staged at the same time: two on their way, one in use
constexpr int M_TILES = 2;       // of 16 rows, of one warp

#if defined(__CUDACC_RTC__) || defined(__CUDACC__)
using Sum = float;
constexpr int LANES = 1;  // a thread holds the fragments of its own lane
#else
using Sum = double;  // rounded once, at the end: as Triton's interpreter does it
constexpr int LANES = 32;  // a thread is a warp, and holds all of them
#endif

SMARTGPU_DEVICE unsigned word_bits(float a) { return static_cast<unsigned>(bits(a)); }
SMARTGPU_DEVICE float word_float(unsigned a) { return from_bits(static_cast<int>(a)); }

SMARTGPU_DEVICE float bf16_value(unsigned short a) { return word_float(static_cast<unsigned>(a) << 16); }

SMARTGPU_DEVICE float fp16_value(unsigned short a) {
#if defined(__CUDACC_RTC__) || defined(__CUDACC__)
    return ptx::fp16_value(a);
#else
    const unsigned sign = (a & 0x8000u) << 16, exponent = (a >> 10) & 31, fraction = a & 1023;
    if (exponent == 0) {  // subnormal: fraction 2^-24, exactly
        const float value = static_cast<float>(fraction) * 0x1p-24f;
        return sign ? -value : value;
    }
    const unsigned top = exponent == 31 ? 255 : exponent + 112;
    return word_float(sign | top << 23 | fraction << 13);
#endif
}

// ---- how products are made: bytes of a feature, chains, tiles of 8 columns of one warp, and blocks on a multiprocessor,
// which hide each other's latencies: two where 128 registers do for a thread, and the shared memory for their tiles

struct Half {
    static constexpr int bytes = 2, chains = 1, n_tiles = 8, blocks = 2;
};
struct Fp16 : Half {
    static SMARTGPU_DEVICE double value(const void* row, long long k) {
        return fp16_value(static_cast<const unsigned short*>(row)[k]);
    }
#if defined(__CUDACC_RTC__) || defined(__CUDACC__)
    static SMARTGPU_DEVICE void mma(Sum* acc, const unsigned* a, const unsigned* b) { ptx::mma_fp16(acc, a, b); }
#endif
};
struct Bf16 : Half {
    static SMARTGPU_DEVICE double value(const void* row, long long k) {
        return bf16_value(static_cast<const unsigned short*>(row)[k]);
    }
#if defined(__CUDACC_RTC__) || defined(__CUDACC__)
    static SMARTGPU_DEVICE void mma(Sum* acc, const unsigned* a, const unsigned* b) { ptx::mma_bf16(acc, a, b); }
#endif
};
struct Tf32 {
    static constexpr int bytes = 4, chains = 1, n_tiles = 8, blocks = 2;
    static SMARTGPU_DEVICE double value(const void* row, long long k) { return static_cast<const float*>(row)[k]; }
#if defined(__CUDACC_RTC__) || defined(__CUDACC__)
    static SMARTGPU_DEVICE void mma(Sum* acc, const unsigned* a, const unsigned* b) { ptx::mma_tf32(acc, a, b); }
#endif
};
// Three accumulators: tiles half as wide, and one block on a multiprocessor, keep them in registers.
struct Tf32x3 : Tf32 {
    static constexpr int chains = 3, n_tiles = 4, blocks = 1;
};

template <class A>
constexpr int TILE_B = 2 * 8 * A::n_tiles;  // rows of side b

template <class A>
constexpr int STAGED_BYTES = STAGES * (TILE_A + TILE_B<A>) * PITCH * 4;  // shared memory

// ---- one lane's part of a warp's tile, 32 rows of a and 8 n_tiles rows of b

template <class A>
struct Fragments {
    Sum acc[A::chains][M_TILES][A::n_tiles][4];
    unsigned a[M_TILES][4], b[2];

    SMARTGPU_DEVICE void clear() {
#pragma unroll
        for (int c = 0; c < A::chains; ++c)
#pragma unroll
            for (int m = 0; m < M_TILES; ++m)
#pragma unroll
                for (int n = 0; n < A::n_tiles; ++n)
#pragma unroll
                    for (int r = 0; r < 4; ++r) acc[c][m][n][r] = 0;
    }

    SMARTGPU_DEVICE void load_a(const unsigned* staged, int warp, int lane, int step) {
        const unsigned* at = staged + (warp % 4 * 32 + lane / 4) * PITCH + step * STEP_WORDS + lane % 4;
#pragma unroll
        for (int m = 0; m < M_TILES; ++m)
#pragma unroll
            for (int r = 0; r < 4; ++r) a[m][r] = at[(m * 16 + r % 2 * 8) * PITCH + r / 2 * 4];
    }

    SMARTGPU_DEVICE void load_b(const unsigned* staged, int warp, int lane, int step, int n) {
        const int row = TILE_A + (warp / 4 * A::n_tiles + n) * 8 + lane / 4;
        const unsigned* at = staged + row * PITCH + step * STEP_WORDS + lane % 4;
        b[0] = at[0], b[1] = at[4];
    }

    // The dot product in a register, of rows row() of a and column() of b in the tile.
    SMARTGPU_DEVICE float dot(int m, int n, int r) const {
        float out = static_cast<float>(acc[0][m][n][r]);
        if constexpr (A::chains == 3) {
            out = static_cast<float>(add(acc[0][m][n][r], add(acc[1][m][n][r], acc[2][m][n][r])));
        }
        return out;
    }
    static SMARTGPU_DEVICE int row(int warp, int lane, int m, int r) {
        return warp % 4 * 32 + m * 16 + r / 2 * 8 + lane / 4;
    }
    static SMARTGPU_DEVICE int column(int warp, int lane, int n, int r) {
        return (warp / 4 * A::n_tiles + n) * 8 + lane % 4 * 2 + r % 2;
    }
};

// tf32 keeps 10 of 23 bits: what the other 13 hold is exact in a second number.
SMARTGPU_DEVICE unsigned high_part(unsigned a) { return a & 0xffffe000u; }
SMARTGPU_DEVICE unsigned low_part(unsigned a) {
    return word_bits(sub(word_float(a), word_float(high_part(a))));
}

// One step of k for the columns n of a warp's tile: acc += a b'.
template <class A>
SMARTGPU_DEVICE void multiply(Fragments<A>* part, int n) {
#if defined(__CUDACC_RTC__) || defined(__CUDACC__)
    const unsigned* b = part->b;
    if constexpr (A::chains == 1) {
#pragma unroll
        for (int m = 0; m < M_TILES; ++m) A::mma(part->acc[0][m][n], part->a[m], b);
    } else {
        const unsigned b_high[2] = {high_part(b[0]), high_part(b[1])}, b_low[2] = {low_part(b[0]), low_part(b[1])};
#pragma unroll
        for (int m = 0; m < M_TILES; ++m) {
            unsigned high[4], low[4];
#pragma unroll
            for (int r = 0; r < 4; ++r) high[r] = high_part(part->a[m][r]), low[r] = low_part(part->a[m][r]);
            A::mma(part->acc[1][m][n], high, b_low);
            A::mma(part->acc[2][m][n], low, b_high);
            A::mma(part->acc[0][m][n], high, b_high);
        }
    }
#else
    host_multiply(part, n);  // of 32 lanes, by the layout above
#endif
}

// ---- staging: 64 bytes of each row of a tile, through asynchronous copies of 16

#if defined(__CUDACC_RTC__) || defined(__CUDACC__)
using ptx::copy16;
using ptx::end_of_stage;
using ptx::wait_for_stages;
#else
inline void copy16(unsigned* to, const char* from, bool there) {
    for (int w = 0; w < 4; ++w) to[w] = there ? reinterpret_cast<const unsigned*>(from)[w] : 0;
}
inline void end_of_stage() {}
template <int LEFT>
inline void wait_for_stages() {}
#endif

// Rows of the pool that a problem is about: row i of it lies at x + stride rows[i], in bytes.
struct Rows {
    const char* x;
    long long stride;
    const long long* rows;
    int n, row_bytes;

    SMARTGPU_DEVICE const char* row(int i) const { return x + rows[i] * stride; }
};

// What one thread copies of a tile: 16 bytes of some rows, the next ones for each stage.
template <class A, class T>
struct Copies {
    static constexpr int COUNT = (TILE_A + TILE_B<A>) * 4 / (TILE_WARPS * T::lanes);
    const char* from[COUNT];
    int to, step, left;  // words into a stage, and from one copy to the next; bytes of a row that are still to come

    SMARTGPU_DEVICE Copies(T& team, const Rows& pool, int first_a, int first_b) {
        const int byte = team.thread % 4 * 16;  // threads are a multiple of 4: the same of every row
        to = team.thread / 4 * PITCH + byte / 4, step = team.threads / 4 * PITCH, left = pool.row_bytes - byte;
#pragma unroll
        for (int u = 0; u < COUNT; ++u) {
            const int at = (team.thread + u * team.threads) / 4;
            const int i = at < TILE_A ? first_a + at : first_b + at - TILE_A;
            // beyond the end: the last row again, whose results nobody keeps
            from[u] = pool.row(i < pool.n ? i : pool.n - 1) + byte;
        }
    }

    // Zeros behind a row's end add nothing.
    SMARTGPU_DEVICE void stage(unsigned* staged) {
#pragma unroll
        for (int u = 0; u < COUNT; ++u) {
            copy16(staged + to + u * step, from[u], left > 0);
            from[u] += STEPS * STEP_WORDS * 4;
        }
        left -= STEPS * STEP_WORDS * 4;
        end_of_stage();
    }
};

// Dot products of rows first_a.. with rows first_b..: each(row, column, product) for every pair of the tile.
template <class A, class T, class Each>
SMARTGPU_DEVICE void tile(T& team, const Rows& pool, int first_a, int first_b, unsigned* staged, Each each) {
    constexpr int STAGE = (TILE_A + TILE_B<A>) * PITCH;
    Fragments<A> part[LANES];
#pragma unroll
    for (int l = 0; l < LANES; ++l) part[l].clear();
    const int chunks = (pool.row_bytes + STEPS * STEP_WORDS * 4 - 1) / (STEPS * STEP_WORDS * 4);
    Copies<A, T> copies(team, pool, first_a, first_b);
    for (int c = 0; c < STAGES - 1; ++c) copies.stage(staged + c * STAGE);
    for (int c = 0; c < chunks; ++c) {
        wait_for_stages<STAGES - 2>();
        team.sync_block();  // chunk c is there for all, and nobody reads the one before it any more
        copies.stage(staged + (c + STAGES - 1) % STAGES * STAGE);
        const unsigned* now = staged + c % STAGES * STAGE;
#pragma unroll
        for (int step = 0; step < STEPS; ++step) {
#pragma unroll
            for (int l = 0; l < LANES; ++l) part[l].load_a(now, team.warp, team.lane + l, step);
#pragma unroll
            for (int n = 0; n < A::n_tiles; ++n) {
#pragma unroll
                for (int l = 0; l < LANES; ++l) part[l].load_b(now, team.warp, team.lane + l, step, n);
                multiply<A>(part, n);
            }
        }
    }
    wait_for_stages<0>();
    team.sync_block();  // the next tile may be staged
#pragma unroll
    for (int l = 0; l < LANES; ++l)
#pragma unroll
        for (int m = 0; m < M_TILES; ++m)
#pragma unroll
            for (int n = 0; n < A::n_tiles; ++n)
#pragma unroll
                for (int r = 0; r < 4; ++r)
                    each(first_a + part[l].row(team.warp, team.lane + l, m, r),
                         first_b + part[l].column(team.warp, team.lane + l, n, r), part[l].dot(m, n, r));
}

// Similarity of rows with unit length (or zero), in quanta. Kinds as in scalar.cuh: the three cosines.
SMARTGPU_DEVICE int cosine_quanta(Kind kind, float xy) {
    if (kind == COSINE_SHIFTED) xy = add(mul(xy, 0.5f), 0.5f);
    if (kind == COSINE_SQUARED) xy = mul(xy, xy);
    return quantise(xy);
}

// q (n, pitch), both triangles from the tiles on and below the diagonal. Ends with all of it written.
template <class A, class T>
SMARTGPU_DEVICE void similarities(T& team, const Rows& pool, Kind kind, int* q, int pitch, unsigned* staged) {
    const int across = (pool.n + TILE_A - 1) / TILE_A;
    int number = 0;
    for (int a = 0; a < across; ++a) {
        const int end = (a + 1) * TILE_A < pool.n ? (a + 1) * TILE_A : pool.n;
        for (int b = 0; b * TILE_B<A> < end; ++b, ++number) {
            if (number % team.ranks != team.rank) continue;
            tile<A>(team, pool, a * TILE_A, b * TILE_B<A>, staged, [&](int i, int j, float xy) {
                if (i >= pool.n || j > i) return;
                const int value = cosine_quanta(kind, xy);
                q[static_cast<long long>(i) * pitch + j] = value;
                q[static_cast<long long>(j) * pitch + i] = value;
            });
        }
    }
    team.sync();
}

}  // namespace smartgpu
