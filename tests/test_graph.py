"""Graphs of nearest neighbours: exact, ties by index, both ways, in bounded memory, on the command line."""

import tracemalloc

import numpy as np
import pytest

import smartgpu
from smartgpu import graph, reference, select
from smartgpu.similarity import as_similarity

scipy = pytest.importorskip("scipy.sparse")
N = 430  # more than one tile of rows


def pool(rng, n: int = N) -> np.ndarray:
    x = rng.standard_normal((n, 13)).astype(np.float32)
    x[n // 2 : n // 2 + 40] = x[:40]
    x[7] = 0
    return x


def quanta(x, kind: str, backend: str = "numpy") -> np.ndarray:
    """(n, n) similarities as the backend computes them."""
    from smartgpu.objectives import Ground

    found = Ground(x, as_similarity(kind), backend, threads=1).backend()
    every = np.arange(len(x))
    return found.block(every, every) * found.quantum


def best(s: np.ndarray, k: int, own: bool = True) -> np.ndarray:
    """(n, k) the columns of the k largest of every row, the lower first among equals, then ascending."""
    s = np.array(s)
    if not own:
        np.fill_diagonal(s, -np.inf)
    return np.sort(np.argsort(-s, axis=1, kind="stable")[:, :k], axis=1)


@pytest.mark.parametrize("kind", ["cosine", "cosine_shifted", "dot", "rbf", "max_minus_sqeuclidean"])
@pytest.mark.parametrize("k", [1, 9, 200, N])
def test_every_row_has_its_nearest(kind, k, rng):
    x = pool(rng)
    s = quanta(x, kind)
    scale = max(1, np.abs(s).max())
    np.testing.assert_allclose(s, reference.similarities(x, as_similarity(kind)), atol=4e-6 * scale)
    for own in (True, False):
        if k == N and not own:
            continue
        found = graph(x, k, kind, own=own, backend="numpy", threads=2)
        assert found.shape == (N, N) and found.dtype == np.float32 and found.has_canonical_format
        wanted = best(s, k, own)
        np.testing.assert_array_equal(found.indices.reshape(N, k), wanted)
        np.testing.assert_array_equal(
            found.data.reshape(N, k), np.take_along_axis(s, wanted, axis=1).astype(np.float32)
        )


def test_no_row_is_its_own_neighbour_where_copies_come_first(rng):
    x = np.tile(pool(rng)[:1], (50, 1))
    found = graph(x, 5, backend="numpy")
    np.testing.assert_array_equal(found.indices.reshape(50, 5), np.tile(np.arange(5), (50, 1)))
    found = graph(x, 5, own=False, backend="numpy").indices.reshape(50, 5)
    assert (found != np.arange(50)[:, None]).all()
    np.testing.assert_array_equal(found[0], [1, 2, 3, 4, 5])
    np.testing.assert_array_equal(found[30], [0, 1, 2, 3, 4])


def test_both_ways(rng):
    x = pool(rng)
    found, both = graph(x, 8, backend="numpy"), graph(x, 8, symmetric=True, backend="numpy")
    s = quanta(x, "cosine").astype(np.float32)
    stored = np.zeros((N, N), bool)
    stored[np.repeat(np.arange(N), 8), found.indices] = True
    wanted = np.where(stored | stored.T, s, 0)
    np.testing.assert_array_equal(both.toarray(), wanted)
    assert (
        both.nnz == (stored | stored.T).sum() and both.has_canonical_format
    )  # similarities of 0 are stored too


def test_threads_and_blocks_change_nothing(rng, monkeypatch):
    x = pool(rng)
    wanted = graph(x, 12, backend="numpy", threads=1)
    found = graph(x, 12, backend="numpy", threads=3)
    np.testing.assert_array_equal(found.indices, wanted.indices)
    np.testing.assert_array_equal(found.data, wanted.data)
    monkeypatch.setattr(smartgpu.backends.neighbours, "FACTOR", 1)
    found = graph(x, 12, backend="numpy", threads=1)
    np.testing.assert_array_equal(found.indices, wanted.indices)


def test_selected_from(rng):
    x = pool(rng)
    for objective in ("facility_location", "graph_cut"):
        found = graph(x, 25, "rbf", symmetric=True, backend="numpy")
        wanted = select(found.toarray(), 30, objective, "precomputed", backend="numpy")
        sel = select(found, 30, objective, "precomputed", backend="numpy")
        np.testing.assert_array_equal(sel.indices, wanted.indices)
        np.testing.assert_array_equal(sel.gains, wanted.gains)


def test_memory_is_bounded(rng):
    x = rng.standard_normal((6000, 24)).astype(np.float32)
    graph(x, 3, backend="numpy", threads=1)
    tracemalloc.start()
    graph(x, 16, backend="numpy", threads=1)
    held = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert held < 6000 * 6000  # a byte for each pair would be more
    with pytest.raises(
        ValueError, match=r"memory must be at least (\S+) for this graph, got 1.00MB"
    ) as refused:
        graph(x, 16, backend="numpy", threads=1, memory="1MB")
    said = str(refused.value).split()[5]
    assert held < smartgpu.options.parse_bytes(said)
    assert graph(x, 16, backend="numpy", threads=1, memory=said).nnz == 96_000


@pytest.mark.parametrize("stream", [False, True], ids=["resident", "streamed"])
def test_triton(stream, rng, device):
    x = pool(rng, 90)
    if stream:
        from smartgpu.objectives import Ground

        found = Ground(x, as_similarity("cosine"), "triton", stream=True, precision="ieee").backend()
        plain = Ground(x, as_similarity("cosine"), "triton", precision="ieee").backend()
        for there, here in zip(
            found.neighbours(slice(10, 60), 7), plain.neighbours(slice(10, 60), 7), strict=True
        ):
            np.testing.assert_array_equal(there, here)
        return
    for kind in ("cosine", "rbf"):
        found = graph(x, 7, kind, backend="triton", precision="ieee")
        s = reference.similarities(x, as_similarity(kind))
        least = np.sort(s, axis=1)[:, -7]
        rows = np.repeat(np.arange(90), 7)
        assert (s[rows, found.indices] >= least[rows] - 1e-5).all()
        np.testing.assert_allclose(found.data, s[rows, found.indices], atol=1e-5)
    copies = graph(np.tile(x[:1], (40, 1)), 3, backend="triton", own=False)
    np.testing.assert_array_equal(copies.indices.reshape(40, 3)[5], [0, 1, 2])


def test_bad_input(rng):
    x = pool(rng)
    for wrong, error, message in (
        ({"neighbors": 0}, ValueError, "neighbors must lie between 1 and 430, got 0"),
        ({"neighbors": 430, "own": False}, ValueError, "neighbors must lie between 1 and 429, got 430"),
        ({"neighbors": 2.5}, TypeError, "neighbors must be a number of rows"),
        ({"neighbors": 3, "similarity": "precomputed"}, ValueError, "similarity must be one of features"),
        ({"neighbors": 3, "backend": "reference"}, ValueError, "graph is for backends 'numpy' and 'triton'"),
        ({"neighbors": 3, "similarity": "cosin"}, ValueError, "unknown similarity 'cosin'"),
    ):
        with pytest.raises(error, match=message):
            graph(x, **wrong)


def test_command_line(rng, tmp_path, monkeypatch, capsys):
    pytest.importorskip("pyarrow")
    from smartgpu import cli

    monkeypatch.chdir(tmp_path)
    x = pool(rng)
    np.save("x.npy", x)

    def run(*arguments):
        capsys.readouterr()
        return cli.main([str(a) for a in arguments]), *capsys.readouterr()

    status, out, err = run("graph", "x.npy", "-k", 12, "g.npz", "-q")
    assert (
        status == 0
        and err == ""
        and out.startswith(f"g.npz holds {12 * N} similarities of {N} rows by cosine")
    )
    wanted = graph(x, 12)
    np.testing.assert_array_equal(scipy.load_npz("g.npz").toarray(), wanted.toarray())
    status, _, err = run("graph", "x.npy", "-k", 12, "g.npz", "-q")
    assert status == 2 and "g.npz exists: --overwrite replaces it" in err
    assert run("graph", "x.npy", "g.npz", "-k", 5, "--symmetric", "--no-self", "--overwrite", "-q")[0] == 0
    held = scipy.load_npz("g.npz")
    np.testing.assert_array_equal(held.toarray(), graph(x, 5, own=False, symmetric=True).toarray())
    precomputed = ("--similarity", "precomputed", "--embeddings", "g.npz")
    assert run("select", "x.npy", "-k", 9, *precomputed, "--out", "chosen", "-q")[0] == 0
    chosen = np.load("chosen/selection.npz")["indices"]
    np.testing.assert_array_equal(chosen, select(held, 9, similarity="precomputed").indices)
    assert (
        run("select", "x.npy", "-k", 9, *precomputed, "--out", "chosen", "-q")[0] == 0
    )  # the same: done already
    np.save("short.npy", x[:50])
    for arguments, message in (
        (("graph", "x.npy", "-k", 999, "h.npz"), "-k must lie between 1 and 430"),
        (("graph", "x.npy", "h.npz"), "-k is missing"),
        (("graph", "x.npy", "-k", 3), "OUT is missing"),
        (("graph", "x.npy", "-k", 3, "h.npy"), "OUT must be a file name that ends in .npz"),
        (("select", "short.npy", "-k", 3, *precomputed, "--out", "o"), "one column per pool row: 50"),
    ):
        status, _, err = run(*arguments, "-q")
        assert status == 2 and message in err, err
    assert not (tmp_path / "h.npz").exists()
    with open("broken.npz", "wb") as file:
        np.savez(file, data=[1.0], indices=[9], indptr=[0, 1], shape=[430, 430], format=np.array(b"csr"))
    status, _, err = run(
        "select", "x.npy", "-k", 3, *precomputed[:2], "--embeddings", "broken.npz", "--out", "o", "-q"
    )
    assert status == 2 and "broken.npz must be a sparse matrix" in err
