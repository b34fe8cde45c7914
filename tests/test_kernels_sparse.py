"""Kernels over stored pairs, kept columns and features in float64, against definitions written out in numpy."""

from itertools import pairwise

import aot
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from smartgpu.kernels import greedy, launch, linear, swaps, walk

ONE = 2**22  # quanta of a similarity of 1
MOST = 2**39 - 1  # sum of weights


def put(a, device):
    return torch.from_numpy(np.ascontiguousarray(a)).to(device)


def stored(rng, r, n, fullest):
    """Columns of random length, some empty and one full, rows in any order: (ptr, rows, q)."""
    lengths = rng.integers(0, fullest + 1, n)
    lengths[rng.integers(n)] = r
    lengths[[0, -1]] = 0
    ptr = np.concatenate([[0], np.cumsum(lengths)])
    rows = np.concatenate([rng.permutation(r)[:m] for m in lengths]).astype(np.int32)
    q = rng.integers(-ONE, ONE + 1, len(rows)).astype(np.int32)
    q[rng.random(len(q)) < 0.1] = ONE
    return ptr, rows, q


def heavy(rng, r):
    """Weights with zeros that add up to the most there may be."""
    w = (rng.random(r) * (rng.random(r) > 0.2) * MOST / r).astype(np.int64)
    w[rng.integers(r)] += MOST - w.sum()
    return w


def over(ptr, rows, q, level, weights):
    """Every pair's w max(q - level, 0), summed by column, in Python's own integers."""
    terms = np.maximum(q.astype(object) - level[rows], 0) * (
        1 if weights is None else weights[rows].astype(object)
    )
    return np.array([sum(terms[a:b]) for a, b in pairwise(ptr)], object)


# Columns around the block of 512 pairs; the last split among programs.
SHAPES = [(5, 3, 5), (512, 7, 512), (1500, 9, 513), (3000, 3, 40)]


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weights"])
@pytest.mark.parametrize(("r", "n", "fullest"), SHAPES)
def test_walk(rng, device, r, n, fullest, weighted):
    ptr, rows, q = stored(rng, r, n, fullest)
    level = rng.integers(0, ONE, r).astype(np.int32)
    level[rng.random(r) < 0.3] = 0
    weights = heavy(rng, r) if weighted else None
    held = [put(a, device) for a in (ptr, rows, q, level)]
    w = put(weights, device) if weighted else None
    expected = over(ptr, rows, q, level, weights)
    np.testing.assert_array_equal(
        walk.sparse_excess(*held, weights=w).cpu().numpy(), expected.astype(np.int64)
    )
    cols = rng.integers(0, n, 2 * n)  # any order, repeated
    got = walk.sparse_excess(*held, weights=w, cols=put(cols, device))
    np.testing.assert_array_equal(got.cpu().numpy(), expected[cols].astype(np.int64))

    alive = q > level[rows]
    counts = np.array([alive[a:b].sum() for a, b in pairwise(ptr)])
    np.testing.assert_array_equal(walk.alive(*held).cpu().numpy(), counts)
    for known in (None, put(counts, device)):
        to_ptr, to_rows, to_q = (t.cpu().numpy() for t in walk.compact(*held, known))
        np.testing.assert_array_equal(to_ptr, np.concatenate([[0], np.cumsum(counts)]))
        np.testing.assert_array_equal(to_rows, rows[alive])
        np.testing.assert_array_equal(to_q, q[alive])

    for j in (0, int(np.diff(ptr).argmax()), n - 1):
        raised = put(level, device)
        walk.sparse_raise(*held[:3], raised, j)
        part = slice(ptr[j], ptr[j + 1])
        expected = level.copy()
        np.maximum.at(expected, rows[part], q[part])
        np.testing.assert_array_equal(raised.cpu().numpy(), expected)


def test_walk_of_nothing(device):
    ptr, rows, level = (put(np.zeros(m, t), device) for m, t in ((4, np.int64), (0, np.int32), (6, np.int32)))
    assert walk.sparse_excess(ptr, rows, rows, level).tolist() == [0, 0, 0]
    assert walk.sparse_excess(ptr, rows, rows, level, cols=ptr[:0]).shape == (0,)
    assert [len(t) for t in walk.compact(ptr, rows, rows, level)] == [4, 0, 0]
    walk.sparse_raise(ptr, rows, rows, level, 2)
    assert not level.any()


