// Scalar mathematics of smartgpu, for host and device: what one pair, one term, one comparison is.
//
// Compiled by nvcc, by NVRTC (no headers there: only built-in types are used) and by g++ (tests/test_csrc.py compares
// it with numpy). Letters: i over represented points, j over candidates, S the chosen set, s_ij similarity.
//
// One value per pair needs the same roundings everywhere. nvcc contracts a*b + c into one FMA by default, g++ does so
// where the target has FMA, and an FMA rounds once instead of twice. So every sum and product whose rounding matters
// goes through add/sub/mul/div/root below: intrinsics that are never contracted on the device, values the optimiser
// cannot see through on the host. Never compile this with -use_fast_math or -ffast-math: either breaks quantise.
//
// exp is the exception: CUDA's and libm's differ in the last places, so "rbf" and "exp_euclidean" have one value per
// pair on one kind of machine only, and agree between kinds of machine to a few float32 roundings.
#pragma once

#if defined(__CUDACC_RTC__) || defined(__CUDACC__)
#define SMARTGPU_HD __host__ __device__ __forceinline__
#else
#define SMARTGPU_HD inline
#endif

#if !defined(__CUDACC_RTC__)
#include <cmath>
#include <cstdint>
#include <cstring>
static_assert(sizeof(int) == sizeof(std::int32_t) && sizeof(long long) == sizeof(std::int64_t), "int, long long");
#endif

#if defined(__FAST_MATH__)
#error "smartgpu/csrc/scalar.cuh: fast math reorders roundings; compile without it"
#endif

