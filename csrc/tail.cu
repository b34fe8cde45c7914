// The sparse tail of one facility-location selection: many picks in one cooperative launch, no host in between.
//
// Survivors, the pairs with q_ij > level_i, are stored by column (kernels/survivors.py) and, for this, by row as well. A
// step: the best candidate of all blocks; its column's pairs raise the levels of some rows; each of those rows is walked,
// and every candidate in it loses what lay between the old level and the new. Exact integers: no order changes a bit.
// Two grid barriers a pick: one in the search for the best, one before gains are read again.
//
// Letters: r represented rows i, n candidates j, k picks.
#include "team.cuh"

namespace smartgpu {

constexpr int TAIL_THREADS = 1024;
constexpr int AT_ONCE = 4;  // candidates that a thread has asked for at a time
constexpr long long PICKED = -(1ll << 62);  // below every excess, also with all losses still to come

// All that the launches need; 8 bytes each. Null pointers: not asked for.
struct Tail {
    const long long* ptr;   // (n + 1,) where each column's pairs begin
    const int* rows;        // (nnz,) int32
    const int* q;           // (nnz,) quanta
    long long* row_ptr;     // (r + 1,) where each row's pairs begin
    long long* cursor;      // (r,) pairs of each row so far: counts, then the next free place
    long long* pairs;       // by row: q 2^32 + column
    int* level;             // (r,) raised in place
    const long long* weights;  // (r,); null: 1
    long long* excess;      // (n,) the candidates' own now; below 0 where one may not be picked. Changed in place
    const double* before;   // (n,) a gain is before_j + weight scale excess_j + after_j
    const double* after;    // (n,)
    long long n, k, low;
    double scale, weight;
    double until;           // stop as soon as what is reached is that much
    double* reached;        // (1,) changed in place
    long long* made;        // (2,) picks made by this launch; 1 if nothing is left to pick
    double* log;            // (k, 2) picks and their gains
    Exchange* exchange;     // (1,) zero
};

template <class T, class Each>
SMARTGPU_DEVICE void over_columns(T& team, const Tail& tail, Each each) {
    for (long long j = team.warp_index(); j < tail.n; j += team.warp_total())
        for (long long at = tail.ptr[j] + team.lane; at < tail.ptr[j + 1]; at += team.lanes)
            if (tail.q[at] > tail.level[tail.rows[at]]) each(j, tail.rows[at], tail.q[at]);
}

// cursor[i] += the pairs of row i that still matter
template <class T>
SMARTGPU_DEVICE void count_by_row(T& team, const Tail& tail) {
    over_columns(team, tail, [&](long long, int i, int) { add_global(&tail.cursor[i], 1); });
}

// Writes them, from cursor[i] = row_ptr[i] on. The order of arrival is the order in a row, which is left open.
template <class T>
SMARTGPU_DEVICE void fill_by_row(T& team, const Tail& tail) {
    over_columns(team, tail, [&](long long j, int i, int q) {
        tail.pairs[fetch_add(&tail.cursor[i], 1ll)] = static_cast<long long>(q) << 32 | j;
    });
}

SMARTGPU_DEVICE double tail_key(const Tail& tail, long long j, long long excess) {
    double key = mul(mul(static_cast<double>(excess), tail.scale), tail.weight);
    if (tail.before) key = add(tail.before[j], key);
    if (tail.after) key = add(key, tail.after[j]);
    return key;
}

// The best candidate of this block, which owns neighbouring ones.
template <class T>
SMARTGPU_DEVICE Best best_of_own(T& team, const Tail& tail) {
    const long long share = (tail.n + team.ranks - 1) / team.ranks, first = share * team.rank;
    const long long last = first + share < tail.n ? first + share : tail.n;
    Best mine = nobody();
    for (long long j = first + team.thread; j < last; j += AT_ONCE * team.threads) {
        long long excess[AT_ONCE];
#pragma unroll
        for (int u = 0; u < AT_ONCE; ++u) {
            const long long at = j + u * team.threads;
            excess[u] = at < last ? tail.excess[at] : -1;
        }
#pragma unroll
        for (int u = 0; u < AT_ONCE; ++u) {
            if (excess[u] < 0) continue;
            const long long at = j + u * team.threads;
            const Best now = {tail_key(tail, at, excess[u]), at};
            if (beats(now, mine, tail.low != 0)) mine = now;
        }
    }
    return team.best_of_block(mine, tail.low != 0);
}

// Raise the levels by column `pick`; whoever raises one walks its row.
template <class T>
SMARTGPU_DEVICE void walk(T& team, const Tail& tail, long long pick) {
    const long long end = tail.ptr[pick + 1];
    for (long long at = tail.ptr[pick] + team.warp_index(); at < end; at += team.warp_total()) {
        const int i = tail.rows[at], high = tail.q[at];
        // asked for before they are known to be wanted: they come together
        const long long first = tail.row_ptr[i], last = tail.row_ptr[i + 1], w = tail.weights ? tail.weights[i] : 1;
        const int low = team.from_first_lane(tail.level[i]);  // a column holds a row once: nobody else changes it
        if (high <= low) continue;
        if (team.lane == 0) tail.level[i] = high;
        for (long long e = first + team.lane; e < last; e += team.lanes) {
            const long long pair = tail.pairs[e];
            const int s = static_cast<int>(pair >> 32);
            if (s <= low) continue;
            add_global(&tail.excess[pair & 0xffffffff], -w * ((s < high ? s : high) - low));
        }
    }
}

template <class T>
SMARTGPU_DEVICE void sparse_tail(T& team, const Tail& tail) {
    const bool low = tail.low != 0;
    double reached = *tail.reached;  // added up alike in every thread
    long long t = 0;
    bool nothing = false;
    Best own = best_of_own(team, tail);
    while (t < tail.k && reached < tail.until) {
        const Best best = team.best_of_blocks(own, low);
        nothing = best.at < 0;
        if (nothing) break;
        reached = add(reached, best.key);
        if (team.leader()) {
            tail.log[2 * t] = static_cast<double>(best.at), tail.log[2 * t + 1] = best.key;
            add_global(&tail.excess[best.at], PICKED);  // other blocks take losses from it meanwhile
        }
        ++t;
        walk(team, tail, best.at);
        team.sync();
        if (own.at < 0) continue;
        // Excesses only fall: as long as that of the best one has not, no other of the block has passed it.
        const long long excess = tail.excess[own.at];
        if (excess < 0 || tail_key(tail, own.at, excess) != own.key) own = best_of_own(team, tail);
    }
    if (team.leader()) tail.made[0] = t, tail.made[1] = nothing, *tail.reached = reached;
}

}  // namespace smartgpu

#if defined(__CUDACC_RTC__) || defined(__CUDACC__)

// Cooperative, one block on each multiprocessor.
extern "C" __global__ void __launch_bounds__(smartgpu::TAIL_THREADS, 1)
    sparse_tail(const __grid_constant__ smartgpu::Tail tail) {
    __shared__ smartgpu::Scratch scratch;
    smartgpu::Team<smartgpu::GRID> team(&scratch, tail.exchange);
    smartgpu::sparse_tail(team, tail);
}

extern "C" __global__ void __launch_bounds__(smartgpu::TAIL_THREADS, 1)
    count_by_row(const __grid_constant__ smartgpu::Tail tail) {
    smartgpu::Team<smartgpu::GRID> team(nullptr, nullptr);
    smartgpu::count_by_row(team, tail);
}

extern "C" __global__ void __launch_bounds__(smartgpu::TAIL_THREADS, 1)
    fill_by_row(const __grid_constant__ smartgpu::Tail tail) {
    smartgpu::Team<smartgpu::GRID> team(nullptr, nullptr);
    smartgpu::fill_by_row(team, tail);
}

#endif