def test_walk_sums_that_are_as_large_as_they_may_be(device):
    """All of 2^39 weights on similarities of 1: 2^61."""
    weights = put(np.array([MOST // 2, MOST - MOST // 2]), device)
    ptr, rows = put(np.array([0, 2]), device), put(np.array([1, 0], np.int32), device)
    q, level = put(np.full(2, ONE, np.int32), device), put(np.zeros(2, np.int32), device)
    assert walk.sparse_excess(ptr, rows, q, level, weights=weights).tolist() == [MOST * ONE]
    assert greedy.column_excess(q[None], level, weights=weights).tolist() == [MOST * ONE]
    sums = put(np.array([MOST * ONE]), device)
    greedy.update(q[None].contiguous(), 0, level, sums, weights=weights)
    assert sums.tolist() == [0] and level.tolist() == [ONE, ONE]


# Around the tiles of 8 candidates and 512 rows, and the 4 row tiles of one program.
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weights"])
@pytest.mark.parametrize(("m", "r"), [(1, 1), (7, 511), (8, 512), (9, 513), (3, 2049), (17, 4100)])
def test_batch(rng, device, m, r, weighted):
    kept = rng.integers(-ONE, ONE + 1, (m, r)).astype(np.int32)
    kept[:, rng.random(r) < 0.2] = ONE
    level = np.where(rng.random(r) < 0.5, 0, rng.integers(0, ONE + 1, r)).astype(np.int32)
    level[: r // 2] = ONE  # tiles in which nothing changes
    weights = heavy(rng, r) if weighted else None

    def gains(level):
        terms = np.maximum(kept.astype(object) - level, 0) * (
            1 if weights is None else weights.astype(object)
        )
        return terms.sum(axis=1).astype(np.int64)

    columns, now, w = put(kept, device), put(level, device), put(weights, device) if weighted else None
    sums = greedy.column_excess(columns, now, weights=w)
    np.testing.assert_array_equal(sums.cpu().numpy(), gains(level))
    for b in rng.integers(0, m, 3):
        level = np.maximum(level, kept[b])
        greedy.update(columns, int(b), now, sums, weights=w)
        np.testing.assert_array_equal(now.cpu().numpy(), level)
        np.testing.assert_array_equal(sums.cpu().numpy(), gains(level))
    np.testing.assert_array_equal(columns.cpu().numpy(), kept)


@pytest.mark.parametrize("dtype", [np.int64, np.float64])
@pytest.mark.parametrize("n", [1, 5, 1023, 1024, 1025, 5000])
def test_best(rng, device, n, dtype):
    for top in (0, 3, 2**40):  # all equal, many ties, hardly any
        values = (rng.integers(-top, top + 1, n)).astype(dtype)
        if dtype is np.float64:
            values[rng.random(n) < 0.3] = -np.inf
        for open_ in (None, rng.random(n) < 0.5, np.arange(n) == n - 1, np.zeros(n, bool)):
            ties = np.flatnonzero(np.ones(n, bool) if open_ is None else open_)
            ties = ties[values[ties] == values[ties].max()] if len(ties) else ties
            for low in (True, False):
                mask = None if open_ is None else put(open_, device)
                got = int(greedy.best(put(values, device), open=mask, low=low))
                assert got == ((ties[0] if low else ties[-1]) if len(ties) else -1)


DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
EPS = 2.0**-52


def features(rng, n, d, dtype, device, stride=0):
    """Rows on the device, as a window of a wider matrix where `stride` says so, and their float64 values."""
    whole = torch.from_numpy(rng.standard_normal((n, d + stride))).to(DTYPES[dtype]).to(device)
    return whole[:, :d], whole[:, :d].double().cpu().numpy()


# Around the blocks of 16 rows, 128, 64 and 16 features, and 16 vectors.
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("n", "d", "stride"), [(1, 1, 0), (15, 16, 0), (17, 127, 1), (33, 129, 0), (16, 64, 8), (40, 300, 3)]
)
def test_products_with_vectors(rng, device, n, d, stride, dtype):
    x, wide = features(rng, n, d, dtype, device, stride)
    cols = rng.integers(0, n, n + 3)
    for count in (None, 1, 2, 3, 16, 17):
        v = rng.standard_normal(d if count is None else (d, count))
        got = linear.times(x, put(v, device)).cpu().numpy()
        # each of d products and sums is rounded once
        np.testing.assert_allclose(
            got, wide @ v, rtol=0, atol=(d + 2) * EPS * np.abs(wide).max() * np.abs(v).max() * d
        )
        part = linear.times(x, put(v, device), put(cols, device)).cpu().numpy()
        np.testing.assert_array_equal(part, got[cols])  # bits of a row do not depend on who else is asked for
    own = linear.squares(x).cpu().numpy()
    np.testing.assert_allclose(own, np.square(wide).sum(axis=1), rtol=(d + 2) * EPS)
    np.testing.assert_array_equal(linear.squares(x, put(cols, device)).cpu().numpy(), own[cols])
    np.testing.assert_array_equal(linear.squares(put(wide, device)).cpu().numpy(), own)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "d", "count"), [(1, 3, 1), (17, 16, 16), (20, 33, 17), (33, 70, 40)])
def test_falls(rng, device, n, d, count, dtype):
    x, wide = features(rng, n, d, dtype, device)
    v, shift = rng.standard_normal((d, count)), rng.standard_normal(count)
    cols, scale = rng.permutation(n)[: n // 2 + 1], rng.random(n)
    behind = rng.integers(0, count + 1, len(cols))
    behind[0] = count
    missed = np.arange(count) < behind[:, None]
    for scales, shifts in ((None, None), (scale[cols], shift)):
        along = (wide[cols] @ v) * (1 if scales is None else scales[:, None]) + (
            0 if shifts is None else shifts
        )
        expected = (np.square(along) * missed).sum(axis=1)
        how = {} if scales is None else {"scale": put(scales, device), "shift": put(shifts, device)}
        got = (
            linear.falls(x, put(v, device), put(behind, device), cols=put(cols, device), **how).cpu().numpy()
        )
        np.testing.assert_allclose(got, expected, rtol=1e-13, atol=1e-13 * d)
        # A row's bits do not depend on the others, nor on older vectors that it does not miss.
        for at in range(0, len(cols), 5):
            most = max(int(behind[at]), 1)
            how = (
                {}
                if scales is None
                else {"scale": put(scales[at : at + 1], device), "shift": put(shifts[:most], device)}
            )
            one = linear.falls(
                x,
                put(v[:, :most], device),
                put(behind[at : at + 1], device),
                cols=put(cols[at : at + 1], device),
                **how,
            )
            assert one.item() == got[at]


@pytest.mark.parametrize("n", [6, 40])
def test_cholesky(rng, device, n):
    """Rows brought up to date at different times are the rows of the factor."""
    y = rng.standard_normal((n, n + 5))
    s = y @ y.T + np.eye(n)
    picks = rng.permutation(n)[: n // 2 + 1]
    t = len(picks)
    whole = np.linalg.solve(np.linalg.cholesky(s[np.ix_(picks, picks)]), s[picks]).T  # (n, t)
    pivots = np.diagonal(np.linalg.cholesky(s[np.ix_(picks, picks)])).copy()
    factor, done = np.full((n, t + 3), np.nan), rng.integers(0, t + 1, n)
    done[picks] = t
    for j in range(n):
        factor[j, : done[j]] = whole[j, : done[j]]
    rows = rng.permutation(np.setdiff1d(np.arange(n), picks))
    base = int(done[rows].min())
    held = put(factor, device)
    got = linear.cholesky(
        held, put(rows, device), put(done[rows], device), put(s[np.ix_(picks[base:], rows)], device),
        put(picks, device), put(pivots, device),
    )  # fmt: skip
    np.testing.assert_allclose(held.cpu().numpy()[rows, :t], whole[rows], rtol=1e-10, atol=1e-12)
    late = np.arange(t) >= done[rows][:, None]
    np.testing.assert_allclose(
        got.cpu().numpy(), (np.square(whole[rows]) * late).sum(axis=1), rtol=1e-10, atol=1e-12
    )
    assert np.isnan(held.cpu().numpy()[:, t:]).all()


def zeros(device, *shape, dtype=torch.int32):
    return torch.zeros(shape, dtype=dtype, device=device)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda z: walk.sparse_excess(z(4), z(0), z(0), z(3)), "ptr must have dtype torch.int64, got torch.int32"),
        (lambda z: walk.sparse_excess(z(0, dtype=torch.int64), z(0), z(0), z(3)), "ptr must have n + 1 entries"),
        (lambda z: walk.sparse_excess(z(4, dtype=torch.int64), z(2), z(3), z(3)), "q must have shape (2,), got (3,)"),
        (
            lambda z: walk.sparse_excess(z(4, dtype=torch.int64), z(2), z(2), z(3), weights=z(3)),
            "weights must have dtype torch.int64, got torch.int32",
        ),
        (lambda z: walk.sparse_raise(z(4, dtype=torch.int64), z(2), z(2), z(3), 3), "j must lie in [0, 3), got 3"),
        (lambda z: greedy.update(z(4, 3), 4, z(3), z(4, dtype=torch.int64)), "b must lie in [0, 4), got 4"),
        (lambda z: greedy.update(z(4, 3).T, 0, z(4), z(3, dtype=torch.int64)), "kept must be contiguous"),
        (lambda z: greedy.column_excess(z(4, 3), z(4)), "level must have shape (3,), got (4,)"),
        (lambda z: greedy.best(z(4)), "values must have dtype torch.int64 or torch.float64, got torch.int32"),
        (lambda z: greedy.best(np.zeros(3)), "values must be a torch.Tensor, got ndarray"),
        (lambda z: linear.times(z(4, 3), z(3)), "x must have dtype torch.float16 or torch.bfloat16"),
        (lambda z: linear.times(z(4, 3, dtype=torch.float32), z(3)), "v must have dtype torch.float64"),
        (lambda z: linear.times(z(4, 3, dtype=torch.float32).T, z(4, dtype=torch.float64)), "contiguous last"),
        (lambda z: linear.falls(z(4, 3, dtype=torch.float16), z(3, 2, dtype=torch.float64), z(3, dtype=torch.int64)),
         "behind must have shape (4,), got (3,)"),
    ],
)  # fmt: skip
def test_launchers_refuse(device, call, message):
    with pytest.raises(ValueError) as refusal:
        call(lambda *shape, **how: zeros(device, *shape, **how))
    assert message in str(refusal.value)


