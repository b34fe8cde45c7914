// Every loop of csrc/ once, in threads, for ThreadSanitizer. Prints "done".
#include "emulate.cpp"

#include <cstdio>
#include <numeric>

using Longs = std::vector<long long>;

template <class A>
void batch(long long objective, long long kind, int ranks) {
    const int n = 150, d = 16, k = 12;
    std::vector<char> x(n * d * A::bytes);
    for (size_t i = 0; i < x.size(); ++i) x[i] = i % A::bytes == 1 ? 0x2c : static_cast<char>(i * 7919 % 61);
    Longs rows(2 * n), start = {0, n, n + 20, 2 * n}, picks = {0, k, k + 3, 2 * k}, order = {0, 2, 1}, indices(2 * k), queue(1);
    for (int i = 0; i < 2 * n; ++i) rows[i] = i % n;
    std::vector<double> gains(2 * k), factors(2 * n, 1.0);
    std::vector<Exchange> exchange(1);
    const long long slot = Layout(static_cast<Objective>(objective), kind == 3, n, k, d).bytes;
    std::vector<char> workspace(slot);
    Batch b = {};
    b.x = x.data(), b.stride = d * A::bytes, b.d = d, b.rows = rows.data(), b.start = start.data(), b.picks = picks.data();
    b.order = order.data(), b.count = 3, b.objective = objective, b.kind = kind, b.low = 1, b.quantum = 1, b.a = 1;
    b.factors = factors.data(), b.lambda = 0.4, b.weight = 1, b.queue = queue.data(), b.exchange = exchange.data();
    b.workspace = workspace.data(), b.slot = slot, b.indices = indices.data(), b.gains = gains.data();
    Emulated<A>::greedy(b, ranks);
}

void tail() {
    const int n = 40, r = 50;
    Longs ptr = {0}, row_ptr(r + 1), cursor(r), pairs(n * r), excess(n), made(2);
    std::vector<int> rows, q, level(r);
    for (int j = 0; j < n; ++j) {
        for (int i = 0; i < r; ++i)
            if ((i * 31 + j * 17) % 5 < 3) rows.push_back(i), q.push_back((i * 101 + j * 57) % 1000 + 1), excess[j] += q.back();
        ptr.push_back(rows.size());
    }
    std::vector<double> reached(1), log(2 * n);
    std::vector<Exchange> exchange(1);
    Tail t = {};
    t.ptr = ptr.data(), t.rows = rows.data(), t.q = q.data(), t.row_ptr = row_ptr.data(), t.cursor = cursor.data();
    t.pairs = pairs.data(), t.level = level.data(), t.excess = excess.data(), t.n = n, t.k = n, t.low = 1, t.scale = 1;
    t.weight = 1, t.until = 1e300, t.reached = reached.data(), t.made = made.data(), t.log = log.data();
    t.exchange = exchange.data();
    host_tail(&t, 0, 3, 2);
    std::partial_sum(cursor.begin(), cursor.end(), row_ptr.begin() + 1);
    std::copy(row_ptr.begin(), row_ptr.end() - 1, cursor.begin());
    host_tail(&t, 1, 3, 2);
    host_tail(&t, 2, 3, 2);
    if (made[0] != n) std::puts("a pick is missing");
}

int main() {
    for (int ranks = 1; ranks <= 2; ++ranks)
        for (long long kind = 1; kind <= 3; ++kind)
            for (long long objective = 0; objective < 3; ++objective) batch<Fp16>(objective, kind, ranks);
    tail();
    std::puts("done");
}
