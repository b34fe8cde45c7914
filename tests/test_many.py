"""select_many: each group gets the very selection that it would get alone, whatever runs beside it."""

import numpy as np
import pytest
from oracle import check, synthetic, with_copies

import smartgpu
from smartgpu import FacilityLocation, GraphCut, LogDet, Modular, Rbf
from smartgpu.backends import STORE_ALL
from smartgpu.labels import as_labels
from smartgpu.similarity import as_similarity

OBJECTIVES = {
    "fl": lambda n, rng: FacilityLocation(),
    "fl-weights": lambda n, rng: FacilityLocation(rng.random(n)),
    "gc": lambda n, rng: GraphCut(),
    "logdet": lambda n, rng: LogDet(),
    "modular": lambda n, rng: Modular(rng.standard_normal(n)),
    "qdit": lambda n, rng: 0.7 * FacilityLocation() + 20 * Modular(rng.standard_normal(n)),
}


def grouped(rng, n=700, names=("b", "a", "long name", "c", "d")):
    """A pool with copies, and groups of very different sizes whose rows are mixed up."""
    x = with_copies(synthetic(rng, n), rng, share=0.2)
    shares = np.array([0.5, 0.3, 0.15, 0.04, 0.01])[: len(names)]
    codes = rng.permutation(np.repeat(np.arange(len(names)), np.ceil(shares * n).astype(int))[:n])
    return x, np.array(names)[codes]


def same(one, other):
    return (
        np.array_equal(one.indices, other.indices)
        and np.array_equal(one.gains, other.gains)
        and one.value == other.value
    )


