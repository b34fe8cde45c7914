// One problem of a batch of selections: what a launch is told, where a problem's arrays lie, and loops over them.
//
// Letters: i over rows, j over candidates (the same rows, here numbered from 0 in each problem), d features, k picks.
#pragma once

#include "tiles.cuh"

namespace smartgpu {

enum Objective : int { FACILITY_LOCATION, GRAPH_CUT, LOG_DET };

constexpr int THREADS = 32 * TILE_WARPS;
constexpr int CLUSTER_BLOCKS = 8;  // the most that every GPU with clusters can run
constexpr long long CLOSED = -(1ll << 62);  // below every excess, also with all losses still to come

// All that a launch needs, 8 bytes each: the host fills it in as an array. Null pointers: not asked for.
struct Batch {
    const char* x;               // (rows, d) features, d a multiple of 16, rows aligned to 16 bytes
    long long stride;            // bytes between rows
    long long d;
    const long long* rows;       // (total,) rows of x, problem after problem
    const long long* start;      // (problems + 1,) where each problem's begin
    const long long* picks;      // (problems + 1,) where each problem's picks begin: it makes as many as there is room
    const long long* order;      // (count,) problems, dearest first
    long long count;
    long long objective, kind, low;
    const long long* weights;    // (total,) facility location's row weights; null: 1
    const double* scale;         // (problems,) what an excess is worth; null: quantum
    double quantum;
    const double* factors;       // (total,) log-determinant's features are factor x: of unit length in float64
    double a, b, lambda;         // s = a x.y + b
    double weight;               // a gain is before_j + weight g_j + after_j
    const double* before;        // (total,)
    const double* after;         // (total,)
    long long* queue;            // how many problems are handed out
    Exchange* exchange;          // (teams,) of clusters; null for blocks
    char* workspace;             // (teams, slot)
    long long slot;              // bytes
    long long arena;             // bytes of shared memory behind the staged tiles: small problems live there
    long long* indices;          // (all picks,)
    double* gains;               // (all picks,)
};

// Where a problem's arrays lie from the beginning of its workspace. smartgpu/backends/cuda_batch.py has the same sums.
struct Layout {
    long long vectors[4];  // of 8 bytes an entry
    long long integers[3];  // of 4
    long long matrix, counters, bytes;
    int pitch;

    static SMARTGPU_HD long long place(long long& at, long long bytes) {
        const long long here = at;
        at += (bytes + 15) / 16 * 16;
        return here;
    }
    SMARTGPU_HD Layout(Objective objective, bool squared, long long n, long long k, long long d) {
        long long at = 0;
        counters = place(at, 16);
        pitch = static_cast<int>((n + 7) / 8 * 8);  // whole sectors of 32 bytes
        const bool dense = objective == FACILITY_LOCATION || (objective == GRAPH_CUT && squared);
        const long long longer = objective == GRAPH_CUT && !squared && d > n ? d : n;
        for (auto& each : vectors) each = place(at, 8 * longer);
        for (auto& each : integers) each = place(at, 4 * n);
        matrix = place(at, dense ? 4 * n * pitch : objective == LOG_DET ? 8 * k * n : 0);
        bytes = at;
    }
};

// One problem: its rows, and its arrays, which are in shared memory where they fit.
template <class A>
struct Problem {
    const Batch& batch;
    Rows pool;
    int n, k, d;
    long long first, first_pick;  // of its rows and picks among all
    bool low;
    Kind kind;
    double scale;
    double* vectors[4];
    long long* sums;
    int *level, *changed, *old, *q, *counters;
    int pitch;

    SMARTGPU_DEVICE Problem(const Batch& batch_, long long p, char* arena, char* slot) : batch(batch_) {
        first = batch.start[p], first_pick = batch.picks[p];
        n = static_cast<int>(batch.start[p + 1] - first), k = static_cast<int>(batch.picks[p + 1] - first_pick);
        d = static_cast<int>(batch.d), low = batch.low != 0, kind = static_cast<Kind>(batch.kind);
        pool = {batch.x, batch.stride, batch.rows + first, n, d * A::bytes};
        scale = batch.scale ? batch.scale[p] : batch.quantum;
        const Layout at(static_cast<Objective>(batch.objective), kind == COSINE_SQUARED, n, k, d);
        char* base = at.bytes <= batch.arena ? arena : slot;
        for (int v = 0; v < 4; ++v) vectors[v] = reinterpret_cast<double*>(base + at.vectors[v]);
        sums = reinterpret_cast<long long*>(vectors[0]);
        level = reinterpret_cast<int*>(base + at.integers[0]);
        changed = reinterpret_cast<int*>(base + at.integers[1]);
        old = reinterpret_cast<int*>(base + at.integers[2]);
        q = reinterpret_cast<int*>(base + at.matrix);
        counters = reinterpret_cast<int*>(base + at.counters);
        pitch = at.pitch;
    }

    SMARTGPU_DEVICE const int* column(int j) const { return q + static_cast<long long>(j) * pitch; }
    SMARTGPU_DEVICE long long weight(int i) const { return batch.weights ? batch.weights[first + i] : 1; }

    // What candidates are compared by, from the objective's own gain.
    SMARTGPU_DEVICE double key(int j, double gain) const {
        gain = mul(gain, batch.weight);
        if (batch.before) gain = add(batch.before[first + j], gain);
        if (batch.after) gain = add(gain, batch.after[first + j]);
        return gain;
    }

    template <class T>
    SMARTGPU_DEVICE void record(T& team, int t, Best best) {
        if (!team.leader()) return;
        batch.indices[first_pick + t] = best.at;
        batch.gains[first_pick + t] = best.key;
    }

    // x_i . x_j or, with a vector, x_i . v: float64, the same order for every i. For a whole warp.
    template <class T, class Other>
    SMARTGPU_DEVICE double product(T& team, int i, Other other) const {
        const char* row = pool.row(i);
        double sum = 0.0;
        for (int k = team.lane; k < d; k += team.lanes) sum = add(sum, mul(A::value(row, k), other(k)));
        return team.sum_of_warp(sum);
    }
    template <class T>
    SMARTGPU_DEVICE double product_of_rows(T& team, int i, int j) const {
        const char* other = pool.row(j);
        return product(team, i, [&](int k) { return A::value(other, k); });
    }
};

// each(j) for every candidate, a thread for each; each(j) with a whole warp for each
template <class T, class Each>
SMARTGPU_DEVICE void threads_over(T& team, int n, Each each) {
    for (int j = team.index(); j < n; j += team.total()) each(j);
}
template <class T, class Each>
SMARTGPU_DEVICE void warps_over(T& team, int n, Each each) {
    for (int j = team.warp_index(); j < n; j += team.warp_total()) each(j);
}

// sums[j] += sum_{m < count} term(m, j): where there are more threads than candidates several share one.
template <class T, class Term>
SMARTGPU_DEVICE void add_sums(T& team, int n, int count, long long* sums, Term term) {
    const int parts = team.total() > n ? team.total() / n : 1;
    for (int u = team.index(); u < n * parts; u += team.total()) {
        const int j = u % n, part = u / n;
        long long sum = 0;
        for (int m = part; m < count; m += parts) sum += term(m, j);
        if (sum == 0) continue;
        if (parts == 1) sums[j] += sum;
        else fetch_add(&sums[j], sum);
    }
}

}  // namespace smartgpu
