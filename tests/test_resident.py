"""The device's own loop against its specification, the maximizer's Python step over the same state: every prefix."""

import json
from pathlib import Path

import aot
import numpy as np
import pytest
from oracle import OBJECTIVES, SIMILARITIES, check, synthetic, with_copies

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from smartgpu import FacilityLocation, GraphCut, LogDet, Modular, Quotas, select
from smartgpu.backends import device_linear, resident
from smartgpu.backends.triton import TritonBackend
from smartgpu.kernels import launch, similarity, sweeps, volume
from smartgpu.kernels import resident as kernels
from smartgpu.maximize import Order
from smartgpu.objectives.log_det_remote import RemoteWoodburyLogDet

pytestmark = pytest.mark.usefixtures("device")
TABLE = Path(__file__).with_name("aot_resident.json")
DENSE = "dense"


def dense_only(monkeypatch):
    """No memory for survivors, whatever there is."""
    monkeypatch.setattr(
        "smartgpu.objectives.facility_location_state.FacilityLocationState._fits", lambda self: False
    )


def by_steps(monkeypatch):
    """The specification: no backend has a loop of its own."""
    monkeypatch.delattr(TritonBackend, "loop")
    monkeypatch.delattr(device_linear.LinearFeatures, "loop")
    monkeypatch.setattr(RemoteWoodburyLogDet, "resident", lambda self, goal: None)


def both(monkeypatch, x, k, objective, kind, **how):
    """(by the loop, by steps), and that the loop did look, seldom."""
    how = {"backend": "triton", "precision": "ieee", **how}
    looks = resident.looks
    one = select(x, k, objective, kind, **how)
    looks = resident.looks - looks
    with monkeypatch.context() as patch:
        by_steps(patch)
        two = select(x, k, objective, kind, **how)
    return one, two, looks


