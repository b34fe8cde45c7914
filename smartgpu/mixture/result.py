"""Mixture: the chosen tasks, how many rows each gives, and which."""

from __future__ import annotations

import json
import math
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from smartgpu.files import replacing
from smartgpu.labels import Label
from smartgpu.selection import Selection

FORMAT = 1  # of saved files


@dataclass(frozen=True)
class Task:
    """One chosen task.

    task      its label                        number   its place among the tasks of the data, by first appearance
    size      rows that it has                 gain     what it added when it was selected; 1 without a selection
    weight    its share of the rows before rounding, all weights add up to 1
    budget    rows that it gives               budget_before_caps  the same before sizes, minima and maxima
    allowance its share of a budget of tokens, None of rows; what it could have taken before sizes is budget_before_caps
    cost      what its rows cost, more than its allowance by what was left over
    templates {template: rows that it gives}, empty where no templates were given
    indices   (budget,) int64 pool rows, best first: those of several templates by their relative rank
    gains     (budget,) float64, one per row, at the time of its pick
    selections {template: Selection}, {None: Selection} without templates; only templates that give rows
    """

    task: Label
    number: int
    size: int
    gain: float
    weight: float
    budget: int
    budget_before_caps: int | float
    templates: dict[Label | None, int]
    indices: np.ndarray
    gains: np.ndarray
    selections: dict[Label | None, Selection]
    allowance: float | None = None
    cost: float | None = None

    @property
    def capped(self) -> bool:
        """Whether sizes or limits left it less than its share."""
        return (self.budget if self.allowance is None else self.allowance) < self.budget_before_caps

    def to_dict(self) -> dict[str, Any]:
        """All but the rows, as JSON values."""
        paid = {} if self.cost is None else {"allowance": self.allowance, "cost": self.cost}
        return {
            **paid,
            "task": self.task,
            "number": self.number,
            "size": self.size,
            "gain": self.gain,
            "weight": self.weight,
            "budget": self.budget,
            "budget_before_caps": self.budget_before_caps,
            "templates": [{"template": name, "budget": b} for name, b in self.templates.items()],
        }


@dataclass(frozen=True)
class Mixture:
    """A mixture of tasks.

    tasks     one record per chosen task, in the order in which they were selected
    indices   (n_rows,) int64 pool rows in the chosen order
    n         rows of the pool                 n_tasks_in_pool  tasks to choose from
    method    how tasks and budgets were chosen
    options   every option, as JSON values     seconds  by stage
    """

    tasks: list[Task]
    indices: np.ndarray
    n: int
    n_tasks_in_pool: int
    method: str
    options: dict[str, Any]
    seconds: dict[str, float]
    versions: dict[str, str]

    def __len__(self) -> int:
        return len(self.indices)

    def __repr__(self) -> str:
        return (
            f"Mixture({len(self.indices)} of {self.n} rows, {len(self.tasks)} of {self.n_tasks_in_pool} tasks, "
            f"{self.method})"
        )

    def __str__(self) -> str:
        lines = [f"{len(self.indices)} rows of {len(self.tasks)} tasks by {self.method}"]
        width = max(len(str(t.task)) for t in self.tasks[:12])
        lines += [f"  {t.task!s:<{width}}  {t.budget:>7} of {t.size} rows" for t in self.tasks[:12]]
        if len(self.tasks) > 12:
            lines.append(f"  and {len(self.tasks) - 12} tasks more")
        return "\n".join(lines)

    @property
    def budgets(self) -> dict[Label, int]:
        return {t.task: t.budget for t in self.tasks}

    @property
    def cost(self) -> float | None:
        """What all rows cost together, None where nothing was said of it."""
        return None if self.options.get("budget") is None else math.fsum(t.cost for t in self.tasks)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the rows, as JSON values."""
        return {
            "n": self.n,
            "n_rows": len(self.indices),
            "n_tasks": len(self.tasks),
            "n_tasks_in_pool": self.n_tasks_in_pool,
            "method": self.method,
            "options": self.options,
            "tasks": [t.to_dict() for t in self.tasks],
            "seconds": self.seconds,
            "versions": self.versions,
        }

    def save(self, path: str | Path) -> Path:
        """Write to `path` (.npz, no pickle inside), by a temporary name. The pool itself is not saved."""
        path = Path(path)
        if path.suffix != ".npz":
            raise ValueError(f"path must end in .npz, got {str(path)!r}")
        cells = [(i, name, s) for i, t in enumerate(self.tasks) for name, s in t.selections.items()]
        meta = {
            "format": FORMAT,
            **self.to_dict(),
            "selections": [{"task": i, "template": name, **s.metadata()} for i, name, s in cells],
        }
        arrays = {
            "indices": self.indices,
            "rows": _joined([t.indices for t in self.tasks], np.int64),
            "gains": _joined([t.gains for t in self.tasks], np.float64),
            "selected": _joined([s.indices for _, _, s in cells], np.int64),
            "selected_gains": _joined([s.gains for _, _, s in cells], np.float64),
        }
        with replacing(path) as file:
            np.savez(file, metadata=np.array(json.dumps(meta)), **arrays)
        return path

    @classmethod
    def load(cls, path: str | Path) -> Mixture:
        """Read what save() wrote. ValueError for any other file."""
        try:
            with open(path, "rb") as handle, np.load(handle, allow_pickle=False) as file:
                meta = json.loads(str(file["metadata"]))
                held = {
                    name: file[name] for name in ("indices", "rows", "gains", "selected", "selected_gains")
                }
            if meta["format"] != FORMAT:
                raise ValueError("another format version")
            selections: list[dict] = [{} for _ in meta["tasks"]]
            at = 0
            for cell in meta["selections"]:
                part = slice(at, at + cell.pop("k"))
                owner, name, at = cell.pop("task"), cell.pop("template"), part.stop
                selections[owner][name] = Selection.restore(
                    cell, held["selected"][part], held["selected_gains"][part]
                )
            tasks, at = [], 0
            for record, found in zip(meta["tasks"], selections, strict=True):
                part = slice(at, at + record["budget"])
                at = part.stop
                templates = {t["template"]: t["budget"] for t in record.pop("templates")}
                rows = {"indices": held["rows"][part], "gains": held["gains"][part]}
                tasks.append(Task(**record, templates=templates, selections=found, **rows))
            names = ("n", "n_tasks_in_pool", "method", "options", "seconds", "versions")
            return cls(tasks, held["indices"], **{name: meta[name] for name in names})
        except FileNotFoundError:
            raise
        except (KeyError, ValueError, TypeError, IndexError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} is not a saved mixture ({error})") from error


def _joined(parts: list[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate([np.empty(0, dtype), *parts])
