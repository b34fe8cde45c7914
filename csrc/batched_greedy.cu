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
#include "problem.cuh"

namespace smartgpu {

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
    Team<SPAN> team(scratch, SPAN == BLOCK ? nullptr : batch.exchange + number);
    char* slot = batch.workspace + number * batch.slot;
    while (true) {
        const long long next = team.tell(team.leader() ? fetch_add(batch.queue, 1ll) : 0);
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
SMARTGPU_DEVICE void run(const smartgpu::Batch& batch) {
    __shared__ smartgpu::Scratch scratch;
    unsigned* staged = reinterpret_cast<unsigned*>(shared_memory);
    char* arena = reinterpret_cast<char*>(shared_memory) + smartgpu::STAGED_BYTES<A>;
    const int number = SPAN == smartgpu::CLUSTER ? blockIdx.x / smartgpu::CLUSTER_BLOCKS : blockIdx.x;
    smartgpu::batched_greedy<A, SPAN>(batch, number, staged, arena, &scratch);
}

// Quanta of n rows, (n, pitch): what every problem begins with, to be compared with another engine's. One block.
template <class A>
SMARTGPU_DEVICE void probe(const smartgpu::Batch& batch, int* q, int pitch) {
    smartgpu::Team<smartgpu::BLOCK> team(nullptr, nullptr);
    const smartgpu::Rows pool = {batch.x, batch.stride, batch.rows, static_cast<int>(batch.start[1]),
                                 static_cast<int>(batch.d) * A::bytes};
    unsigned* staged = reinterpret_cast<unsigned*>(shared_memory);
    smartgpu::similarities<A>(team, pool, static_cast<smartgpu::Kind>(batch.kind), q, pitch, staged);
}

#define SMARTGPU_KERNEL extern "C" __global__ void

#define SMARTGPU_KERNELS(name, A)                                                       \
    SMARTGPU_KERNEL __launch_bounds__(smartgpu::THREADS, smartgpu::A::blocks)           \
    batched_greedy_##name(const __grid_constant__ smartgpu::Batch batch) {              \
        run<smartgpu::A, smartgpu::BLOCK>(batch);                                       \
    }                                                                                   \
    SMARTGPU_KERNEL __launch_bounds__(smartgpu::THREADS, smartgpu::A::blocks)           \
    quanta_##name(const __grid_constant__ smartgpu::Batch batch, int* q, long long pitch) { \
        probe<smartgpu::A>(batch, q, static_cast<int>(pitch));                          \
    }                                                                                   \
    SMARTGPU_CLUSTER_KERNEL(name, A)

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define SMARTGPU_CLUSTER_KERNEL(name, A)                                            \
    SMARTGPU_KERNEL __cluster_dims__(8, 1, 1) __launch_bounds__(smartgpu::THREADS, 1) \
    batched_greedy_##name##_cluster(const __grid_constant__ smartgpu::Batch batch) {  \
        run<smartgpu::A, smartgpu::CLUSTER>(batch);                                   \
    }
#else
#define SMARTGPU_CLUSTER_KERNEL(name, A)
#endif

// All four; a program that is built while somebody waits names the one that it needs.
#if !defined(SMARTGPU_ONLY) || SMARTGPU_ONLY == 0
SMARTGPU_KERNELS(fp16, Fp16)
#endif
#if !defined(SMARTGPU_ONLY) || SMARTGPU_ONLY == 1
SMARTGPU_KERNELS(bf16, Bf16)
#endif
#if !defined(SMARTGPU_ONLY) || SMARTGPU_ONLY == 2
SMARTGPU_KERNELS(tf32, Tf32)
#endif
#if !defined(SMARTGPU_ONLY) || SMARTGPU_ONLY == 3
SMARTGPU_KERNELS(tf32x3, Tf32x3)
#endif

#endif
