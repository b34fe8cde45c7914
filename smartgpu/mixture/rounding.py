"""From gains to whole rows: the budgets of a SMART mixture, rounded as published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

FLAN = ("zs_opt", "zs_noopt", "fs_opt", "fs_noopt")  # zero and few shots, with and without answer options
LARGEST = 1 << 40  # rows that can be split: quotients of larger numbers are not exact in float64


def budgets(
    gains: Any,
    sizes: Any,
    total: int,
    *,
    temperature: float = 1.0,
    min_rows: Any = None,
    max_rows: Any = None,
) -> np.ndarray:
    """Rows for each task, (m,) int64 that add up to `total`: a second-order Taylor softmax of the gains, as published.

    gains   (m,) finite floats, tasks in the order in which they were selected
    sizes   (m,) ints, rows that each task has
    total   rows to hand out, at most the sum of the sizes
    temperature    > 0, divides the gains
    min_rows, max_rows   a number for all, or (m,) of them

    With f_i = 1 + g_i + g_i^2 / 2 and p_i = f_i / sum f, every task gets floor(total p_i / sum p), and one row more
    each from the first on until all are handed out. What is above a task's size (or max_rows) goes to the others, one
    row each in turn, in order, to those that have room; what is below min_rows comes from the others in the same way,
    from the last to the first. Sums run in the order of the tasks. O(m log m) whatever the total.
    Source: arXiv 2403.08370, and its code, whose loops this gives the result of. Raises ValueError where no such
    budgets exist.
    """
    sizes = whole_numbers("sizes", sizes)
    gains = np.asarray(gains, np.float64)
    if gains.shape != sizes.shape:
        raise ValueError(f"gains and sizes must be of one length, got shapes {gains.shape} and {sizes.shape}")
    total = check_total(total, len(sizes))
    low = np.zeros_like(sizes) if min_rows is None else _limits("min_rows", min_rows, sizes)
    high = sizes if max_rows is None else np.minimum(sizes, _limits("max_rows", max_rows, sizes))
    if (low > high).any():
        i = int((low > high).argmax())
        raise ValueError(f"task {i} must have at least {low[i]} rows, and can have {high[i]} at most")
    if not low.sum() <= total <= high.sum():
        raise ValueError(
            f"total must lie between {low.sum()} and {high.sum()} rows, which the tasks can have, got {total}"
        )
    return fit(split(total, taylor_softmax(gains, temperature)), low, high)


def taylor_softmax(gains: Any, temperature: float = 1.0) -> np.ndarray:
    """p_i = f_i / sum f with f = 1 + x + x^2 / 2 (never below 1/2), x = gains / temperature; (m,) float64."""
    gains = np.asarray(gains, np.float64)
    x = gains / check_temperature(temperature)
    if gains.ndim != 1 or not np.isfinite(gains).all() or (np.abs(x) > 1e100).any():
        raise ValueError(
            "gains must be a vector of finite numbers, below 1e100 once divided by the temperature"
        )
    f = (1.0 + x) + x * x / 2.0
    return f / _sum(f)


def split(total: int, ratio: Any) -> np.ndarray:
    """floor(total r_i / sum r) each, and one more each from the first on until `total` is handed out; (m,) int64."""
    ratio = np.asarray(ratio, np.float64)
    parts = np.floor(total * ratio / _sum(ratio)).astype(np.int64)
    more, rest = divmod(total - int(parts.sum()), len(parts))
    parts += more
    parts[:rest] += 1
    return parts


def fit(parts: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """The parts brought between low and high, their sum unchanged; it lies between the sums of low and high.

    The excess above `high` is handed out again one by one, in order, to all with room, then again from the first; then
    what is short of `low` is taken back one by one, from the last to the first.
    """
    capped = np.minimum(parts, high)
    capped = capped + _in_turn(high - capped, int((parts - capped).sum()))
    raised = np.maximum(capped, low)
    return raised - _in_turn((raised - low)[::-1], int((raised - capped).sum()))[::-1]


def _in_turn(room: np.ndarray, count: int) -> np.ndarray:
    """How many of `count` each gets when they go out one by one, in order, round after round, to all with room."""
    low, high = 0, int(room.max(initial=0))
    while low < high:  # the largest number of whole rounds
        middle = (low + high + 1) // 2
        if int(np.minimum(room, middle).sum()) <= count:
            low = middle
        else:
            high = middle - 1
    out = np.minimum(room, low)
    out[np.flatnonzero(room > low)[: count - int(out.sum())]] += 1
    return out


def split_templates(budget: int, counts: Mapping[Any, int] | Sequence[int]) -> dict[Any, int] | np.ndarray:
    """A task's budget split over its templates, in proportion to their rows; never more than a template has.

    counts  {template: rows} (the result is a mapping too), or (t,) rows in order

    Where all templates are of FLAN's four kinds, zs_opt, zs_noopt, fs_opt, fs_noopt, the budget is first split between
    zero shots and few shots, each part then between its two kinds, as published; else over all templates at once, in
    their order. The rounding is that of budgets(). A template without rows gets none. The published code can give a row
    left over from rounding to zero shots where a task has only few shots, and then fails; here such a row goes on to
    the next part that has room. Raises ValueError where the budget is above the sum of the counts.
    """
    if isinstance(counts, Mapping):
        names, rows = list(counts), whole_numbers("counts", list(counts.values()))
    else:
        names, rows = None, whole_numbers("counts", counts)
    budget = check_total(budget, len(rows), "budget", least=0)
    if budget > rows.sum():
        raise ValueError(f"budget must be at most {rows.sum()}, the rows of all templates, got {budget}")
    parts = share_templates(budget, names or [], rows, np.zeros_like(rows), rows)
    return parts if names is None else dict(zip(names, parts.tolist(), strict=True))


def share_templates(
    amount: int, names: Sequence[Any], ratio: np.ndarray, low: np.ndarray, high: np.ndarray
) -> np.ndarray:
    """(t,) int64, the parts of an amount that split_templates() gives templates, in proportion to `ratio`.

    Each lies between its low and its high, (t,) int64; the amount between their sums.
    """
    if not len(names) or not set(names) <= set(FLAN):
        return _part(amount, ratio, low, high)
    every = np.zeros((3, len(FLAN)))
    place = [FLAN.index(name) for name in names]
    every[:, place] = ratio, low, high
    halves = every.reshape(3, 2, 2)
    ratio, (low, high) = halves[0], halves[1:].astype(np.int64)
    parts = [
        _part(int(b), *half)
        for b, half in zip(
            _part(amount, ratio.sum(axis=1), low.sum(axis=1), high.sum(axis=1)),
            zip(ratio, low, high, strict=True),
            strict=True,
        )
    ]
    return np.concatenate(parts)[place]


def _part(amount: int, ratio: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    if amount == 0:
        return np.zeros_like(high)
    return fit(split(amount, ratio), low, high)


def _sum(values: np.ndarray) -> float:
    """In order, one after the other, whatever numpy's version and the processor."""
    return float(np.cumsum(values)[-1])


