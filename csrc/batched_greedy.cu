// Many independent selections in one launch: a block, or a cluster of 8, takes one problem after the other.
//
// A problem is n rows of the pool and k to choose of them. Its whole greedy loop runs here: gains, the best of them
// (ties to the lower index, or the higher), what the pick changes. A queue hands problems out, dearest first, so that
// every multiprocessor is busy until the end whatever their sizes are.
//
// Facility location is integers from the similarity on, so its picks and gains are those of any other backend to the bit.
// Graph cut and log-determinant are sums in float64, in one order for every candidate, so that copies tie: their gains
// differ from other backends' in the last places, and picks where two candidates are as close as that.
//
// Letters: i over rows, j over candidates (the same rows, here numbered from 0 in each problem), d features.
#include "tiles.cuh"

namespace smartgpu {

enum Objective : int { FACILITY_LOCATION, GRAPH_CUT, LOG_DET };

constexpr int THREADS = 32 * TILE_WARPS;
constexpr int CLUSTER_BLOCKS = 8;  // the most that every GPU with clusters can run
constexpr long long CLOSED = -(1ll << 62);  // below every excess, also with all losses still to come

// All that a launch needs; 8 bytes each, so that the host can fill it in as an array. Null pointers: not asked for.
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
    Exchange* exchange;          // (teams,)
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

// f(S) = sum_i w_i max(0, max_{j in S} s_ij). Levels and excesses are exact; a pick changes some rows' levels, and every
// excess loses what lay between the old ones and the new: only those rows of q are read.
template <class A, class T>
SMARTGPU_DEVICE void facility_location(T& team, Problem<A>& p, unsigned* staged) {
    threads_over(team, p.n, [&](int j) { p.sums[j] = 0, p.level[j] = 0; });
    if (team.leader()) p.counters[0] = p.counters[1] = 0;
    similarities<A>(team, p.pool, p.kind, p.q, p.pitch, staged);
    add_sums(team, p.n, p.n, p.sums, [&](int i, int j) { return p.weight(i) * excess(p.column(i)[j], 0); });
    team.sync();
    for (int t = 0; t < p.k; ++t) {
        Best mine = nobody();
        threads_over(team, p.n, [&](int j) {
            if (p.sums[j] < 0) return;
            const Best now = {p.key(j, mul(static_cast<double>(p.sums[j]), p.scale)), j};
            if (beats(now, mine, p.low)) mine = now;
        });
        const Best best = team.best(mine, p.low);
        p.record(team, t, best);
        if (t + 1 == p.k) break;
        const int pick = static_cast<int>(best.at);
        int* count = p.counters + t % 2;  // of rows that change; the other one is cleared for the next pick
        if (team.leader()) p.counters[(t + 1) % 2] = 0, p.sums[pick] = CLOSED;
        threads_over(team, p.n, [&](int i) {
            const int above = p.column(pick)[i];
            if (above <= p.level[i]) return;
            const int m = fetch_add(count, 1);
            p.changed[m] = i, p.old[m] = p.level[i];
            p.level[i] = above;
        });
        team.sync();
        add_sums(team, p.n, *count, p.sums, [&](int m, int j) {
            const int i = p.changed[m], low = p.old[m], high = p.level[i], s = p.column(i)[j];
            return -p.weight(i) * (s <= low ? 0 : (s < high ? s : high) - low);
        });
        team.sync();
    }
}

// The gain of j is total_j - lambda (2 sum_{p in S} s_pj + s_jj); s = a x.y + b, in float64 from the features:
// v = a (sum_i x_i - 2 lambda sum_{p in S} x_p), gain_j = x_j.v + b (n - 2 lambda |S|) - lambda s_jj.
template <class A, class T>
SMARTGPU_DEVICE void graph_cut(T& team, Problem<A>& p) {
    const Batch& b = p.batch;
    double *v = p.vectors[0], *whole = p.vectors[1], *picked = p.vectors[2], *own = p.vectors[3];
    threads_over(team, p.n, [&](int j) { p.changed[j] = 0; });
    threads_over(team, p.d, [&](int k) {
        double sum = 0.0;
        for (int i = 0; i < p.n; ++i) sum = add(sum, A::value(p.pool.row(i), k));
        whole[k] = sum, picked[k] = 0.0, v[k] = mul(b.a, sum);
    });
    warps_over(team, p.n, [&](int j) {
        const double square = p.product_of_rows(team, j, j);
        if (team.lane == 0) own[j] = add(mul(b.a, square), b.b);
    });
    team.sync();
    for (int t = 0; t < p.k; ++t) {
        Best mine = nobody();
        const double constant = mul(b.b, sub(static_cast<double>(p.n), mul(mul(2.0, b.lambda), static_cast<double>(t))));
        warps_over(team, p.n, [&](int j) {
            if (p.changed[j]) return;
            const double along = p.product(team, j, [&](int k) { return v[k]; });
            const Best now = {p.key(j, sub(add(along, constant), mul(own[j], b.lambda))), j};
            if (beats(now, mine, p.low)) mine = now;
        });
        const Best best = team.best(mine, p.low);
        p.record(team, t, best);
        if (t + 1 == p.k) break;
        const int pick = static_cast<int>(best.at);
        if (team.leader()) p.changed[pick] = 1;
        threads_over(team, p.d, [&](int k) {
            picked[k] = add(picked[k], A::value(p.pool.row(pick), k));
            v[k] = mul(b.a, sub(whole[k], mul(mul(2.0, b.lambda), picked[k])));
        });
        team.sync();
    }
}

// The same for a kind that is no product of features: sums of quanta, exact.
template <class A, class T>
SMARTGPU_DEVICE void graph_cut_of_quanta(T& team, Problem<A>& p, unsigned* staged) {
    long long *total = p.sums, *inside = reinterpret_cast<long long*>(p.vectors[1]);
    threads_over(team, p.n, [&](int j) { total[j] = 0, inside[j] = 0, p.changed[j] = 0; });
    similarities<A>(team, p.pool, p.kind, p.q, p.pitch, staged);
    add_sums(team, p.n, p.n, total, [&](int i, int j) { return static_cast<long long>(p.column(i)[j]); });
    team.sync();
    for (int t = 0; t < p.k; ++t) {
        Best mine = nobody();
        threads_over(team, p.n, [&](int j) {
            if (p.changed[j]) return;
            const double penalty = mul(p.batch.lambda, static_cast<double>(inside[j] + p.column(j)[j]));
            const Best now = {p.key(j, mul(p.scale, sub(static_cast<double>(total[j]), penalty))), j};
            if (beats(now, mine, p.low)) mine = now;
        });
        const Best best = team.best(mine, p.low);
        p.record(team, t, best);
        const int pick = static_cast<int>(best.at);
        if (team.leader()) p.changed[pick] = 1;
        threads_over(team, p.n, [&](int j) { inside[j] += 2ll * p.column(pick)[j]; });
        team.sync();
    }
}

// log to multiples of 2^-40, coarser than its rounding: what ties in theory ties here. Adding 1.5 2^52 rounds.
SMARTGPU_HD double log_on_grid(double residual) {
    const double grid = 1099511627776.0, round = 6755399441055744.0;
#if defined(__CUDA_ARCH__) || defined(__CUDACC_RTC__)
    const double exact = ::log(residual);
#else
    const double exact = std::log(residual);
#endif
    return div(sub(add(mul(exact, grid), round), round), grid);
}

// The gain of j is the log of its residual: the Schur complement in s_SS + lambda I, from rows of a Cholesky factor, one
// for each pick, of all candidates. s in float64 from features of unit length.
template <class A, class T>
SMARTGPU_DEVICE void log_det(T& team, Problem<A>& p) {
    const Batch& b = p.batch;
    const bool squared = p.kind == COSINE_SQUARED;
    double *residual = p.vectors[0], *along = p.vectors[1], *rows = reinterpret_cast<double*>(p.q);
    const double* factors = b.factors + p.first;
    const auto similarity = [&](double product) { return squared ? mul(product, product) : add(mul(b.a, product), b.b); };
    warps_over(team, p.n, [&](int j) {
        const double square = mul(mul(p.product_of_rows(team, j, j), factors[j]), factors[j]);
        if (team.lane == 0) residual[j] = add(b.lambda, similarity(square)), p.changed[j] = 0;
    });
    team.sync();
    for (int t = 0; t < p.k; ++t) {
        Best mine = nobody();
        threads_over(team, p.n, [&](int j) {
            if (p.changed[j]) return;
            const Best now = {p.key(j, log_on_grid(residual[j])), j};
            if (beats(now, mine, p.low)) mine = now;
        });
        const Best best = team.best(mine, p.low);
        p.record(team, t, best);
        if (t + 1 == p.k) break;
        const int pick = static_cast<int>(best.at);
        const double pivot = residual[pick];
        if (team.leader()) p.changed[pick] = 1;
        warps_over(team, p.n, [&](int j) {
            const double product = mul(mul(p.product_of_rows(team, j, pick), factors[j]), factors[pick]);
            if (team.lane == 0) along[j] = similarity(product);
        });
        team.sync();  // also: everybody has read the pivot
        threads_over(team, p.n, [&](int j) {
            double inner = 0.0;
            for (int u = 0; u < t; ++u) {
                const double* row = rows + static_cast<long long>(u) * p.n;
                inner = add(inner, mul(row[pick], row[j]));
            }
            const double entry = log_det_entry(along[j], inner, pivot);
            rows[static_cast<long long>(t) * p.n + j] = entry;
            residual[j] = log_det_residual(residual[j], entry, b.lambda);
        });
        team.sync();
    }
}

// What one team does: take the next problem until there are none.
template <class A, int SPAN>
SMARTGPU_DEVICE void batched_greedy(const Batch& batch, int number, unsigned* staged, char* arena, Scratch* scratch) {
    Exchange* exchange = batch.exchange + number;
    Team<SPAN> team(scratch, exchange);
    char* slot = batch.workspace + number * batch.slot;
    while (true) {
        if (team.leader()) exchange->next = fetch_add(batch.queue, 1ll);
        team.sync();
        const long long next = exchange->next;
        team.sync();  // read by all before the leader takes another
        if (next >= batch.count) return;
        Problem<A> p(batch, batch.order[next], SPAN == BLOCK ? arena : slot, slot);
        if (batch.objective == FACILITY_LOCATION) facility_location<A>(team, p, staged);
        else if (batch.objective == LOG_DET) log_det<A>(team, p);
        else if (p.kind == COSINE_SQUARED) graph_cut_of_quanta<A>(team, p, staged);
        else graph_cut<A>(team, p);
        team.sync();
    }
}

}  // namespace smartgpu

