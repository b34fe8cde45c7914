// csrc/ptx.cuh by the lanes of simt.h. Fragments of matrices lie as the tables of the PTX ISA say, element by element.
#pragma once

namespace smartgpu {
namespace ptx {

inline void add(long long* at, long long value) { __atomic_fetch_add(at, value, __ATOMIC_RELAXED); }
inline void arrive(unsigned* at) { __atomic_fetch_add(at, 1u, __ATOMIC_RELEASE); }
inline unsigned look(const unsigned* at) {
    const unsigned now = __atomic_load_n(at, __ATOMIC_ACQUIRE);
    simt::block->yield();  // others may have to come before it changes
    sched_yield();
    return now;
}

inline int cluster_rank() { return static_cast<int>(blockIdx.x % simt::block->launch.cluster); }
inline int cluster_ranks() { return simt::block->launch.cluster; }
inline void sync_cluster() {
    simt::Block& here = *simt::block;
    here.wait(here.gate);
    if (threadIdx.x == 0) {
        std::atomic<unsigned>& arrived = here.launch.arrived[here.number.x / here.launch.cluster];
        arrived.fetch_add(1);
        for (++here.clusters; arrived.load() < here.clusters * here.launch.cluster;) sched_yield();
    }
    here.wait(here.gate);
}

inline void copy16(unsigned* to, const char* from, bool there) {
    if (reinterpret_cast<uintptr_t>(to) % 16) simt::stop("a copy to an address that is no multiple of 16");
    if (there && reinterpret_cast<uintptr_t>(from) % 16) simt::stop("a copy from an address that is no multiple of 16");
    std::memset(to, 0xff, 16);
    simt::block->lane().stages.back().push_back({to, from, there});
}
inline void end_of_stage() { simt::block->lane().stages.push_back({}); }
template <int LEFT>
void wait_for_stages() {
    auto& stages = simt::block->lane().stages;
    while (stages.size() > LEFT + 1) {
        for (const simt::Copy& copy : stages.front()) {
            std::memset(copy.to, 0, 16);
            if (copy.there) std::memcpy(copy.to, copy.from, 16);
        }
        stages.pop_front();
    }
}

inline float fp16_value(unsigned short a) {
    _Float16 out;
    std::memcpy(&out, &a, 2);
    return static_cast<float>(out);
}
inline float bf16_of(unsigned short a) { return __int_as_float(static_cast<int>(a) << 16); }

// Element `at` of a register's word.
struct Fp16Word {
    static constexpr int count = 2;
    static double value(unsigned word, int at) { return fp16_value(static_cast<unsigned short>(word >> 16 * at)); }
};
struct Bf16Word {
    static constexpr int count = 2;
    static double value(unsigned word, int at) { return bf16_of(static_cast<unsigned short>(word >> 16 * at)); }
};
struct Tf32Word {  // the last 13 bits are not looked at
    static constexpr int count = 1;
    static double value(unsigned word, int) { return __int_as_float(static_cast<int>(word & 0xffffe000u)); }
};

// m16n8k16 of 16-bit elements, m16n8k8 of tf32. Of element a_i (b_i) of lane l, with group l / 4 and l % 4 in it:
//   16 bits  a: row group, + 8 for 2 <= i < 4 and i >= 6; column 2 (l % 4) + i % 2, + 8 for i >= 4
//            b: row 2 (l % 4) + i % 2, + 8 for i >= 2; column group
//   tf32     a: row group, + 8 for odd i; column l % 4, + 4 for i >= 2        b: row l % 4, + 4 for i = 1; column group
//   c: row group, + 8 for i >= 2; column 2 (l % 4) + i % 2
template <class Word>
void mma(float* acc, const unsigned* a, const unsigned* b) {
    const unsigned words[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
    const simt::Board& board = simt::show(words, sizeof words);
    constexpr int DEEP = 8 * Word::count, HALF = DEEP / 2;
    double left[16][DEEP], right[DEEP][8];
    for (int l = 0; l < 32; ++l) {
        unsigned of[6];
        std::memcpy(of, board.value[l], sizeof of);
        const int group = l / 4, inside = l % 4;
        for (int i = 0; i < 4 * Word::count; ++i) {
            const int word = i / Word::count, part = i % Word::count;
            left[group + word % 2 * 8][inside * Word::count + part + word / 2 * HALF] = Word::value(of[word], part);
        }
        for (int i = 0; i < 2 * Word::count; ++i) {
            const int word = i / Word::count, part = i % Word::count;
            right[inside * Word::count + part + word * HALF][group] = Word::value(of[4 + word], part);
        }
    }
    const int group = threadIdx.x % 32 / 4, inside = threadIdx.x % 4;
    for (int i = 0; i < 4; ++i) {
        double sum = acc[i];
        for (int k = 0; k < DEEP; ++k) sum += left[group + (i >= 2) * 8][k] * right[k][2 * inside + i % 2];
        acc[i] = static_cast<float>(sum);
    }
}
inline void mma_fp16(float* acc, const unsigned* a, const unsigned* b) { mma<Fp16Word>(acc, a, b); }
inline void mma_bf16(float* acc, const unsigned* a, const unsigned* b) { mma<Bf16Word>(acc, a, b); }
inline void mma_tf32(float* acc, const unsigned* a, const unsigned* b) { mma<Tf32Word>(acc, a, b); }

}  // namespace ptx
}  // namespace smartgpu