# ---- compiled ahead of time


def launches(m=300, r=5000, n=5008, d=768):
    """name -> call of every launcher, with and without weights and indices, for every type."""
    with torch.device("cpu" if launch.INTERPRETED else "cuda"):
        long, whole = torch.zeros(n + 1, dtype=torch.int64), torch.zeros(n, dtype=torch.int32)
        level, weights, cols = whole[:r].clone(), long[:r].clone(), long[:m].clone()
        kept, sums = torch.zeros(m, r, dtype=torch.int32), long[:m].clone()
        wide = torch.zeros(n, d, dtype=torch.float64)
        v = {c: torch.zeros(d, c, dtype=torch.float64) for c in (1, 2, 48)}
        one = torch.zeros(m, dtype=torch.float64)
    calls = {
        "excess": lambda: walk.sparse_excess(long, whole, whole, level),
        "excess gathered weighted": lambda: walk.sparse_excess(
            long, whole, whole, level, weights=weights, cols=cols[:5]
        ),
        "raise": lambda: walk.sparse_raise(long, whole, whole, level, 2),
        "alive": lambda: walk.alive(long, whole, whole, level),
        "compact": lambda: walk.compact(long, whole, whole, level, torch.ones_like(long[1:])),
        "swap_gains": lambda: swaps.swap_gains(long, whole, whole, level, level, level, m),
        "swap_gains weighted": lambda: swaps.swap_gains(
            long[1:], whole, whole, level, level, level, m, weights=weights
        ),
        "column_excess": lambda: greedy.column_excess(kept, level),
        "column_excess weighted": lambda: greedy.column_excess(kept, level, weights=weights),
        "update": lambda: greedy.update(kept, 2, level, sums),
        "update weighted": lambda: greedy.update(kept, 2, level, sums, weights=weights),
        "best int64": lambda: greedy.best(long),
        "best float64 open": lambda: greedy.best(wide[0], open=wide[0] > 0, low=False),
        "squares float64": lambda: linear.squares(wide),
        "cholesky": lambda: linear.cholesky(wide, cols, cols, wide[:m, :m].contiguous(), cols, one),
    }
    for name, dtype in DTYPES.items():
        x = wide.to(dtype)
        for count, vectors in v.items():
            calls[f"times {count} {name}"] = lambda x=x, vectors=vectors: linear.times(x, vectors)
        calls[f"falls {name}"] = lambda x=x: linear.falls(x, v[48], cols, cols=cols)
        calls[f"squares {name}"] = lambda x=x: linear.squares(x, cols)
    return calls


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("target", [80, 90, 100], ids=lambda t: f"sm_{t}")
def test_compiles_well(target):
    jobs = {
        f"{name} {i}": job
        for name, call in launches().items()
        for i, job in enumerate(aot.record(target, launch, call))
    }
    reports = dict(zip(jobs, aot.build(list(jobs.values())), strict=True))
    assert {job.kernel for job in jobs.values()} == {
        name for module in (walk, swaps, greedy, linear) for name in vars(module) if name.endswith("_kernel")
    }
    wrong = [f"{name}: {text}" for name, report in reports.items() for text in report.complaints(target)]
    assert not wrong, "\n".join(wrong)
