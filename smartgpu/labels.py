"""Labels: one int or string for each row, numbered by first appearance."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Label = int | str


@dataclass(frozen=True, eq=False)
class Labels:
    """Labels of n rows.

    names  by first appearance; None among them only where missing labels were allowed
    codes  (n,) int64, the place in `names` of each row's label
    """

    names: tuple[Label | None, ...]
    codes: np.ndarray

    def sizes(self) -> np.ndarray:
        """(len(names),) int64: rows of each label."""
        return np.bincount(self.codes, minlength=len(self.names))

    def rows(self) -> list[np.ndarray]:
        """The rows of each label, ascending, int64."""
        codes = self.codes
        if len(self.names) <= 1 << 16:
            codes = codes.astype(np.uint16)  # numpy sorts these by radix, ten times faster
        order = np.argsort(codes, kind="stable")
        return np.split(order, np.cumsum(self.sizes())[:-1])

    def take(self, rows: np.ndarray) -> Labels:
        """The labels of these rows, numbered anew by first appearance among them."""
        there, first, codes = np.unique(self.codes[rows], return_index=True, return_inverse=True)
        order = np.argsort(first)
        return Labels(tuple(self.names[i] for i in there[order]), np.argsort(order)[codes.reshape(-1)])


def as_labels(value: Any, n: int, name: str, *, missing: bool = False) -> Labels:
    """Labels of n rows: a sequence, ndarray, tensor, pyarrow array, or column of a data frame or data set.

    Ints or strings, not both. missing: None stands for "no label" and counts as one. Raises TypeError for labels of
    another type, ValueError for a wrong length or for missing labels, with their number and the first row.
    """
    found, kinds, codes = _number(value, name)
    if len(codes) != n:
        raise ValueError(f"{name} must hold one label for each of the {n} rows of X, got {len(codes)}")
    if None in found and not missing:
        without = np.flatnonzero(codes == found.index(None))
        raise ValueError(
            f"{name} has {len(without)} rows without a label (None), the first is row {without[0]}"
        )
    types = kinds - {type(None)}
    if all(issubclass(t, (int, np.integer)) and t is not bool for t in types):
        names = tuple(None if v is None else int(v) for v in found)
    elif all(issubclass(t, str) for t in types):
        names = tuple(None if v is None else str(v) for v in found)
    else:
        got = ", ".join(sorted(t.__name__ for t in types))
        raise TypeError(f"{name} must be all ints or all strings, one per row, got {got}")
    return Labels(names, codes)


def _number(value: Any, name: str) -> tuple[list, set[type], np.ndarray]:
    """(labels by first appearance, their types, the place of each row's label among them)."""
    if type(value).__module__.partition(".")[0] == "pyarrow" and hasattr(value, "unique"):
        import pyarrow.compute as pc

        if hasattr(value.type, "value_type"):  # dictionary-encoded: each chunk may number its labels anew
            value = value.cast(value.type.value_type)
        distinct = value.unique()
        found = distinct.to_pylist()
        return (
            found,
            {type(v) for v in found},
            pc.index_in(value, value_set=distinct).to_numpy().astype(np.int64),
        )
    if isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype.kind in "iu" and len(value):
        found, codes = _number_integers(value)
        return found, {int}, codes
    values = _to_list(value, name)
    places: dict[Any, int] = {}
    codes = np.fromiter((places.setdefault(v, len(places)) for v in values), np.int64, len(values))
    return list(places), {type(v) for v in values}, codes  # 1, 1.0 and True are one key, and three types


def _number_integers(values: np.ndarray) -> tuple[list[int], np.ndarray]:
    """(by first appearance, the place of each among them). Through a table of all between the least and the largest,
    where that is not much longer than the rows; O(n) then."""
    low, high = int(values.min()), int(values.max())
    if high - low > 4 * len(values) + 1024 or high >= 1 << 63:
        distinct, first, codes = np.unique(values, return_index=True, return_inverse=True)
        order = np.argsort(first)
        return distinct[order].tolist(), np.argsort(order)[codes.reshape(-1)]
    at = values.astype(np.int64) - low
    first = np.full(high - low + 1, len(values))
    first[at[::-1]] = np.arange(len(values))[
        ::-1
    ]  # of several rows the last one that is written stays: the first
    there = np.flatnonzero(first < len(values))
    there = there[np.argsort(first[there])]
    place = np.empty(len(first), np.int64)
    place[there] = np.arange(len(there))
    return (there + low).tolist(), place[at]


def _to_list(value: Any, name: str) -> Sequence:
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise TypeError(f"{name} must hold one label for each row, got {type(value).__name__}")
    if getattr(value, "ndim", 1) != 1:
        raise ValueError(f"{name} must be one-dimensional, got shape {tuple(value.shape)}")
    for convert in ("tolist", "to_pylist"):  # numpy, torch, pandas; pyarrow
        if hasattr(value, convert):
            return getattr(value, convert)()
    try:
        return value if isinstance(value, list) else list(value)
    except TypeError as error:
        raise TypeError(f"{name} must hold one label for each row: {error}") from None


def unknown(label: Any, known: Iterable[Any], what: str) -> str:
    """The message for a label that is not there, with the nearest that is."""
    names = [k for k in known if k is not None]
    near = difflib.get_close_matches(str(label), [str(k) for k in names], 1)
    hint = (
        f"; did you mean {near[0]!r}?" if near else f"; there are {len(names)}, such as {listed(names[:3])}"
    )
    return f"{what} {label!r} is not in the data{hint}"


def listed(labels: Iterable[Any], most: int = 5) -> str:
    """'a', 'b', 'c' and 12 more"""
    labels = list(labels)
    shown = ", ".join(repr(label) for label in labels[:most])
    return shown + (f" and {len(labels) - most} more" if len(labels) > most else "")