namespace smartgpu {

// ---- one rounding per operation

#if defined(__CUDA_ARCH__)
SMARTGPU_HD float add(float a, float b) { return __fadd_rn(a, b); }
SMARTGPU_HD float sub(float a, float b) { return __fsub_rn(a, b); }
SMARTGPU_HD float mul(float a, float b) { return __fmul_rn(a, b); }
SMARTGPU_HD float div(float a, float b) { return __fdiv_rn(a, b); }
SMARTGPU_HD float root(float a) { return __fsqrt_rn(a); }
SMARTGPU_HD double add(double a, double b) { return __dadd_rn(a, b); }
SMARTGPU_HD double sub(double a, double b) { return __dsub_rn(a, b); }
SMARTGPU_HD double mul(double a, double b) { return __dmul_rn(a, b); }
SMARTGPU_HD double div(double a, double b) { return __ddiv_rn(a, b); }
SMARTGPU_HD double root(double a) { return __dsqrt_rn(a); }
SMARTGPU_HD float exponential(float a) { return expf(a); }
SMARTGPU_HD int bits(float a) { return __float_as_int(a); }
SMARTGPU_HD float from_bits(int a) { return __int_as_float(a); }
#else
// The optimiser must take r as changed here, so it cannot fuse the operation before with the one after.
template <typename T>
SMARTGPU_HD T rounded(T r) {
#if defined(__GNUC__) && !defined(__CUDACC__)
    __asm__ volatile("" : "+m"(r));
#endif
    return r;
}
SMARTGPU_HD float add(float a, float b) { return rounded(a + b); }
SMARTGPU_HD float sub(float a, float b) { return rounded(a - b); }
SMARTGPU_HD float mul(float a, float b) { return rounded(a * b); }
SMARTGPU_HD float div(float a, float b) { return rounded(a / b); }
SMARTGPU_HD double add(double a, double b) { return rounded(a + b); }
SMARTGPU_HD double sub(double a, double b) { return rounded(a - b); }
SMARTGPU_HD double mul(double a, double b) { return rounded(a * b); }
SMARTGPU_HD double div(double a, double b) { return rounded(a / b); }
#if !defined(__CUDACC_RTC__)
SMARTGPU_HD float root(float a) { return std::sqrt(a); }
SMARTGPU_HD double root(double a) { return std::sqrt(a); }
SMARTGPU_HD float exponential(float a) { return std::exp(a); }
SMARTGPU_HD int bits(float a) { int r; std::memcpy(&r, &a, sizeof r); return r; }
SMARTGPU_HD float from_bits(int a) { float r; std::memcpy(&r, &a, sizeof r); return r; }
#endif
#endif

SMARTGPU_HD float clamp(float a, float low, float high) { return a < low ? low : (a > high ? high : a); }

// ---- quanta: a similarity in [-1, 1] as an integer number of 2^-22

constexpr int QUANTA_PER_UNIT = 1 << 22;
constexpr int BITS_OF_THREE = 0x40400000;

// s clamped to [-1, 1], to the nearest quantum, ties to even: in [-2^22, 2^22]. Floats in [2, 4) are spaced by 2^-22
// and 4 follows the last of them, so adding 3 rounds and the bits count quanta upwards from those of 3.
SMARTGPU_HD int quantise(float s) { return bits(add(clamp(s, -1.0f, 1.0f), 3.0f)) - BITS_OF_THREE; }

// Back to a float: exact, since a quantum count has at most 23 bits.
SMARTGPU_HD float unquantise(int q) { return mul(static_cast<float>(q), 1.0f / QUANTA_PER_UNIT); }

// ---- similarity kinds, from the dot product xy = x.y and the squared norms xx = x.x, yy = y.y.
// Symmetric to the bit: exchanging x and y exchanges only operands of commutative operations.

enum Kind : int { DOT = 0, COSINE = 1, COSINE_SHIFTED = 2, COSINE_SQUARED = 3, RBF = 4, EXP_EUCLIDEAN = 5 };

// parameter: a power of two that brings the products into [-1, 1]
SMARTGPU_HD float dot(float xy, float parameter) { return mul(xy, parameter); }

// A zero row has cosine 0 with everything, itself included. Rows of unit length: pass xx = yy = 1, and xy comes back.
SMARTGPU_HD float cosine(float xy, float xx, float yy) {
    if (!(xx > 0.0f) || !(yy > 0.0f)) return 0.0f;
    return clamp(div(xy, mul(root(xx), root(yy))), -1.0f, 1.0f);
}

SMARTGPU_HD float cosine_shifted(float xy, float xx, float yy) { return mul(add(1.0f, cosine(xy, xx, yy)), 0.5f); }

SMARTGPU_HD float cosine_squared(float xy, float xx, float yy) {
    const float c = cosine(xy, xx, yy);
    return mul(c, c);
}

// |x - y|^2, never below 0 (where cancellation would put it for equal rows)
SMARTGPU_HD float squared_distance(float xy, float xx, float yy) {
    const float r = sub(add(xx, yy), mul(2.0f, xy));
    return r > 0.0f ? r : 0.0f;
}

// exp(-gamma |x - y|^2)
SMARTGPU_HD float rbf(float xy, float xx, float yy, float gamma) {
    return exponential(-mul(gamma, squared_distance(xy, xx, yy)));
}

// exp(-|x - y| / d), submodlib's "euclidean"; d the number of features
SMARTGPU_HD float exp_euclidean(float xy, float xx, float yy, float d) {
    return exponential(-div(root(squared_distance(xy, xx, yy)), d));
}

// parameter: dot's scale, rbf's gamma, exp_euclidean's d; not read by the cosines
SMARTGPU_HD float similarity(Kind kind, float xy, float xx, float yy, float parameter) {
    switch (kind) {
        case COSINE: return cosine(xy, xx, yy);
        case COSINE_SHIFTED: return cosine_shifted(xy, xx, yy);
        case COSINE_SQUARED: return cosine_squared(xy, xx, yy);
        case RBF: return rbf(xy, xx, yy, parameter);
        case EXP_EUCLIDEAN: return exp_euclidean(xy, xx, yy, parameter);
        default: return dot(xy, parameter);
    }
}

// ---- facility location: one row's term of a gain, max(s_ij - level_i, 0), in quanta

// s in [-2^22, 2^22] and level in [0, 2^22]: the difference stays far inside int.
SMARTGPU_HD int excess(int s, int level) { return s > level ? s - level : 0; }

// With an integer row weight w >= 0. Sums stay below 2^62 while the weights sum to at most 2^40.
SMARTGPU_HD long long excess(int s, int level, long long w) { return w * excess(s, level); }

// ---- the order of candidates: larger gain first, the lower index wins ties

template <typename Gain>
SMARTGPU_HD bool better(Gain gain_a, long long index_a, Gain gain_b, long long index_b) {
    return gain_a > gain_b || (gain_a == gain_b && index_a < index_b);
}

// ---- graph cut: total_j - lambda sum_{i in S} (s_ij + s_ji) - lambda s_jj, left to right

SMARTGPU_HD double graph_cut_gain(double total, double chosen, double self, double lambda) {
    return sub(sub(total, mul(lambda, chosen)), mul(lambda, self));
}

// ---- log-determinant: the Schur complement of a candidate after one more pick

// Entry of candidate i in the Cholesky row of pick j: (s_ij - c_i.c_j) / sqrt(residual_j), residual_j > 0
SMARTGPU_HD double log_det_entry(double s, double inner, double residual_j) {
    return div(sub(s, inner), root(residual_j));
}

// The residual of i then falls by the entry's square. K + lambda I has no Schur complement below lambda, so rounding
// is not let below it either: a copy of a chosen row keeps a gain of log lambda or more, never -infinity.
SMARTGPU_HD double log_det_residual(double residual_i, double entry, double lambda) {
    const double r = sub(residual_i, mul(entry, entry));
    return r > lambda ? r : lambda;
}

}  // namespace smartgpu
