"""One value per pair: every primitive of the numpy backend sees the same integer for a pair, wherever and whenever.

Lazy greedy is exact only because of this, and BLAS does not promise it: its kernels are forced one by one below.
"""

import ctypes
import os
import platform
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import smartgpu
from smartgpu import FacilityLocation, GraphCut, Rbf, select, workers
from smartgpu.backends import blas, open_backend
from smartgpu.features import prepare
from smartgpu.similarity import KINDS, Matrix, as_similarity

SIMILARITIES = {name: as_similarity(name) for name in KINDS if name != "precomputed"} | {
    "rbf-0.1": Rbf(gamma=0.1)
}
DIMENSIONS = (1, 2, 3, 7, 8, 16, 33, 64, 130, 384)
INNER = "SMARTGPU_TEST_CORETYPE"  # set in the subprocesses below: the BLAS kernels that must be in use there


def core_name() -> str | None:
    """The kernels that numpy's OpenBLAS uses ("Haswell", "SkylakeX"), None for another BLAS."""
    try:
        from numpy._core import _multiarray_umath as umath

        library = ctypes.CDLL(umath.__file__)
    except (ImportError, OSError):
        return None
    for name in (
        "scipy_openblas_get_corename64_",
        "openblas_get_corename64_",
        "scipy_openblas_get_corename",
        "openblas_get_corename",
    ):
        if get := getattr(library, name, None):
            get.restype = ctypes.c_char_p
            return get().decode()
    return None