def whole_numbers(name: str, value: Any) -> np.ndarray:
    """(m,) int64 >= 0, m >= 1. Raises TypeError, ValueError naming the argument."""
    out = np.asarray(value)
    if out.ndim != 1 or not out.size:
        raise ValueError(f"{name} must be a non-empty vector, got shape {out.shape}")
    if out.dtype.kind not in "iu":
        raise TypeError(f"{name} must be integers, got dtype {out.dtype}")
    out = out.astype(np.int64)
    if (out < 0).any():
        raise ValueError(f"{name} must be >= 0, got {out.min()}")
    return out


def check_temperature(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"temperature must be a number, got {value!r}")
    if not (np.isfinite(value) and value > 0):
        raise ValueError(f"temperature must be positive and finite, got {value!r}")
    return float(value)


def check_total(value: Any, m: int, name: str = "total", least: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if not least <= value <= LARGEST // max(m, 1):
        raise ValueError(f"{name} must lie in [{least}, {LARGEST // max(m, 1)}], got {value}")
    return int(value)


def _limits(name: str, value: Any, sizes: np.ndarray) -> np.ndarray:
    out = whole_numbers(name, np.atleast_1d(value))
    if len(out) not in (1, len(sizes)):
        raise ValueError(f"{name} must be one number or {len(sizes)} of them, got {len(out)}")
    return np.broadcast_to(out, sizes.shape)
