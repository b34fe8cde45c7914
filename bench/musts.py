"""What must be reached: figures of rows, and their limits."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bench.cases import ALPACA_ROWS, APART, DEVICE_CASES, FEWER, FL, FL50, GC, LAUNCH, LD, MORE, TRITON, Case

Row = dict[str, Any]
Rows = dict[tuple[str, str], Row]  # by (case, provider)
Figure = Callable[[Rows], float | None]

OURS, OURS_1GB = "smartgpu-numpy", "smartgpu-numpy-1gb"
LAZY_PEERS = ("apricot-lazy", "submodlib")
TITLES = {FL: "facility location", GC: "graph cut", LD: "log-determinant"}
SAME_VALUE = 1e-4  # of f(S), relative: code in float32 breaks near ties in its own way
SYNCS = 0.1  # host synchronisations for each pick


def measured(rows: Rows, case: str, provider: str, key: str = "ms_p50") -> float | None:
    """A figure of a row; None where there is no row, it stopped, or it did not pass the gate."""
    row = rows.get((case, provider), {})
    if "stopped" in row or row.get("gate", "pass") != "pass":
        return None
    return row.get(key)


@dataclass(frozen=True)
class Must:
    """A figure and its limit: at least (">="), at most ("<=") or below ("<"). at: the row that it is of, if of one."""

    text: str
    figure: Figure
    sense: str
    limit: float
    at: tuple[str, str] | None = None

    def reached(self, value: float) -> bool:
        return {">=": value >= self.limit, "<=": value <= self.limit, "<": value < self.limit}[self.sense]

    def judge(self, rows: Rows) -> str:
        value = self.figure(rows)
        if value is None:
            return f"not measured  {self.text}: {self.sense} {self.limit:g}"
        by = abs(value / self.limit - 1)
        verdict = "reached" if self.reached(value) else "MISSED"
        return f"{verdict:<13} {self.text}: {value:.3g} ({self.sense} {self.limit:g}), by {by:.0%}"

    def entry(self, rows: Rows) -> Row | None:
        """For the row itself: {"what", "value", "must", "reached"}, None where there is no figure."""
        value = self.figure(rows)
        if value is None:
            return None
        must = f"{self.sense} {self.limit:g}"
        shown = None if math.isnan(value) else round(value, 4)
        return {"what": self.text, "value": shown, "must": must, "reached": self.reached(value)}


def ratio(a: float | None, b: float | None) -> float | None:
    return None if a is None or not b else a / b


def faster(case: str, peers: tuple[str, ...]) -> Figure:
    """Time of the fastest of the peers / ours."""

    def figure(rows: Rows) -> float | None:
        times = [t for t in (measured(rows, case, peer) for peer in peers) if t is not None]
        return ratio(min(times, default=None), measured(rows, case, OURS))

    return figure


def own(case: str, key: str, provider: str = OURS, scale: float = 1.0) -> Figure:
    def figure(rows: Rows) -> float | None:
        value = measured(rows, case, provider, key)
        return None if value is None else value * scale

    return figure


def _memory_share(case: str) -> Figure:
    def figure(rows: Rows) -> float | None:
        peaks = [p for p in (measured(rows, case, peer, "peak_mb") for peer in LAZY_PEERS) if p is not None]
        return ratio(measured(rows, case, OURS, "peak_mb"), min(peaks, default=None))

    return figure


# -- on two cores ------------------------------------------------------------------------------------------------------


def _name(objective: str, n: int, k: int) -> str:
    return Case(objective, "alpaca", n, k).name


FL10, FL10_ALL = _name(FL, 10_000, 1_000), _name(FL, 10_000, 9_999)
FL20, FL52 = _name(FL, 20_000, 2_000), _name(FL, ALPACA_ROWS, 5_000)
FL52_ALL = _name(FL, ALPACA_ROWS, ALPACA_ROWS)
GC10, LD10 = _name(GC, 10_000, 1_000), _name(LD, 10_000, 1_000)
GC52, LD52 = _name(GC, ALPACA_ROWS, 5_000), _name(LD, ALPACA_ROWS, 5_000)

# Alpaca, d = 384, cosine, two cores.
MUSTS: tuple[Must, ...] = (
    Must(
        "FL 10,000 / 1,000: times faster than apricot (lazy) and submodlib", faster(FL10, LAZY_PEERS), ">=", 4
    ),
    Must("FL 10,000 / 9,999: times faster", faster(FL10_ALL, LAZY_PEERS), ">=", 4),
    Must("FL 20,000 / 2,000: times faster", faster(FL20, LAZY_PEERS), ">=", 5),
    Must("FL 20,000 / 2,000: share of the least memory of the two", _memory_share(FL20), "<=", 0.25),
    Must("FL 52,002 / 5,000: times one product", own(FL52, "ratio_to_blas"), "<=", 2.5),
    Must("FL 52,002 / 5,000: peak, MB", own(FL52, "peak_mb"), "<=", 3000),
    Must("FL 52,002 / 5,000, memory=1GB: peak, MB", own(FL52, "peak_mb", OURS_1GB), "<=", 1000),
    Must(
        "FL 52,002 / 5,000, memory=1GB: times the time without",
        lambda rows: ratio(measured(rows, FL52, OURS_1GB), measured(rows, FL52, OURS)),
        "<=",
        2,
    ),
    Must("FL 10,000 / 1,000: sweeps", own(FL10, "sweeps"), "<=", 1.1),
    Must("FL 52,002 / 5,000: sweeps", own(FL52, "sweeps"), "<=", 2.5),
    Must(
        "FL 52,002, full ranking: times the time of k = 5,000",
        lambda rows: ratio(measured(rows, FL52_ALL, OURS), measured(rows, FL52, OURS)),
        "<=",
        1.5,
    ),
    Must(
        "GC 10,000 / 1,000: times faster than apricot",
        faster(GC10, ("apricot-lazy", "apricot-naive")),
        ">=",
        10,
    ),
    Must("GC 10,000 / 1,000: times faster than submodlib", faster(GC10, ("submodlib",)), ">=", 60),
    Must("LD 10,000 / 1,000: times faster than submodlib", faster(LD10, ("submodlib",)), ">=", 40),
    Must("GC 52,002 / 5,000: times one product", own(GC52, "ratio_to_blas"), "<=", 0.05),
    Must("LD 52,002 / 5,000: times one product", own(LD52, "ratio_to_blas"), "<=", 0.3),
)


# -- on one H200 -------------------------------------------------------------------------------------------------------


def title(case: Case) -> str:
    """FL gaussian 1,000,000 x 384 / 10,000, 80GB"""
    name = {FL: "FL", GC: "GC", LD: "LD"}.get(case.objective, "FL + quality")
    inside = f" in {case.tasks} tasks" if case.tasks else ""
    limited = f", {case.memory}" if case.memory else ""
    return f"{name} {case.pool} {case.n:,} x {case.d} / {case.k:,}{inside}{limited}"


def times_faster(case: str, other: str) -> Figure:
    """Time of another / ours, of selections with the same f(S); nan, which reaches nothing, where f(S) differs."""

    def figure(rows: Rows) -> float | None:
        same = measured(rows, case, other, "value_ratio")
        found = ratio(measured(rows, case, other), measured(rows, case, TRITON))
        if found is None or same is None:
            return None
        return found if abs(same - 1) <= SAME_VALUE else float("nan")

    return figure


def _device_musts() -> tuple[Must, ...]:
    out = []
    for case in DEVICE_CASES:
        at = (case.name, TRITON)
        if case.must is not None:
            out.append(Must(f"{title(case)}: s", own(*_of(case, "ms_p50"), 1e-3), "<=", case.must, at))
        if case.memory is not None:
            limit = float(case.memory.removesuffix("GB"))
            peak = own(*_of(case, "device_peak_mb"), 1e-3)
            out.append(Must(f"{title(case)}: peak of the device, GB", peak, "<=", limit, at))
        # The host waits for each task, however few picks it has: no bar for these.
        if case is FL50 or (case.must is not None and not case.tasks):
            waits = own(*_of(case, "syncs_per_pick"))
            out.append(Must(f"{title(case)}: host synchronisations a pick", waits, "<", SYNCS, at))
    text = "survivors' tail, 1,000,000 rows, picks 10,001 to 60,000: us a pick"
    out.append(Must(text, tail_pick, "<=", 8, (MORE.name, TRITON)))
    text = f"{title(LAUNCH)}: times faster than one by one"
    out.append(Must(text, _together, ">=", 10, (LAUNCH.name, APART)))
    for other, limit in (("torch-naive", 100), ("torch-incremental", 2)):
        text = f"{title(FL50)}: times faster than {other}"
        out.append(Must(text, times_faster(FL50.name, other), ">=", limit, (FL50.name, other)))
    return tuple(out)


def tail_pick(rows: Rows) -> float | None:
    """Microseconds of a pick by the survivors' tail: of those that the longer of two selections makes beyond the other,
    compaction and the host's looks included."""
    long, short = (measured(rows, case.name, TRITON) for case in (MORE, FEWER))
    return None if long is None or short is None else 1e3 * (long - short) / (MORE.k - FEWER.k)


def _together(rows: Rows) -> float | None:
    return ratio(measured(rows, LAUNCH.name, APART), measured(rows, LAUNCH.name, TRITON))


def _of(case: Case, key: str) -> tuple[str, str, str]:
    return case.name, key, TRITON


DEVICE_MUSTS = _device_musts()


def is_judged(row: Row) -> bool:
    """Whether the bars of the device are for this row: measured on an H200, and no rehearsal."""
    return "H200" in str(row.get("gpu")) and not row.get("rehearsal")