@pytest.mark.parametrize("memory", [None, DENSE])
@pytest.mark.parametrize("similarity", ["cosine", "dot", "rbf", "max_minus_sqeuclidean"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_prefix_is_that_of_the_steps(rng, monkeypatch, name, similarity, memory):
    kind = SIMILARITIES[similarity]
    if name in ("modular", "mixture"):
        pytest.skip("no loop of its own: mixtures of several terms go by steps")
    if name.startswith(("gc", "logdet")) and (kind.affine is None or memory):
        pytest.skip("by kernels, pick by pick, and without survivors in any case")
    x = with_copies(synthetic(rng, 70, 9), rng, 0.3)
    objective = OBJECTIVES[name](x, rng)
    if memory:
        dense_only(monkeypatch)
    one, two, looks = both(monkeypatch, x, 20, objective, kind)
    assert looks > 0
    np.testing.assert_array_equal(one.indices, two.indices)
    if name.startswith("logdet"):  # rounded to 2^-40, from Q instead of from the falls since
        np.testing.assert_allclose(one.gains, two.gains, rtol=0, atol=1e-9)
    else:
        np.testing.assert_array_equal(one.gains, two.gains)
    check(one, x, kind, objective, copies_tie=name != "qdit")


@pytest.mark.parametrize("tie_break", ["low", "high"])
@pytest.mark.parametrize("name", ["fl", "fl-weights", "gc", "logdet", "qdit"])
def test_ties(rng, monkeypatch, name, tie_break):
    """Few distinct rows: nearly every pick is a tie, of more candidates than a step evaluates."""
    distinct = synthetic(rng, 5, 7)
    x = distinct[rng.integers(0, 5, 150)]
    objective = OBJECTIVES[name.removesuffix("-weights")](x, rng)
    if name == "qdit":
        objective = 0.5 * FacilityLocation() + Modular(np.repeat(rng.standard_normal(3), 50))
    one, two, _ = both(monkeypatch, x, 12, objective, "cosine", tie_break=tie_break)
    np.testing.assert_array_equal(one.indices, two.indices)
    np.testing.assert_allclose(one.gains, two.gains, rtol=0, atol=1e-9 if name == "logdet" else 0)


@pytest.mark.parametrize("objective", [FacilityLocation(), GraphCut(), LogDet()], ids=lambda o: o.name)
def test_sums_with_quality(rng, monkeypatch, objective):
    """Terms before and after, and weights; with two behind it sums would have another order, so steps do it."""
    x, q, p = synthetic(rng, 80, 8), rng.standard_normal(80), rng.standard_normal(80)
    for whole in (3 * Modular(q) + 0.3 * objective, 0.3 * objective + 3 * Modular(q),
                  2 * Modular(p) + 1 * Modular(q) + 0.7 * objective + 0.1 * Modular(p)):  # fmt: skip
        one, two, looks = both(monkeypatch, x, 15, whole, "cosine_shifted")
        assert looks > 0
        np.testing.assert_array_equal(one.indices, two.indices)
        np.testing.assert_allclose(
            one.gains, two.gains, rtol=0, atol=1e-9 if objective.name == "log_det" else 0
        )
    one, two, looks = both(monkeypatch, x, 9, objective + Modular(q) + Modular(p), "cosine_shifted")
    assert looks == 0 and np.array_equal(one.indices, two.indices)


@pytest.mark.parametrize("name", ["fl", "gc", "logdet", "qdit"])
def test_given_exclude_coverage_and_all_rows(rng, monkeypatch, name):
    x = synthetic(rng, 60, 8)
    objective = OBJECTIVES[name](x, rng)
    atol = 1e-9 if name == "logdet" else 0
    for k, how in ((10, {"given": [3, 50], "exclude": np.arange(20, 40)}), (60, {}), (1, {})):
        one, two, _ = both(monkeypatch, x, k, objective, "cosine_shifted", **how)
        np.testing.assert_array_equal(one.indices, two.indices)
        np.testing.assert_allclose(one.gains, two.gains, rtol=0, atol=atol)
        assert one.base_value == pytest.approx(two.base_value, abs=1e-9)
    if name in ("fl", "logdet"):
        one, two, _ = both(monkeypatch, x, None, objective, "cosine_shifted", coverage=0.8)
        np.testing.assert_array_equal(one.indices, two.indices)
        assert len(one.indices) < 60
    for n in (1, 2, 5):
        one, two, _ = both(monkeypatch, x[:n], n, objective.take(np.arange(n)), "cosine_shifted")
        np.testing.assert_array_equal(one.indices, two.indices)


@pytest.mark.parametrize("limit", ["budget", "quotas", "both", "minima", "coverage"])
@pytest.mark.parametrize("name", ["fl", "gc", "logdet", "qdit"])
def test_limits(rng, monkeypatch, name, limit):
    """Costs that are whole and the quotas of one field are kept on the device; fractions by steps, and minima that have
    to be paid, until they are."""
    x, group = synthetic(rng, 70, 8), rng.integers(0, 4, 70).tolist()
    objective, cost = OBJECTIVES[name](x, rng), rng.integers(1, 9, 70).astype(float)
    how = {
        "budget": {"budget": 50.0, "cost": cost},
        "quotas": {"quotas": Quotas(group, minimum={0: 5}, maximum={1: 2, 2: 0.4}), "k": 14},
        "both": {"budget": 50.0, "cost": cost, "quotas": Quotas(group, maximum=4)},
        "minima": {"budget": 50.0, "cost": cost, "quotas": Quotas(group, minimum={0: 5})},
        "coverage": {"coverage": 0.5, "quotas": Quotas(group, minimum={3: 9})},
    }[limit]
    if limit == "coverage" and name not in ("fl", "logdet"):
        pytest.skip("coverage is for monotone objectives")
    k = how.pop("k", None)
    one, two, looks = both(monkeypatch, x, k, objective, "cosine_shifted", **how)
    np.testing.assert_array_equal(one.indices, two.indices)
    np.testing.assert_allclose(one.gains, two.gains, rtol=0, atol=1e-9 if name == "logdet" else 0)
    assert (looks > 0 or limit == "minima") and one.limits == two.limits
    if limit == "budget":
        how["cost"] = cost + 0.1
        one, two, looks = both(monkeypatch, x, k, objective, "cosine_shifted", **how)
        np.testing.assert_array_equal(one.indices, two.indices)
        assert looks == 0


@pytest.mark.parametrize("name", ["fl", "gc", "logdet"])
def test_the_host_looks_seldom(rng, name):
    """Far fewer than one look for ten picks, also counting those without a pick; compaction and renewal on the way."""
    x = synthetic(rng, 140, 6)
    before = resident.looks
    sel = select(x, 90, OBJECTIVES[name](x, rng), "cosine_shifted", backend="triton")
    assert len(sel.indices) == 90 and resident.looks - before < 9


def test_a_state_can_be_asked_after_its_loop(rng):
    """value(), levels and gains fit what was picked, as if the picks had been added one by one."""
    from smartgpu.constraints import Goal
    from smartgpu.objectives import Ground
    from smartgpu.similarity import as_similarity

    x = synthetic(rng, 50, 6)
    for name in ("fl", "gc", "logdet", "qdit"):
        objective = OBJECTIVES[name](x, rng)
        states = [
            objective.bind(Ground(x, as_similarity("dot"), "triton", precision="ieee")) for _ in range(2)
        ]
        picks = [int(j) for found in states[0].resident(Goal(np.ones(50, bool), 9)) for j in found.indices]
        states[1].add(np.array(picks))
        assert len(picks) == 9 and states[0].value() == pytest.approx(states[1].value(), abs=1e-8)
        np.testing.assert_allclose(states[0].gains(), states[1].gains(), atol=1e-8)


@pytest.mark.parametrize("name", ["fl", "fl-dense", "gc", "logdet", "qdit"])
def test_nothing_depends_on_the_search(rng, monkeypatch, name):
    """Two runs, and runs with other groups, tiles and looks: the same bits."""
    x = with_copies(synthetic(rng, 70, 7), rng, 0.3)
    objective = OBJECTIVES[name.removesuffix("-dense")](x, rng)
    if name == "fl-dense":
        dense_only(monkeypatch)
    first, again = (select(x, 16, objective, backend="triton") for _ in range(2))
    monkeypatch.setattr(kernels, "LEAST_OF_GROUP", 4)  # 16 groups instead of 4
    monkeypatch.setattr(kernels, "BLOCK_PAIRS", 64)
    monkeypatch.setattr(kernels, "BLOCK_SCAN", 16)
    monkeypatch.setattr(resident, "STEPS", 5)
    for key in (("sweep", "half"), ("columns", "half")):
        monkeypatch.setitem(
            launch.TABLE[launch.table(launch.arch("cuda"))], key, launch.LaunchConfig(32, 64, 32, 4, 2)
        )
    other = select(x, 16, objective, backend="triton")
    for sel in (again, other):
        np.testing.assert_array_equal(sel.indices, first.indices)
        np.testing.assert_array_equal(sel.gains, first.gains)


def test_nothing_depends_on_the_stream(rng, device):
    if device == "cpu":
        pytest.skip("streams need a GPU")
    x = torch.from_numpy(synthetic(rng, 3000, 32)).to("cuda")
    for objective in (FacilityLocation(), GraphCut(), LogDet()):
        first = select(x, 300, objective, backend="triton")
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            other = select(x, 300, objective, backend="triton")
        np.testing.assert_array_equal(first.indices, other.indices)
        np.testing.assert_array_equal(first.gains, other.gains)


@pytest.mark.parametrize("low", [True, False])
def test_scan_finds_the_best_of_each_group(rng, device, low):
    n = 1000
    search = kernels.Search(n, 5, device, low=low)
    key = rng.integers(0, 30, n).astype(np.float64)  # ties
    key[rng.choice(n, 100, replace=False)] = -np.inf
    search.key.copy_(torch.from_numpy(key))
    search.scan()
    order = Order("low" if low else "high")
    for g in range(search.groups):
        mine = np.flatnonzero(np.arange(n) // kernels.RUN % search.groups == g)
        left = key.copy()
        for slot in range(g * kernels.TAKE, (g + 1) * kernels.TAKE):
            best = mine[order.best(left[mine])]
            assert search.top[slot] == left[best] and search.at[slot] == best
            left[best] = -np.inf
        best = mine[order.best(left[mine])]
        assert search.limit[g] == left[best] and search.limit_at[g] == best


def test_scan_ages_bounds(rng, device):
    """A gain of now counts as it is; an older one with the margin and slack for every pick since."""
    n = 64
    search = kernels.Search(n, 5, device, stale=True, margin=0.5, slack=0.25)
    key, stamp = rng.random(n), rng.integers(0, 4, n)
    search.key.copy_(torch.from_numpy(key))
    search.stamp.copy_(torch.from_numpy(stamp))
    search.head[0] = 3
    search.scan()
    bounds = np.where(stamp == 3, key, key + 0.5 + 0.25 * (3 - stamp))
    assert search.top.max().item() == bounds.max() and search.at[search.top.argmax()] == bounds.argmax()


@pytest.mark.parametrize("kind", ["cosine", "rbf"])
def test_raise_level_is_a_column(rng, device, kind):
    x = torch.from_numpy(synthetic(rng, 150, 12)).to(device)
    y = x[:90].clone()
    form = similarity.Form(kind, gamma=0.1 if kind == "rbf" else 0.0)
    level = torch.from_numpy(rng.integers(0, 2**20, 150).astype(np.int32)).to(device)
    column = sweeps.columns(x, y, torch.tensor([41], device=device), form)[0]
    expected = torch.maximum(level, column)
    sweeps.raise_level(x, y, torch.tensor([-1], device=device), level, form)
    assert not torch.equal(level, expected)
    sweeps.raise_level(x, y, torch.tensor([41], device=device), level, form)
    assert torch.equal(level, expected)


# -- ahead of time ---------------------------------------------------------------------------------------------------


def jobs(target):
    n, d, found = 1 << 18, 384, {}

    def add(label, call):
        for part, job in enumerate(aot.record(target, launch, call)):
            found[f"{label} {part + 1}" if part else label] = job

    per_row = torch.zeros(n, dtype=torch.float64)
    plain = kernels.Search(n, 100, "cpu")
    groups = (torch.zeros(n, dtype=torch.int32), *torch.zeros((2, 64), dtype=torch.int32), 5)
    limits = {"cost": per_row, "left": 1.0, "rate": per_row, "quotas": groups}
    full = kernels.Search(n, 100, "cpu", low=False, stale=True, before=per_row, after=per_row, **limits)
    sums = torch.zeros(plain.slots, dtype=torch.int64)
    pairs = (torch.zeros(n + 1, dtype=torch.int64), *torch.zeros((2, 64), dtype=torch.int32))
    level, weights = torch.zeros(n, dtype=torch.int32), torch.zeros(n, dtype=torch.int64)
    add("scan", lambda: plain.scan(sums))
    add("scan and raise", lambda: plain.scan(sums, pairs=pairs, level=level))
    add("scan of aged bounds", lambda: full.scan())
    add("fresh_excess", lambda: kernels.fresh_excess(plain, pairs, level, sums))
    add("fresh_excess weighted", lambda: kernels.fresh_excess(plain, pairs, level, sums, weights=weights))
    add("decide excess", lambda: plain.decide(sums, "excess"))
    add("decide excess and quality", lambda: full.decide(sums, "excess"))
    add("decide cut", lambda: full.decide(sums.double(), "cut", own=per_row))
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        x = torch.zeros((n, d), dtype=dtype)
        name = str(dtype).removeprefix("torch.")
        last = torch.zeros(1, dtype=torch.float64)
        falls = volume.Volume(x, per_row, last, torch.zeros((d + 1, d + 1), dtype=torch.float64))
        parts = falls.parts(full.slots)
        add(f"quadratic {name}", lambda falls=falls, parts=parts: falls.evaluate(full, parts))
        add(f"commit volume {name}", lambda falls=falls: falls.commit(full))
        add(f"lower_all {name}", lambda falls=falls: falls.lower_all(full, per_row))
        v = torch.zeros(d, dtype=torch.float64)
        add(f"commit cut {name}", lambda x=x, v=v: kernels.commit_cut(full, x, v, v, v, v[:2]))
    add("decide log", lambda: full.decide(parts, "log"))
    form = similarity.Form("rbf", gamma=1.0)
    squares = torch.zeros(n)
    both = {"x_squares": squares, "y_squares": squares}
    half = torch.zeros((n, d), dtype=torch.float16)
    add("raise_level", lambda: sweeps.raise_level(half, half, full.pick, level, form, **both))
    return found


def compiled(target):
    wanted = jobs(target)
    return dict(zip(wanted, aot.build(list(wanted.values())), strict=True))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("target", [80, 90, 100], ids=lambda t: f"sm_{t}")
def test_steps_compile_well(target):
    committed, reports, wrong = json.loads(TABLE.read_text())[f"sm_{target}"], compiled(target), []
    for label, report in reports.items():
        wrong += [f"{label}: {complaint}" for complaint in report.complaints(target)]
        if report.registers > 1.1 * committed.get(label, 0) + 8:
            wrong.append(f"{label}: {report.registers} registers, {committed.get(label)} in {TABLE.name}")
    wrong += [
        f"{label}: in {TABLE.name}, and compiled no more" for label in committed.keys() - reports.keys()
    ]
    assert not wrong, "\n".join(wrong)


if __name__ == "__main__":
    found = {f"sm_{t}": {label: r.registers for label, r in compiled(t).items()} for t in (80, 90, 100)}
    TABLE.write_text(json.dumps(found, indent=1) + "\n")