@pytest.mark.parametrize("similarity", ["cosine", "dot", "rbf"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_group_is_what_select_gives(objective, similarity, rng):
    x, groups = grouped(rng)
    spec = OBJECTIVES[objective](len(x), rng)
    labels = as_labels(groups, len(x), "groups")
    budgets = {
        name: int(rng.integers(1, size + 1)) for name, size in zip(labels.names, labels.sizes(), strict=True)
    }
    found = smartgpu.select_many(x, groups, budgets, spec, similarity)
    assert list(found) == list(labels.names)
    for name, rows in zip(labels.names, labels.rows(), strict=True):
        alone = smartgpu.select(x[rows], budgets[name], spec.take(rows), similarity)
        assert np.array_equal(found[name].indices, rows[alone.indices]), name
        assert np.array_equal(found[name].gains, alone.gains), name
        assert found[name].value == alone.value
        assert found[name].n == len(x)
        assert found[name].objective == alone.objective


def test_groups_against_the_reference(rng):
    x, groups = grouped(rng)
    found = smartgpu.select_many(x, groups, 0.4)
    for name in np.unique(groups):
        rows = np.flatnonzero(groups == name)
        place = {row: i for i, row in enumerate(rows)}
        local = [place[row] for row in found[name].indices]
        assert len(local) == max(1, int(np.floor(0.4 * len(rows) + 0.5)))
        within = smartgpu.Selection(**{**found[name].__dict__, "indices": np.array(local), "n": len(rows)})
        check(within, x[rows], as_similarity("cosine"), FacilityLocation())


def test_order_threads_and_batching_change_nothing(rng):
    x, groups = grouped(rng)
    budgets = {name: min(9, (groups == name).sum()) for name in np.unique(groups)}
    first = smartgpu.select_many(x, groups, budgets, threads=1)
    for how in ({"threads": 2}, {"threads": 5}, {"threads": 3, "memory": "60MB"}):
        again = smartgpu.select_many(x, groups, dict(reversed(budgets.items())), **how)
        assert all(same(first[name], again[name]) for name in first)
    order = rng.permutation(len(x))  # rows elsewhere in the pool, but in each group in the same order
    order = order[np.lexsort((order, groups[order]))]
    shifted = smartgpu.select_many(x[order], groups[order], budgets)
    assert all(np.array_equal(order[shifted[name].indices], first[name].indices) for name in first)
    for name in np.unique(groups):  # one at a time
        rows = np.flatnonzero(groups == name)
        assert np.array_equal(
            rows[smartgpu.select_many(x[rows], groups[rows], budgets[name])[str(name)].indices],
            first[name].indices,
        )


def test_large_groups_use_all_threads(rng, monkeypatch):
    monkeypatch.setattr("smartgpu.groups.ALONE", 100)
    used = {}
    inner = smartgpu.parts.select_checked

    def watch(make, k, options, share=None, **limits):
        used[make(options).n] = options.threads
        return inner(make, k, options, share, **limits)

    monkeypatch.setattr("smartgpu.parts.select_checked", watch)
    x, groups = grouped(rng)
    found = smartgpu.select_many(x, groups, 5, "graph_cut", threads=2)
    sizes = {(groups == name).sum() for name in np.unique(groups)}
    assert used == {size: 2 if size > 100 else 1 for size in sizes}
    assert len(found) == 5


@pytest.mark.parametrize("tie_break", ["low", "high"])
@pytest.mark.parametrize("similarity", ["cosine", "cosine_shifted", "cosine_squared"])
def test_small_groups_together(similarity, tie_break, rng, monkeypatch):
    """Groups up to 511 rows are picked from step by step together; sizes around its limits and those of tiles."""
    sizes = [1, 2, 3, 40, 41, 200, 288, 289, 383, 384, 385, 510, 511, 512, 900]
    x = with_copies(synthetic(rng, sum(sizes), 9), rng)
    x[10:16] = x[10]  # a group that is all copies but for its first rows
    groups = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    budgets = {g: int(rng.integers(1, n + 1)) for g, n in enumerate(sizes)} | {4: 41, 12: 511, 13: 512}
    batches, inner = [], smartgpu.groups._select_alike

    def watch(job, some):
        batches.append([len(part.rows) for part in some])
        return inner(job, some)

    monkeypatch.setattr(smartgpu.groups, "_select_alike", watch)
    found = smartgpu.select_many(x, groups, budgets, similarity=similarity, tie_break=tie_break)
    assert sorted(n for some in batches for n in some) == sizes[:-2]
    assert max(len(some) for some in batches) > 2
    for g, budget in budgets.items():
        rows = np.flatnonzero(groups == g)
        alone = smartgpu.select(x[rows], budget, similarity=similarity, tie_break=tie_break)
        assert np.array_equal(found[g].indices, rows[alone.indices])
        assert np.array_equal(found[g].gains, alone.gains) and found[g].value == alone.value
        told, expected = found[g].metadata(), alone.metadata()
        for each in (told, expected):
            del each["seconds"]
        assert told == expected | {"n": len(x)}
    monkeypatch.setattr(smartgpu.groups, "_alike", lambda *a: False)
    again = smartgpu.select_many(x, groups, budgets, similarity=similarity, tie_break=tie_break)
    assert all(same(again[g], found[g]) for g in found)


@pytest.mark.parametrize("kind", ["float16", "float64", "fortran", "memmap", "integers as labels"])
def test_inputs(kind, rng, tmp_path):
    x, groups = grouped(rng)
    expected = smartgpu.select_many(x.astype(np.float16), groups, 4)
    x16 = x.astype(np.float16)
    if kind == "float64":
        x16 = x16.astype(np.float64)
    elif kind == "fortran":
        x16 = np.asfortranarray(x16)
    elif kind == "memmap":
        np.save(tmp_path / "x.npy", x16)
        x16 = np.load(tmp_path / "x.npy", mmap_mode="r")
    elif kind == "integers as labels":
        names = list(dict.fromkeys(groups.tolist()))
        numbers = [names.index(g) - 2 for g in groups]
        found = smartgpu.select_many(x16, numbers, 4)
        assert list(found) == [-2, -1, 0, 1, 2]
        assert all(np.array_equal(found[names.index(g) - 2].indices, expected[g].indices) for g in names)
        return
    found = smartgpu.select_many(x16, groups, 4)
    assert all(np.array_equal(found[g].indices, expected[g].indices) for g in expected)


@pytest.mark.parametrize("dtype", ["int8", "int16", "int64", "uint8", "uint64"])
@pytest.mark.parametrize(("low", "high"), [(0, 50), (-100, 100), (-(2**62), 2**62), (2**63, 2**64 - 1)])
def test_labels_that_are_integers(dtype, low, high, rng):
    """Numbered through a table or by a sort, as a list of them is."""
    values = rng.integers(low, high, 500, np.uint64 if low > 0 else np.int64).astype(dtype)
    got, want = as_labels(values, 500, "groups"), as_labels(values.tolist(), 500, "groups")
    assert got.names == want.names and all(type(name) is int for name in got.names)
    np.testing.assert_array_equal(got.codes, want.codes)


def test_labels_from_anywhere(rng):
    pa = pytest.importorskip("pyarrow")
    values = ["b", "a", "b", "c", "a", "c", "c"]
    codes = [0, 1, 0, 2, 1, 2, 2]
    chunks = pa.chunked_array([values[:2], values[2:]])
    for given in (
        values,
        tuple(values),
        np.array(values),
        np.array(values, object),
        chunks,
        pa.array(values),
    ):
        labels = as_labels(given, 7, "groups")
        assert labels.names == ("b", "a", "c") and labels.codes.tolist() == codes
    mixed = pa.chunked_array([pa.array(part).dictionary_encode() for part in (values[:3], values[3:])])
    assert as_labels(mixed, 7, "groups").codes.tolist() == codes
    assert as_labels(np.array([5, -1, 5], np.int16), 3, "groups").names == (5, -1)
    missing = as_labels(pa.array(["x", None, "x"]), 3, "templates", missing=True)
    assert missing.names == ("x", None) and missing.codes.tolist() == [0, 1, 0]
    assert [rows.tolist() for rows in labels.rows()] == [[0, 2], [1, 4], [3, 5, 6]]


@pytest.mark.parametrize("sparse", [False, True])
def test_precomputed(sparse, rng):
    x, groups = grouped(rng, 300)
    s = np.asarray(smartgpu.reference.similarities(x, as_similarity("rbf")))
    s[s < 0.3] = 0
    given = s
    if sparse:
        given = pytest.importorskip("scipy.sparse").csr_matrix(s)
    found = smartgpu.select_many(given, groups, 3, similarity="precomputed")
    for name in np.unique(groups):
        rows = np.flatnonzero(groups == name)
        alone = smartgpu.select(s[np.ix_(rows, rows)], 3, similarity="precomputed")
        assert np.array_equal(found[name].indices, rows[alone.indices]) and found[name].value == alone.value


def test_report_and_done(rng):
    x, groups = grouped(rng)
    told = []
    every = smartgpu.select_many(x, groups, 6, report=lambda name, got: told.append((name, got)))
    assert {name for name, _ in told} == set(every) and all(every[name] is got for name, got in told)
    kept = dict(told[:2])
    told.clear()
    again = smartgpu.select_many(
        x, groups, 6, done=kept, report=lambda name, got: told.append((name, got)), threads=1
    )
    assert {name for name, _ in told} == set(every) - set(kept)
    assert all(again[name] is kept[name] for name in kept)
    assert all(same(again[name], every[name]) for name in every)
    # a longer selection that is there already gives its first picks
    shorter = smartgpu.select_many(x, groups, 4, done=every)
    assert all(same(shorter[name], every[name].prefix(4)) for name in every)


def test_done_of_other_data_is_refused(rng):
    x, groups = grouped(rng)
    found = smartgpu.select_many(x, groups, 4)
    with pytest.raises(ValueError, match=r"done\['a'\] must be a selection of 4 of the \d+ rows"):
        smartgpu.select_many(x, groups, 4, done={"a": found["b"]})
    with pytest.raises(ValueError, match=r"done\['a'\] must be a selection of 5"):
        smartgpu.select_many(x, groups, 5, done={"a": found["a"]})
    with pytest.raises(ValueError, match=r"done\['a'\]"):
        smartgpu.select_many(x, groups, 4, similarity="dot", done={"a": found["a"]})
    with pytest.raises(ValueError, match="done has selections for 'zz', which no row has"):
        smartgpu.select_many(x, groups, 4, done={"zz": found["a"]})


def test_an_error_in_one_group_ends_the_call(rng):
    x, groups = grouped(rng)
    told = []

    def report(name, got):
        told.append(name)
        raise RuntimeError("the disk is full")

    with pytest.raises(RuntimeError, match="the disk is full"):
        smartgpu.select_many(x, groups, 4, report=report, threads=2)


def test_budgets_that_do_not_fit_are_named_together(rng):
    x, groups = grouped(rng)
    never = pytest.raises(ValueError)
    with never as error:
        smartgpu.select_many(x, groups, {"a": 3, "b": 10_000, "c": 0, "zz": 1, "yy": 2})
    text = str(error.value)
    assert "no budget for" in text and "'d'" in text and "'long name'" in text
    assert "budgets for 'zz', 'yy', which no row has" in text
    assert (
        f"the budget of 'b' must be at most the number of rows to choose from, {(groups == 'b').sum()}"
        in text
    )
    assert "the budget of 'c' must be at least 1, got 0" in text


@pytest.mark.parametrize(
    ("groups", "error", "text"),
    [
        (["a"] * 4, ValueError, "groups must hold one label for each of the 700 rows of X, got 4"),
        ([], ValueError, "groups must hold one label for each of the 700 rows of X, got 0"),
        ("a" * 700, TypeError, "groups must hold one label for each row, got str"),
        (None, TypeError, "groups must hold one label for each row, got NoneType"),
        (["a"] * 699 + [None], ValueError, "groups has 1 rows without a label .None., the first is row 699"),
        (["a"] * 699 + [1], TypeError, "groups must be all ints or all strings, one per row, got int, str"),
        ([0.5] * 700, TypeError, "got float"),
        ([True] * 700, TypeError, "got bool"),
        (np.zeros((700, 2), int), ValueError, r"groups must be one-dimensional, got shape \(700, 2\)"),
    ],
)
def test_bad_labels(groups, error, text, rng):
    x, _ = grouped(rng)
    with pytest.raises(error, match=text):
        smartgpu.select_many(x, groups, 2)


def test_bad_input_before_any_work(rng, monkeypatch):
    x, groups = grouped(rng)
    for name in ("parts.select_checked", "groups._select_alike"):
        monkeypatch.setattr(f"smartgpu.{name}", lambda *a, **how: pytest.fail("work was done"))
    bad = x.copy()
    bad[17, 2] = np.nan
    with pytest.raises(ValueError, match="X must be finite, got 1 NaN"):
        smartgpu.select_many(bad, groups, 2)
    with pytest.raises(ValueError, match="unknown objective 'facility'"):
        smartgpu.select_many(x, groups, 2, "facility")
    with pytest.raises(ValueError, match="checkpoint is for one selection: keep what report= is given"):
        smartgpu.select_many(x, groups, 2, checkpoint="picks.npz")
    with pytest.raises(ValueError, match="plan is for one selection"):
        smartgpu.select_many(x, groups, 2, plan=True)
    with pytest.raises(TypeError, match="unknown option 'memry'; did you mean 'memory'"):
        smartgpu.select_many(x, groups, 2, memry=3)
    with pytest.raises(ValueError, match="weights must have shape"):
        smartgpu.select_many(x, groups, 2, FacilityLocation(np.ones(5)))
    with pytest.raises(TypeError, match=r"the budget of '.*' must be a number of rows"):
        smartgpu.select_many(x, groups, dict.fromkeys(np.unique(groups).tolist(), "2"))
    with pytest.raises(ValueError, match="memory must be at least"):
        smartgpu.select_many(x, groups, 2, memory=1000)
    with pytest.raises(ValueError, match="square, rows x rows, got"):
        smartgpu.select_many(x[:, :20], groups[:20], 2, similarity="precomputed")


@pytest.mark.parametrize("tie_break", ["low", "high"])
@pytest.mark.parametrize("similarity", ["cosine", "cosine_squared", "dot", "max_minus_sqeuclidean", Rbf(0.3)])
def test_small_pools_take_the_short_way_to_the_same_bits(similarity, tie_break, rng, monkeypatch):
    """Pools whose pairs are all held at once are picked from without a search for candidates."""
    from smartgpu.backends import numpy, whole

    x = with_copies(synthetic(rng), rng)
    n, ran, inner = len(x), [], whole.pick

    def watch(*arguments):
        ran.append(1)
        return inner(*arguments)

    monkeypatch.setattr(whole, "pick", watch)
    scores = rng.standard_normal(n)
    cases = [
        (FacilityLocation(), {}),
        (FacilityLocation(), {"given": [3, 77], "exclude": [0, n - 1]}),
        (FacilityLocation(), {"coverage": 0.7}),
        (0.4 * FacilityLocation() + 3 * Modular(scores), {}),
        (Modular(scores) + 0.2 * Modular(scores**2) + 2 * FacilityLocation(), {}),
        (FacilityLocation(None, x[::5]), {}),
    ]
    short = [smartgpu.select(x, 60, o, similarity, tie_break=tie_break, **how) for o, how in cases]
    assert len(ran) == len(cases)
    monkeypatch.delattr(numpy.NumpyBackend, "whole")
    long = [smartgpu.select(x, 60, o, similarity, tie_break=tie_break, **how) for o, how in cases]
    assert len(ran) == len(cases)
    assert all(same(a, b) for a, b in zip(short, long, strict=True))


@pytest.mark.parametrize(
    "n", [1, 2, 383, 384, 385, 769]
)  # around the edges of tiles and of exact partial sums
def test_small_pools_at_block_edges(n, rng, monkeypatch):
    from smartgpu.backends import numpy

    x = rng.standard_normal((n, 5)).astype(np.float32)
    short = smartgpu.select(x, n)
    assert sorted(short.indices) == list(range(n))
    monkeypatch.delattr(numpy.NumpyBackend, "whole")
    assert same(short, smartgpu.select(x, n))
    s = x @ x.T + rng.standard_normal((n, n)) / 9  # not symmetric
    long = smartgpu.select(s, n, similarity="precomputed")
    monkeypatch.undo()
    assert same(smartgpu.select(s, n, similarity="precomputed"), long)


def test_larger_pools_do_not(rng, monkeypatch):
    from smartgpu.backends import whole

    monkeypatch.setattr(whole, "pick", lambda *a: pytest.fail("a large pool was held at once"))
    n = int(STORE_ALL**0.5) + 1
    smartgpu.select(rng.standard_normal((n, 3)).astype(np.float32), 2)
    with pytest.raises(pytest.fail.Exception):
        smartgpu.select(rng.standard_normal((n - 1, 3)).astype(np.float32), 2)
    smartgpu.select(rng.standard_normal((n - 1, 3)).astype(np.float32), 2, memory="10MB")


@pytest.mark.slow
def test_real_tasks(data_dir):
    """All tasks of the real table, a tenth of each, against select on each of them."""
    pq = pytest.importorskip("pyarrow.parquet")
    path = data_dir / "tasks"
    if not path.is_dir():
        pytest.skip(f"no {path}")
    x = np.load(path / "minilm.npy", mmap_mode="r")
    tasks = pq.read_table(path / "tasks.parquet", columns=["task"])["task"]
    labels = as_labels(tasks, len(x), "tasks")
    found = smartgpu.select_many(x, tasks, 0.1)
    assert len(found) == 431
    for name, rows in zip(labels.names, labels.rows(), strict=True):
        alone = smartgpu.select(x[rows], 0.1)
        assert np.array_equal(found[name].indices, rows[alone.indices])
        assert np.array_equal(found[name].gains, alone.gains) and found[name].value == alone.value


@pytest.mark.parametrize("tensor", [False, True], ids=["array", "tensor"])
def test_on_a_device(tensor, device, rng):
    """One group at a time, in the interpreter on tiny groups; a pool that is on the device stays there."""
    torch = pytest.importorskip("torch")
    x = synthetic(rng, 60, 16)
    groups = np.array(["b", "a", "c"])[rng.permutation(np.repeat([0, 1, 2], [30, 20, 10]))]
    pool = torch.from_numpy(x).to(device) if tensor else x
    found = smartgpu.select_many(pool, groups, 4, backend="triton")
    for name in ("a", "b", "c"):
        rows = np.flatnonzero(groups == name)
        alone = smartgpu.select(x[rows], 4, backend="triton")
        assert np.array_equal(found[name].indices, rows[alone.indices]) and found[name].backend == "triton"
        assert np.array_equal(found[name].gains, alone.gains)
    m = smartgpu.mix(pool, groups, 2, 9, backend="triton", task_objective="facility_location")
    assert (
        m.budgets
        == smartgpu.mix(x, groups, 2, 9, backend="numpy", task_objective="facility_location").budgets
    )
    assert {s.backend for t in m.tasks for s in t.selections.values()} == {"triton"}


def test_a_pool_on_a_device_is_not_read_by_the_host(device, rng, monkeypatch):
    """Of embeddings that are there no row comes to the host: each group's are gathered where they are."""
    torch = pytest.importorskip("torch")
    x = synthetic(rng, 90, 40)
    groups = rng.permutation(np.repeat([0, 1, 2], [45, 30, 15]))
    pool = torch.from_numpy(x.astype(np.float16)).to(device)
    alone = {g: smartgpu.select(x.astype(np.float16)[groups == g], 5, backend="triton") for g in range(3)}
    came = []
    for name in ("cpu", "numpy", "tolist"):
        call = getattr(torch.Tensor, name)

        def noted(tensor, *args, call=call, **how):
            came.append(tuple(tensor.shape))
            return call(tensor, *args, **how)

        monkeypatch.setattr(torch.Tensor, name, noted)
    found = smartgpu.select_many(pool, groups, 5, backend="triton")
    assert came and not [shape for shape in came if shape[-1:] == (40,)]
    for g in range(3):
        assert np.array_equal(found[g].indices, np.flatnonzero(groups == g)[alone[g].indices])
        assert np.array_equal(found[g].gains, alone[g].gains)


def test_groups_that_a_device_fails_on_fall_back(device, rng, monkeypatch):
    torch = pytest.importorskip("torch")
    from smartgpu.kernels import launch

    x = synthetic(rng, 60, 16)
    groups = np.repeat(["a", "b"], 30)
    plain = smartgpu.select_many(x, groups, 4, backend="numpy")
    calls, start = [], launch.run

    def run(*arguments, **how):
        calls.append(1)
        if len(calls) == 5:  # in the first group, once
            raise torch.OutOfMemoryError("CUDA out of memory")
        return start(*arguments, **how)

    monkeypatch.setattr(launch, "run", run)
    found = smartgpu.select_many(
        torch.from_numpy(x).to(device), groups, 4, backend="triton", fallback="numpy"
    )
    assert [found[name].backend for name in "ab"] == ["numpy", "triton"]
    assert same(found["a"], plain["a"])


def each_by_itself(x, groups, found, **how):
    """found is what select() gives on the rows of each group; how: name -> its arguments."""
    names = list(dict.fromkeys(groups.tolist()))
    assert list(found) == names
    for name in names:
        rows = np.flatnonzero(groups == name)
        place = {row: i for i, row in enumerate(rows.tolist())}
        alone = smartgpu.select(x[rows], **how["call"](name, rows, place))
        assert np.array_equal(found[name].indices, rows[alone.indices]), name
        assert np.array_equal(found[name].gains, alone.gains), name
        assert found[name].value == alone.value and found[name].base_value == alone.base_value
        told, expected = found[name].limits, alone.limits
        if expected and "include" in expected:
            expected = {**expected, "include": rows[expected["include"]].tolist()}
        for limits in (told, expected):
            for near in (limits or {}).get("near", ()):
                del near["closest"]  # in rows of the pool there, of the group here
        assert told == expected
    return found


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("fractions", [False, True])
def test_budgets_of_cost(objective, fractions, rng):
    x, groups = grouped(rng, 300)
    cost = rng.integers(1, 40, 300) / (7 if fractions else 1)
    spec = OBJECTIVES[objective](len(x), rng)
    labels = as_labels(groups, len(x), "groups")
    budgets = {
        g: float(cost[r].min() + rng.random() * cost[r].sum())
        for g, r in zip(labels.names, labels.rows(), strict=True)
    }
    found = smartgpu.select_many(x, groups, budgets, spec, cost=cost)
    how = {"call": lambda g, rows, place: {
        "budget": budgets[g], "cost": cost[rows], "objective": spec.take(rows)}}  # fmt: skip
    each_by_itself(x, groups, found, **how)
    assert all(cost[found[g].indices].sum() <= budgets[g] * (1 + 1e-12) for g in budgets)
    found = smartgpu.select_many(x, groups, 60, spec, cost=cost, rows=dict.fromkeys(budgets, 2))
    how = {"call": lambda g, rows, place: {
        "k": 2, "budget": 60, "cost": cost[rows], "objective": spec.take(rows)}}  # fmt: skip
    each_by_itself(x, groups, found, **how)


def test_everything_together_is_what_select_gives_on_each_group():
    """Random limits of all kinds: the very selections, or a refusal where one of select()'s calls is refused."""
    hypothesis = pytest.importorskip("hypothesis")
    st = hypothesis.strategies
    ran = {"some": 0, "refused": 0}

    @hypothesis.given(
        seed=st.integers(0, 2**32 - 1),
        paid=st.booleans(),
        limited=st.booleans(),
        sets=st.booleans(),
        name=st.sampled_from(sorted(OBJECTIVES)),
        tight=st.sampled_from([0.05, 0.3, 0.9]),
    )
    @hypothesis.settings(max_examples=40)
    def run(seed, paid, limited, sets, name, tight):
        rng = np.random.default_rng(seed)
        n = 60
        x = with_copies(synthetic(rng, n, 6), rng, 0.2)
        groups = rng.permutation(np.repeat(["b", "a", "c"], [30, 20, 10]))
        cost, lang = rng.integers(1, 9, n), rng.choice(["x", "y"], n)
        spec = OBJECTIVES[name](n, rng)
        sizes = {g: int((groups == g).sum()) for g in "abc"}
        rows = {g: max(1, int(tight * m / 2)) for g, m in sizes.items()}
        budgets = {g: max(1, int(tight * cost[groups == g].sum())) for g in sizes}
        limits = {"minimum": {"x": 1}, "maximum": {"y": 0.6}} if not paid else {"maximum": {"y": 2}}
        given, include, exclude = (rng.choice(n, 4, replace=False) for _ in range(3))
        include, exclude = np.setdiff1d(include, given), np.setdiff1d(exclude, [*given, *include])
        near = smartgpu.Near(synthetic(rng, 3, 6), 0.8)
        barred = [exclude] if np.random.default_rng(seed).random() < 0.5 else [exclude, near]
        how = {"cost": cost} if paid else {}
        how |= {"quotas": smartgpu.Quotas(lang, **limits, name="lang")} if limited else {}
        how |= {"given": given, "include": include, "exclude": barred} if sets else {}

        def call(g, own, place):
            def local(some):
                return [place[j] for j in some.tolist() if j in place]

            out = {"objective": spec.take(own)}
            out |= {"budget": budgets[g], "cost": cost[own]} if paid else {"k": rows[g]}
            out |= {"quotas": smartgpu.Quotas(lang[own], **limits, name="lang")} if limited else {}
            if sets:
                out |= {"given": local(given), "include": local(include)}
                out |= {"exclude": [local(exclude), *barred[1:]]}
            return out

        try:
            found = smartgpu.select_many(x, groups, budgets if paid else rows, spec, **how)
        except ValueError:
            ran["refused"] += 1
            refused = 0
            for g in sizes:
                own = np.flatnonzero(groups == g)
                try:
                    smartgpu.select(x[own], **call(g, own, {row: i for i, row in enumerate(own.tolist())}))
                except ValueError:
                    refused += 1
            assert refused
            return
        ran["some"] += 1
        each_by_itself(x, groups, found, call=call)

    run()
    assert ran["some"] > 10 and ran["refused"] > 3


def test_limits_against_the_reference(rng):
    x, groups = grouped(rng, 200)
    cost, lang = rng.integers(1, 30, 200), rng.choice(["x", "y"], 200)
    how = {"cost": cost, "quotas": smartgpu.Quotas(lang, maximum={"y": 3}), "exclude": np.arange(0, 200, 9)}
    ours = smartgpu.select_many(x, groups, 120, **how)
    theirs = smartgpu.select_many(x, groups, 120, backend="reference", **how)
    for name, got in ours.items():
        assert got.indices.tolist() == theirs[name].indices.tolist()
        assert got.value == pytest.approx(theirs[name].value, rel=1e-6)
        assert cost[got.indices].sum() <= 120 and (lang[got.indices] == "y").sum() <= 3


def test_rows_from_elsewhere_count_in_every_group(rng):
    x, groups = grouped(rng, 200)
    there = synthetic(rng, 5)[:, : x.shape[1]]
    found = smartgpu.select_many(x, groups, 2, given=there)
    each_by_itself(x, groups, found, call=lambda g, rows, place: {"k": 2, "given": there})


def test_limits_that_do_not_fit_are_named_together(rng):
    x, groups = grouped(rng, 100)
    cost = np.full(100, 10)
    lang = np.where(groups == "a", "x", "y")
    with pytest.raises(ValueError) as error:
        smartgpu.select_many(
            x, groups, {g: 5 if g in "ab" else 50 for g in np.unique(groups).tolist()}, cost=cost
        )
    text = str(error.value)
    for name in "ab":
        assert f"'{name}': budget must be at least 10.0, the cost of the cheapest row, got 5.0" in text
    assert "'c'" not in text
    with pytest.raises(ValueError) as error:
        smartgpu.select_many(x, groups, 1, quotas=smartgpu.Quotas(lang, minimum={"x": 1}, name="lang"))
    assert "'b': these limits contradict each other: lang minimum['x'] = 1; no rows of 'x'" in str(
        error.value
    )
    assert "'a'" not in str(error.value)
    free = smartgpu.select_many(x, groups, 1, quotas=smartgpu.Quotas(lang, maximum={"x": 1}, name="lang"))
    assert all(got.k == 1 for got in free.values())
    for how, text in (
        ({"quotas": smartgpu.Quotas(lang, maximum={"zz": 1})}, "maximum: group 'zz' is not in the data"),
        ({"quotas": smartgpu.Quotas(lang[:5], maximum=1)}, "must hold one label for each of the 100 rows"),
        ({"rows": 3}, "rows goes with cost"),
        ({"cost": cost[:5]}, r"cost must have shape \(100,\)"),
        ({"cost": -cost}, "cost must be > 0 and finite"),
        ({"given": [3], "exclude": [3]}, "row 3 is in given and in exclude"),
        ({"exclude": groups == "a"}, "'a': nothing is left to choose"),
        ({"cost": cost, "rows": {"a": 1}}, "no number of rows for"),
        ({"include": np.flatnonzero(groups == "a")[:2]}, "'a': include names 2 of its rows, but k is 1"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=text):
            smartgpu.select_many(x, groups, **{"budgets": 40 if "cost" in how else 1, **how})
    with pytest.raises(TypeError, match=r"the budget of '.*' must be a number in the units of cost, got 'x'"):
        smartgpu.select_many(x, groups, "x", cost=cost)


def test_what_is_done_under_limits(rng):
    x, groups = grouped(rng, 200)
    cost = rng.integers(1, 9, 200)
    how = {"cost": cost, "quotas": smartgpu.Quotas(groups.tolist(), maximum=3)}
    every = smartgpu.select_many(x, groups, 20, **how)
    again = smartgpu.select_many(x, groups, 20, done={"a": every["a"]}, **how)
    assert again["a"] is every["a"] and all(same(again[g], every[g]) for g in every)
    for change in (
        {"budgets": 21},
        {"quotas": None},
        {"exclude": every["a"].indices[:1]},
        {"include": every["a"].indices[:1]},
    ):
        with pytest.raises(
            ValueError, match=r"done\['a'\] must be a selection of what 2[01] pays for of the \d+ rows"
        ):
            smartgpu.select_many(x, groups, **{"budgets": 20, **how, "done": {"a": every["a"]}, **change})