def pool(rng, n: int, d: int) -> np.ndarray:
    """Around a common mean, with copies and zero rows."""
    x = (rng.standard_normal((n, d)) + rng.standard_normal(d)).astype(np.float32)
    x[rng.choice(n, n // 5)] = x[rng.choice(n, n // 5)]
    x[n // 2] = 0
    return x


def test_these_are_the_kernels_asked_for():
    wanted = os.environ.get(INNER)
    if wanted is None:
        pytest.skip("meant for the subprocesses of test_under_other_kernels")
    assert core_name().lower() in wanted.lower().split("|")


@pytest.mark.parametrize("d", DIMENSIONS)
def test_probe_finds_a_repeatable_layout(rng, d):
    """The layout chosen holds for other numbers than the probe's, and for sizes that it did not try."""
    layout = blas.find_layout(d)
    assert layout in (*blas.LAYOUTS, blas.FALLBACK)
    assert layout.block % layout.width == 0 and layout.block % layout.rows == 0
    if layout is blas.FALLBACK:
        return
    with blas.one_thread():
        assert blas.repeatable(layout, d)
        x = (rng.standard_normal((2 * layout.block + 57, d)) * 10 + 3).astype(np.float32)
        whole = blas.products(x, x, layout)
        np.testing.assert_array_equal(whole, whole.T)
        np.testing.assert_allclose(
            whole, x.astype(np.float64) @ x.T.astype(np.float64), rtol=2e-6 * max(d, 10), atol=1e-3 * d
        )
        for m in (
            1,
            2,
            11,
            12,
            13,
            23,
            25,
            31,
            32,
            33,
            47,
            49,
            95,
            97,
            200,
            layout.block - 1,
            layout.block,
            layout.block + 1,
        ):
            i, j = rng.permutation(len(x))[:m], rng.permutation(len(x))[: rng.integers(1, 400)]
            np.testing.assert_array_equal(blas.products(x[i], x[j], layout), whole[np.ix_(i, j)])
            np.testing.assert_array_equal(blas.products(x[j], x[i], layout), whole[np.ix_(j, i)])


def test_probe_can_fail(monkeypatch):
    """One last bit, in one entry, in the last shape that is tried, and a layout is not repeatable."""
    layout, original = blas.find_layout(20), blas.products
    if layout is blas.FALLBACK:
        pytest.skip("no float32 layout is repeatable here")

    def one_bit_off(x, y, layout):
        out = original(x, y, layout)
        if y.shape[0] == 7:
            out[0, 0] = np.nextafter(out[0, 0], np.float32(np.inf))
        return out

    with blas.one_thread():
        assert blas.repeatable(layout, 20)
        monkeypatch.setattr(blas, "products", one_bit_off)
        assert not blas.repeatable(layout, 20)


def check_one_value(backend, rng, weights: np.ndarray) -> None:
    """Every primitive against integers that were read off pair by pair, in int64 arithmetic."""
    r, n, every = backend.r, backend.n, np.arange(backend.n)
    level0 = backend.new_level()
    q = np.empty((r, n), np.int64)
    for j in range(0, n, 50):  # from columns in one order
        part = every[j : j + 50]
        for c, column in enumerate(part):
            level = backend.new_level()
            backend.raise_level(level, part[c : c + 1])
            q[:, column] = backend.level_values(level)  # floored at 0
    if backend.same:
        block = backend.block(every, every).astype(np.int64)
        np.testing.assert_array_equal(block, block.T)
        np.testing.assert_array_equal(np.maximum(block, 0), q)
        np.testing.assert_array_equal(backend.totals(), block.sum(axis=0))
        np.testing.assert_array_equal(backend.diagonal(), np.diagonal(block))
        for m, p in ((1, 1), (7, n), (n, 7), (61, 45), (100, 33)):
            a, b = rng.permutation(n)[:m], rng.permutation(n)[:p]
            np.testing.assert_array_equal(backend.block(a, b), block[np.ix_(a, b)])
        cols = np.sort(rng.choice(n, 60, replace=False))
        where, best = backend.nearest(cols)
        np.testing.assert_array_equal(best, block[:, cols].max(axis=1))
        np.testing.assert_array_equal(where, block[:, cols].argmax(axis=1))
    np.testing.assert_array_equal(backend.level_values(backend.row_max()), q.max(axis=1))

    chosen = rng.permutation(n)[:9]
    for weight in (None, weights):
        w = np.ones(r, np.int64) if weight is None else weight
        mine = None if weight is None else backend.new_weights(w)
        np.testing.assert_array_equal(backend.excess(level0, mine), w @ q)
        level = backend.new_level()
        backend.raise_level(level, chosen)
        floor = q[:, chosen].max(axis=1)
        np.testing.assert_array_equal(backend.level_values(level), floor)
        assert backend.level_sum(level, mine) == int(w @ floor)
        np.testing.assert_array_equal(backend.excess(level, mine), w @ np.maximum(q - floor[:, None], 0))
        for m in (1, 2, 31, 32, 33, 50, 97):  # any batch, order and place
            cols = rng.permutation(n)[:m]
            kept = backend.keep(level, cols, mine)
            np.testing.assert_array_equal(kept.excess, w @ np.maximum(q[:, cols] - floor[:, None], 0))
        raised = floor.copy()  # picks from among the kept columns
        for b in rng.permutation(m)[:5]:
            backend.accept(kept, b, level)
            raised = np.maximum(raised, q[:, cols[b]])
            np.testing.assert_array_equal(backend.level_values(level), raised)
            np.testing.assert_array_equal(kept.excess, w @ np.maximum(q[:, cols] - raised[:, None], 0))
        np.testing.assert_array_equal(backend.excess(level, mine), w @ np.maximum(q - raised[:, None], 0))
        check_survivors(backend, rng, q, w, mine, level)


def check_survivors(backend, rng, q, w, weights, level) -> None:
    """The stored pairs give the same integers as the dense work, through picks and compactions."""
    floor = backend.level_values(level).astype(np.int64)
    sparse = backend.survivors(level, weights)
    assert len(sparse) == (q > floor[:, None]).sum()
    for _ in range(3):
        np.testing.assert_array_equal(sparse.excess(level), w @ np.maximum(q - floor[:, None], 0))
        cols = rng.permutation(backend.n)[:60]
        kept = sparse.keep(level, cols)
        np.testing.assert_array_equal(kept.excess, w @ np.maximum(q[:, cols] - floor[:, None], 0))
        best = np.sort(rng.choice(60, 7, replace=False))
        kept, cols = sparse.narrow(kept, best), cols[best]
        for b in (0, 6, 3):
            sparse.accept(kept, b, level)
            floor = np.maximum(floor, q[:, cols[b]])
            np.testing.assert_array_equal(backend.level_values(level), floor)
            np.testing.assert_array_equal(kept.excess, w @ np.maximum(q[:, cols] - floor[:, None], 0))
        sparse.compact(level)
        assert len(sparse) == (q > floor[:, None]).sum()


@pytest.mark.parametrize("d", [5, 384])
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_one_value_per_pair(rng, similarity, d):
    x = pool(rng, 431, d)
    weights = rng.integers(0, 2**30, 431)
    for threads in (1, 3):
        check_one_value(
            open_backend("numpy", prepare(SIMILARITIES[similarity], x), threads=threads), rng, weights
        )
    y = np.concatenate([x[100:180], pool(rng, 41, d)])
    backend = open_backend("numpy", prepare(SIMILARITIES[similarity], x, y), threads=2)
    check_one_value(backend, rng, weights[: len(y)])


def test_one_value_per_pair_precomputed(rng):
    scipy = pytest.importorskip("scipy.sparse")
    s = rng.standard_normal((430, 430)) * (rng.random((430, 430)) < 0.2)
    for dense in (s + s.T, (s + s.T)[:100], s[:300, :200]):
        for value in (dense, scipy.csr_matrix(dense)):
            matrix = smartgpu.arrays.as_similarity_matrix(value)
            assert isinstance(matrix, Matrix) and matrix.unit == 2.0 ** np.ceil(np.log2(np.abs(dense).max()))
            backend = open_backend("numpy", matrix, threads=2)
            level = backend.new_level()
            backend.raise_level(level, np.array([3]))
            expected = np.rint(np.maximum(dense[:, 3], 0) / matrix.unit * 2**22)
            assert np.abs(backend.level_values(level) - expected).max() <= 1
            if (
                dense.shape[0] != 430
            ):  # symmetric ones only: block() and nearest() are candidates x candidates
                backend.same = False
            check_one_value(backend, rng, rng.integers(0, 2**30, len(dense)))


@pytest.mark.parametrize("n", [1, 31, 33, 47, 49, 95, 97, 255, 256, 257, 270, 300, 383, 385, 513, 700])
@pytest.mark.parametrize(
    "layout", [*blas.LAYOUTS, blas.FALLBACK], ids=lambda v: f"block{v.block}-{v.dtype.__name__}"
)
def test_every_layout_at_every_edge(monkeypatch, rng, layout, n):
    """Each layout that the probe may choose gives the picks of the definition, at sizes around its block edges."""
    monkeypatch.setattr(blas, "find_layout", lambda d: layout)
    x = pool(rng, n, 6) if n > 1 else rng.standard_normal((1, 6))
    for objective, kind in (
        (FacilityLocation(), "cosine"),
        (GraphCut(), "rbf"),
        (FacilityLocation(rng.random(n)), "rbf"),
    ):
        sel = select(x, min(n, 12), objective, kind, threads=2)
        if layout is blas.FALLBACK:
            assert sel.dtype == "float64"
        problem = smartgpu.reference.Problem(x, as_similarity(kind), objective)
        for t, j in enumerate(sel.indices):
            gains = problem.gains(sel.indices[:t])
            gains[sel.indices[:t]] = -np.inf
            assert gains[j] >= gains.max() - n * 2.0**-22 and sel.gains[t] == pytest.approx(
                gains[j], abs=n * 2.0**-22
            )
        assert sel.value == pytest.approx(problem.value(sel.indices), rel=1e-6)


def test_fallback_is_one_value_per_pair(monkeypatch, rng):
    monkeypatch.setattr(blas, "find_layout", lambda d: blas.FALLBACK)
    x = pool(rng, 431, 40)
    for kind in ("cosine", "rbf", "max_minus_sqeuclidean"):
        check_one_value(
            open_backend("numpy", prepare(as_similarity(kind), x), threads=2), rng, rng.integers(0, 9, 431)
        )


@pytest.mark.parametrize("kind", ["cosine", "dot", "rbf", "exp_euclidean", "cosine_squared"])
@pytest.mark.parametrize("d", [3, 24, 384])
def test_copies_tie_and_lazy_is_naive(rng, d, kind):
    """400 copies of 40 rows: whatever is not the same bits for each pair ends in another order."""
    x = rng.standard_normal((40, d)).astype(np.float32)[rng.integers(0, 40, 400)]
    for objective in (FacilityLocation(), GraphCut(), FacilityLocation(np.arange(400.0) + 1)):
        lazy, naive = (
            select(x, 70, objective, kind, maximizer=m, threads=t) for m, t in (("lazy", 2), ("naive", 1))
        )
        np.testing.assert_array_equal(lazy.indices, naive.indices)
        np.testing.assert_array_equal(lazy.gains, naive.gains)
        taken = np.zeros(400, bool)
        for j in lazy.indices:
            assert not ((x[:j] == x[j]).all(axis=1) & ~taken[:j]).any(), (
                f"row {j} was picked before an equal one"
            )
            taken[j] = True
    full = select(x, 400, similarity=kind)  # 40 rows with a gain; then zeros, in order
    if kind != "dot":
        assert (full.gains[40:] == 0).all() and (np.diff(full.indices[40:]) > 0).all()


def test_integer_sums_do_not_overflow():
    """2,000 equal rows: the largest sums there are, n quanta of similarity 1 each; and the smallest, of -1."""
    n = 2000
    x = np.zeros((n, 3), np.float32)
    x[:, 1] = 5
    for objective in (FacilityLocation(), FacilityLocation(np.full(n, 1.0))):
        for kind in ("cosine", "rbf", "exp_euclidean", "cosine_squared", "cosine_shifted"):
            assert select(x, 3, objective, kind).gains.tolist() == [n, 0, 0]
    assert select(x, 3, similarity="dot").gains.tolist() == [25 * n, 0, 0]
    assert select(x, 2, FacilityLocation(np.full(n, 2.0**37)), "cosine").gains.tolist() == [n * 2.0**37, 0]
    assert select(x, 2, GraphCut(0.5), "cosine_squared").gains.tolist() == [n - 0.5, n - 1.5]
    opposite = x * np.where(np.arange(n) % 2, 1, -1)[:, None]
    backend = open_backend("numpy", prepare(as_similarity("cosine"), opposite))
    assert not backend.totals().any() and (backend.excess(backend.new_level()) == n // 2 * 2**22).all()
    matrix = -np.ones((n, n), np.float32)
    assert select(matrix, 2, GraphCut(0.5), "precomputed").gains.tolist() == [-n + 0.5, -n + 1.5]
    assert select(matrix, 2, similarity="precomputed").gains.tolist() == [0, 0]


def test_one_thread():
    calls = workers._thread_calls()
    if calls is None:
        pytest.skip("the threads of this BLAS cannot be set")
    put, get = calls
    before = get()
    try:
        put(2)
        if get() != 2:
            pytest.skip("this BLAS has one thread")
        with blas.one_thread():
            assert get() == 1
            with blas.one_thread():
                assert get() == 1
            assert get() == 1
            with pytest.raises(RuntimeError), blas.one_thread():
                raise RuntimeError
            assert get() == 1
        assert get() == 2
        inside, leave = threading.Event(), threading.Event()

        def other():
            with blas.one_thread():
                inside.set()
                leave.wait(10)

        worker = threading.Thread(target=other)
        with blas.one_thread():
            worker.start()
            assert inside.wait(10)
        assert get() == 1  # the other one still needs it
        leave.set()
        worker.join()
        assert get() == 2
        select(np.eye(50, 4, dtype=np.float32), 5, threads=2)
        assert get() == 2
    finally:
        put(before)


def cpu_has(flags: set[str]) -> bool:
    path = Path("/proc/cpuinfo")
    return path.is_file() and flags <= set(path.read_text().split())


@pytest.mark.parametrize(
    ("core", "names", "flags"),
    [
        ("ZEN", "zen|haswell", {"avx2", "fma"}),
        ("HASWELL", "haswell", {"avx2", "fma"}),
        ("SANDYBRIDGE", "sandybridge", {"avx"}),
    ],
)
def test_under_other_kernels(core, names, flags):
    """The tests above, in a process whose OpenBLAS runs the kernels of another processor."""
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip(f"OPENBLAS_CORETYPE={core} is for x86, this is {platform.machine()}")
    if core_name() is None:
        pytest.skip("numpy is not linked with an OpenBLAS that says which kernels it uses")
    if not cpu_has(flags):
        pytest.skip(f"this processor cannot run {core} kernels")
    source = str(Path(smartgpu.__file__).resolve().parents[1])
    env = os.environ | {"OPENBLAS_CORETYPE": core, INNER: names}
    env["PYTHONPATH"] = os.pathsep.join([source, *filter(None, [os.environ.get("PYTHONPATH")])])
    chosen = "kernels_asked_for or probe_finds or (one_value and 384) or copies_tie"
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__, "-k", chosen]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "skipped" not in done.stdout, done.stdout[-2000:]
