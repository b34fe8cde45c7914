// Instructions that C++ has no words for, one function for each: all PTX of csrc/ stands here, but for one type name.
//
// tests/host/simt.h has the same for threads of the CPU that stand for lanes, and runs what calls them as it is here.
#pragma once

#include "scalar.cuh"

#if defined(SMARTGPU_SIMT)
#include "simt_ptx.h"
#elif defined(__CUDACC_RTC__) || defined(__CUDACC__)

#define SMARTGPU_PTX __device__ __forceinline__

namespace smartgpu {
namespace ptx {

// ---- memory of the whole device

// *at += value, where the sum before is not asked for and so not waited for.
SMARTGPU_PTX void add(long long* at, long long value) {
    asm volatile("red.relaxed.gpu.global.add.u64 [%0], %1;" ::"l"(at), "l"(value) : "memory");
}

// *at += 1. What this thread wrote before, and what it knows that others did, is seen by who looks and finds it.
SMARTGPU_PTX void arrive(unsigned* at) {
    asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(at) : "memory");
}
SMARTGPU_PTX unsigned look(const unsigned* at) {
    unsigned now;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(now) : "l"(at) : "memory");
    return now;
}

// ---- clusters, from compute capability 9.0 on

#if __CUDA_ARCH__ >= 900
SMARTGPU_PTX int cluster_rank() {
    int rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}
SMARTGPU_PTX int cluster_ranks() {
    int ranks;
    asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(ranks));
    return ranks;
}
SMARTGPU_PTX void sync_cluster() {
    asm volatile("barrier.cluster.arrive.release;" ::: "memory");
    asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
}
#endif

// ---- copies to shared memory, beside what the thread does

// 16 bytes, or 16 zeros; both addresses are multiples of 16
SMARTGPU_PTX void copy16(unsigned* to, const char* from, bool there) {
    const unsigned shared = static_cast<unsigned>(__cvta_generic_to_shared(to));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(from), "r"(there ? 16 : 0) : "memory");
}
SMARTGPU_PTX void end_of_stage() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until all stages are there but for the last LEFT
template <int LEFT>
SMARTGPU_PTX void wait_for_stages() {
    asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
}

// ---- matrices: acc (16 x 8) += a (16 x 32 bytes) b' (8 x 32 bytes), in fragments of a warp (tiles.cuh)

#define SMARTGPU_MMA(name, shape, types)                                                                             \
    SMARTGPU_PTX void name(float* acc, const unsigned* a, const unsigned* b) {                                       \
        asm volatile("mma.sync.aligned." shape ".row.col." types " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "   \
                     "{%0, %1, %2, %3};"                                                                             \
                     : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])                                        \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));                            \
    }
SMARTGPU_MMA(mma_fp16, "m16n8k16", "f32.f16.f16.f32")
SMARTGPU_MMA(mma_bf16, "m16n8k16", "f32.bf16.bf16.f32")
SMARTGPU_MMA(mma_tf32, "m16n8k8", "f32.tf32.tf32.f32")
#undef SMARTGPU_MMA

SMARTGPU_PTX float fp16_value(unsigned short a) {
    float out;
    asm("{.reg .f16 h; mov.b16 h, %1; cvt.f32.f16 %0, h;}" : "=f"(out) : "h"(a));
    return out;
}

}  // namespace ptx
}  // namespace smartgpu

#endif