#if defined(__CUDACC_RTC__) || defined(__CUDACC__)

// Shared memory: the staged tiles, then the arena. Block number u of a cluster launch belongs to team u / 8.
extern __shared__ __align__(16) unsigned char shared_memory[];

template <class A, int SPAN>
__device__ __forceinline__ void run(const smartgpu::Batch* batch) {
    __shared__ smartgpu::Scratch scratch;
    unsigned* staged = reinterpret_cast<unsigned*>(shared_memory);
    char* arena = reinterpret_cast<char*>(shared_memory) + smartgpu::STAGED_BYTES<A>;
    const int number = SPAN == smartgpu::CLUSTER ? blockIdx.x / smartgpu::CLUSTER_BLOCKS : blockIdx.x;
    smartgpu::batched_greedy<A, SPAN>(*batch, number, staged, arena, &scratch);
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define SMARTGPU_CLUSTER_KERNEL(name, A)                                                                      \
    extern "C" __global__ void __cluster_dims__(8, 1, 1) __launch_bounds__(smartgpu::THREADS, 1)              \
        name##_cluster(const smartgpu::Batch* batch) { run<smartgpu::A, smartgpu::CLUSTER>(batch); }
#else
#define SMARTGPU_CLUSTER_KERNEL(name, A)
#endif

#define SMARTGPU_KERNELS(name, A)                                                                      \
    extern "C" __global__ void __launch_bounds__(smartgpu::THREADS, smartgpu::A::blocks)                \
        name(const smartgpu::Batch* batch) { run<smartgpu::A, smartgpu::BLOCK>(batch); }               \
    SMARTGPU_CLUSTER_KERNEL(name, A)

// Quanta of n rows, (n, pitch): what every problem begins with, to be compared with another engine's. One block.
#define SMARTGPU_PROBE(name, A)                                                                                    \
    extern "C" __global__ void __launch_bounds__(smartgpu::THREADS, smartgpu::A::blocks)                            \
        name(const smartgpu::Batch* batch, int* q, long long pitch) {                                                     \
        __shared__ smartgpu::Scratch scratch;                                                                       \
        smartgpu::Team<smartgpu::BLOCK> team(&scratch, nullptr);                                                    \
        const smartgpu::Rows pool = {batch->x, batch->stride, batch->rows, static_cast<int>(batch->start[1]),        \
                                     static_cast<int>(batch->d) * smartgpu::A::bytes};                              \
        smartgpu::similarities<smartgpu::A>(team, pool, static_cast<smartgpu::Kind>(batch->kind), q, static_cast<int>(pitch),          \
                                            reinterpret_cast<unsigned*>(shared_memory));                            \
    }

// All four; a program that is built while somebody waits names the one that it needs.
#if !defined(SMARTGPU_ONLY) || SMARTGPU_ONLY == 0
SMARTGPU_KERNELS(batched_greedy_fp16, Fp16)
SMARTGPU_PROBE(quanta_fp16, Fp16)
#endif
#if !defined(SMARTGPU_ONLY) || SMARTGPU_ONLY == 1
SMARTGPU_KERNELS(batched_greedy_bf16, Bf16)
SMARTGPU_PROBE(quanta_bf16, Bf16)
#endif
#if !defined(SMARTGPU_ONLY) || SMARTGPU_ONLY == 2
SMARTGPU_KERNELS(batched_greedy_tf32, Tf32)
SMARTGPU_PROBE(quanta_tf32, Tf32)
#endif
#if !defined(SMARTGPU_ONLY) || SMARTGPU_ONLY == 3
SMARTGPU_KERNELS(batched_greedy_tf32x3, Tf32x3)
SMARTGPU_PROBE(quanta_tf32x3, Tf32x3)
#endif

#endif
