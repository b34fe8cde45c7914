"""Results: what was chosen, why, how, and what each chosen row stands for."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from smartgpu.files import replacing

FORMAT = 1  # of saved files


@dataclass(frozen=True)
class Assignment:
    """For every pool row its nearest chosen row.

    nearest     (n,) int64, pool row number of the nearest chosen row (the row itself where it ties, else the lowest)
    position    (n,) int64, its place in pick order
    similarity  (n,) float64, the similarity to it
    weight      (k,) int64, in pick order: how many pool rows each chosen row stands for (they add up to n)
    """

    nearest: np.ndarray
    position: np.ndarray
    similarity: np.ndarray
    weight: np.ndarray


@dataclass(frozen=True)
class Selection:
    """k rows of a pool of n, in pick order.

    indices      (k,) int64 pool rows          gains    (k,) float64, one per pick, at the time of the pick
    value        f(S), `given` rows included   base_value  f(given), 0 without; value = base_value + sum of gains
    evaluations  candidate gains computed      sweeps   similarities computed / (represented x candidates)
    seconds      by phase, "compile" in them   exact    False for an approximate maximizer
    limits       what was kept to besides k: budget, cost of the rows and what greedy compared, quotas, rows included
    polished     of polish=: f `before` and `after`, swaps, passes over all candidates, seconds, and `optimum`: whether
                 no swap of one row for another, within the limits, improves f. The rows are ranked greedily among
                 themselves; else None
    bound        of polish=: no choice within the limits has a larger f; `gap` is 1 - value / bound; else None
    together     of process_group=: processes, the sums that they made together (messages), and the bytes of these that
                 each gave; else None
    approximation  of select_partitioned(): how rows were found and what can be said of the loss; else None. With a
                 represented sample `value` is an estimate from other rows, which it has the interval of, and the gains,
                 of the sample, add up to more
    """

    indices: np.ndarray
    gains: np.ndarray
    value: float
    base_value: float
    n: int
    objective: dict[str, Any]
    similarity: dict[str, Any]
    options: dict[str, Any]
    backend: str
    dtype: str
    evaluations: int
    sweeps: float
    seconds: dict[str, float]
    versions: dict[str, str]
    exact: bool = True
    limits: dict[str, Any] | None = None
    polished: dict[str, Any] | None = None
    bound: float | None = None
    together: dict[str, Any] | None = None
    approximation: dict[str, Any] | None = None
    _spec: Any = field(default=None, repr=False, compare=False)  # the similarity, for assign()

    @property
    def k(self) -> int:
        return len(self.indices)

    def __len__(self) -> int:
        return self.k

    @property
    def gap(self) -> float | None:
        """How far f(S) is from the best possible at most, as a share of it: 1 - value / bound. None without a bound."""
        return None if self.bound is None or self.bound <= 0 else 1 - self.value / self.bound

    @property
    def sampled(self) -> bool:
        """Whether gains are of a random sample of the represented rows, and value is an estimate."""
        return self.approximation is not None and "represented" in self.approximation

    @property
    def method(self) -> str:
        """How rows were found, in words. Baselines but quality only have no maximizer."""
        maximizer = self.options.get("maximizer")
        if maximizer is None:
            return "a baseline"
        if self.approximation is not None:
            estimated = ", for a sample of the rows" if self.sampled else ""
            return f"approximate, {self.approximation['method']} in {self.approximation['rounds']} rounds{estimated}"
        return f"{'exact' if self.exact else 'approximate'}, {maximizer} greedy"

    def __repr__(self) -> str:
        return (
            f"Selection({self.k} of {self.n} rows, {self.objective['name']}, {self.similarity['name']}, "
            f"value={self.value:.6g})"
        )

    def __str__(self) -> str:
        first, last = (f"{self.gains[0]:.5g}", f"{self.gains[-1]:.5g}") if self.k else ("-", "-")
        phases = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in self.seconds.items())
        head = ", ".join(str(j) for j in self.indices[:8]) + (", ..." if self.k > 8 else "")
        limits = [f"  limits   {_limits_text(self.limits)}"] if self.limits else []
        return "\n".join(
            [
                f"{self.k} of {self.n} rows by {self.objective['name']} on {self.similarity['name']}"
                f" ({self.method})",
                f"  f(S)     {self._value_text()}, gains {first} down to {last}",
                *self._polished_text(),
                *limits,
                *self._approximated_text(),
                f"  rows     {head}",
                f"  work     {self.evaluations} gains, {self.sweeps:.2f} sweeps, {self.backend} {self.dtype}"
                f"{_together_text(self.together)}",
                f"  seconds  {phases}",
            ]
        )

    def _polished_text(self) -> list[str]:
        if self.polished is None:
            return []
        done = self.polished
        how = "no swap improves it" if done["optimum"] else "stopped before a local optimum"
        gap = "" if self.gap is None else f", within {self.gap:.2%} of the best possible"
        return [f"  polished {done['before']:.6g} before, {done['swaps']} swaps, {how}{gap}"]

    def _value_text(self) -> str:
        if not self.sampled:
            return f"{self.value:.6g}"
        said = self.approximation
        if "interval" not in said:
            return f"{self.value:.6g} on {said['represented']} represented rows, scaled: too large"
        low, high = said["interval"]
        return (
            f"about {self.value:.6g} ({low:.6g} to {high:.6g}, {said['confidence']:.0%} sure), estimated on "
            f"{said['represented']} random rows"
        )

    def _approximated_text(self) -> list[str]:
        if self.approximation is None:
            return []
        said = self.approximation
        rounds = "" if said["rounds"] == 2 else f" in {said['rounds']} rounds"
        left = ", then ".join(str(each["candidates"]) for each in said["by_round"])
        lines = [
            f"  by       {said['method']}{rounds}: {said['parts']} parts ({said['partition']}), {left} candidates"
        ]
        about = "about " if self.sampled else ""
        lines[0] += "" if said.get("share") is None else f"; f(S) is {about}{said['share']:.2%} of f(V)"
        if said.get("share_interval") is not None:
            low, high = said["share_interval"]
            lines[0] += f" ({low:.2%} to {high:.2%})"
        if "sampled" in said:
            last = f", the last pick added {self.gains[-1]:.5g}" if self.k else ""
            lines.append(
                f"  left     of {said['sampled']} random rows the best would add {said['largest_gain']:.5g}{last}"
            )
        return lines

    def prefix(self, k: int) -> Selection:
        """The first k picks, which are the greedy selection of k rows."""
        if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or not 0 < k <= self.k:
            raise ValueError(f"k must be an integer from 1 to {self.k}, the rows selected, got {k!r}")
        if self.limits and "quotas" in self.limits and k < self.k:
            raise ValueError("a prefix of a selection with quotas need not meet them: select again with k")
        by = self.options.get("maximizer")
        if by in ("stochastic", "sieve") and self.polished is None and k < self.k:
            raise ValueError(f"a prefix of a {by} selection is no {by} selection: select again with k")
        if k == self.k:
            return self
        gains = self.gains[:k]
        value, how = self.base_value + float(gains.sum()), {"polished": None, "bound": None}
        how["approximation"] = None  # all of these are of all rows
        if self.sampled:  # but for what the gains are of
            names = (
                "method",
                "rounds",
                "partition",
                "parts",
                "candidates",
                "by_round",
                "seed",
                "represented",
            )
            how["approximation"] = {name: self.approximation[name] for name in names}
            how["approximation"]["value_on_represented"] = value
        return replace(self, indices=self.indices[:k], gains=gains, value=value, **how)

    def assign(self, X: Any) -> Assignment:
        """Assign every row of the pool X to its nearest chosen row: training weights and a duplicate audit.

        X is the pool that was selected from. O(n k d). Raises ValueError where it has another number of rows.
        """
        from smartgpu.evaluation import assign

        return assign(X, self)

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values, indices and gains as lists."""
        return {"indices": self.indices.tolist(), "gains": self.gains.tolist(), **self.metadata()}

    def metadata(self) -> dict[str, Any]:
        """Everything but the arrays, as JSON values."""
        return {
            "k": self.k,
            "n": self.n,
            "value": self.value,
            "base_value": self.base_value,
            "objective": self.objective,
            "similarity": self.similarity,
            "options": self.options,
            "backend": self.backend,
            "dtype": self.dtype,
            "exact": self.exact,
            "limits": self.limits,
            "polished": self.polished,
            "bound": self.bound,
            "evaluations": self.evaluations,
            "sweeps": self.sweeps,
            "seconds": self.seconds,
            "versions": self.versions,
            **({} if self.together is None else {"together": self.together}),
            **({} if self.approximation is None else {"approximation": self.approximation}),
        }

    def save(self, path: str | Path) -> Path:
        """Write to `path` (.npz, no pickle inside), by a temporary name. The pool itself is not saved."""
        path = Path(path)
        if path.suffix != ".npz":
            raise ValueError(f"path must end in .npz, got {str(path)!r}")
        meta = json.dumps({"format": FORMAT, **self.metadata()})
        with replacing(path) as file:
            np.savez(file, indices=self.indices, gains=self.gains, metadata=np.array(meta))
        return path

    @classmethod
    def load(cls, path: str | Path) -> Selection:
        """Read what save() wrote. ValueError for any other file."""
        try:
            with open(path, "rb") as handle, np.load(handle, allow_pickle=False) as file:
                meta = json.loads(str(file["metadata"]))
                arrays = {"indices": file["indices"], "gains": file["gains"]}
            if meta.pop("format") != FORMAT:
                raise ValueError("another format version")
            meta.pop("k")
            return cls.restore(meta, **arrays)
        except FileNotFoundError:
            raise
        except (KeyError, ValueError, TypeError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} is not a saved selection ({error})") from error

    @classmethod
    def restore(cls, metadata: dict[str, Any], indices: np.ndarray, gains: np.ndarray) -> Selection:
        """The selection of these arrays and what metadata() gave, without its k."""
        from smartgpu.similarity import KINDS

        kind = dict(metadata["similarity"])
        return cls(indices, gains, **metadata, _spec=KINDS[kind.pop("name")](**kind))


def _together_text(said: dict[str, Any] | None) -> str:
    if said is None:
        return ""
    return f", {said['processes']} processes, {said['messages']} messages, {said['bytes'] / 1e6:.3g} MB each"


def _limits_text(limits: dict[str, Any]) -> str:
    parts = []
    if "budget" in limits:
        by = f", greedy by {limits['greedy_by']}" if limits["greedy_by"] else ""
        parts.append(f"cost {limits['cost']:g} of {limits['budget']:g}{by}")
    parts += [f"quotas of {quotas['field']}" for quotas in limits.get("quotas", ())]
    if "include" in limits:
        parts.append(f"{len(limits['include'])} rows included")
    return "; ".join(parts)
