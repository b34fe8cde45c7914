"""The cost model of docs/scaling.md for facility location: pairs, messages and bytes by phase, beside what is counted.

python bench/model.py [--out FILE] [--quick] [--table FILE]

What greedy asks of its backend is the same for any number of processes. So one process, whose calls are counted, says
what W processes will do: the formulas stand in predicted(), and nowhere else. Counted are entries of tiles, messages
and bytes as ranks send them. On Alpaca (SMARTGPU_DATA), k = 5,000, two processes over gloo: about two minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

import smartgpu
from bench.cases import alpaca_path
from bench.machine import describe
from bench.run import append
from bench.scale import together
from smartgpu.backends import sharded
from smartgpu.backends.numpy import SAMPLE, NumpyBackend
from smartgpu.backends.survivors import STORE_ALL, Survivors
from smartgpu.ranks import CHUNK
from smartgpu.shares import share

# Messages besides what a backend asks for: names and hosts, errors, agreement; of select() then memory, and pairs in
# the end; of select_many() 2 a round; of select_partitioned() a checkpoint, and 2 a round.
AGREED, PREPARE, A_ROUND, PARTED = 10, 20, 2, 12
DENSE = ("excess", "keep", "accept", "level_values", "estimate_survivors", "survivors")
SPARSE = ("excess", "keep", "accept", "compact")
PHASES = ("prepare", "bounds", "sweeps", "columns", "survivors", "gathering", "tail")
PHASE = {"level_values": "bounds", "excess": "sweeps", "keep": "columns", "accept": "columns"}
PHASE |= {"estimate_survivors": "survivors", "survivors": "survivors"}


@dataclass(frozen=True)
class Cost:
    """Of W processes: pairs computed by all, messages that each takes part in, bytes that all give to them."""

    pairs: int = 0
    messages: int = 0
    bytes: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __sub__(self, other: Cost) -> Cost:
        return Cost(*(a - b for a, b in zip(astuple(self), astuple(other), strict=True)))


# -- the model ---------------------------------------------------------------------------------------------------------


def predicted(calls: list[tuple[str, int]], n: int, block: int, processes: int) -> dict[str, Cost]:
    """What W processes pay in each phase, for the calls that one process made.

    calls   (method, size) in order: the columns of a batch, the survivors that are there afterwards
    n       candidates, which are also the represented rows; block: rows of a tile
    """
    w, found, alone, behind, batches = processes, dict.fromkeys(PHASES, Cost()), processes == 1, True, 0

    def pay(phase: str, *costs: Cost) -> None:
        found[phase] = sum(costs, found[phase])

    def gather(size: int) -> bool:
        """Whether survivors are so few that all ranks get all: how many of each candidate, their rows, their values."""
        few = size <= min(sharded.GATHER * n, sharded.GATHERED)
        if few:
            parts = w * (-(-4 * n // CHUNK) + 2 * -(-4 * size // w // CHUNK))
            pay("gathering", Cost(0, parts, w * (4 * n * w + 8 * size)), *3 * [total(w, 8, w)])
        return few

    pay("prepare", Cost(0, PREPARE))
    for name, size in calls:
        if name == "excess":
            pay("sweeps", Cost(sweep(n, block, w)), total(n, 8, w))
        elif name in ("keep", "accept"):
            pay("columns", Cost(n * size if name == "keep" else 0), total(size, 8, w))
        elif name == "level_values":
            pay("bounds", total(n, 4, w))
        elif name == "estimate_survivors":
            pay("survivors", Cost(look(n, w)), total(w, 8, w))
        elif name == "survivors":
            pay("survivors", Cost(sweep(n, block, w) + look(n, w, STORE_ALL)), total(1, 8, w), total(w, 8, w))
            alone = alone or gather(size)
        elif not alone:
            of = {"tail excess": n, "tail compact": w}.get(name, size)
            pay("tail", total(of, 8, w))
            alone = name == "tail compact" and gather(size)
        else:
            if behind:  # the levels of all rows, once
                pay("bounds", total(n, 4, w))
                behind = False
            batches += name == "tail keep"
            if name == "tail keep" and batches % sharded.MEET == 0:
                pay("tail", total(w, 8, w))
    return found if w > 1 else {phase: Cost(cost.pairs) for phase, cost in found.items()}


def total(numbers: int, width: int, processes: int) -> Cost:
    """A sum over the ranks of so many numbers of so many bytes, and the tag that goes with them."""
    return Cost(0, 1, processes * width * (numbers + 1))


def sweep(n: int, block: int, processes: int) -> int:
    """Pairs of a sweep: tiles of two blocks of one process's rows serve both their sides. About (1 - 1 / 2W) n^2."""
    out = 0
    for rows in shares(n, processes):
        r = rows.stop - rows.start
        sizes = np.diff([*range(0, r, block), r])
        whole = rows.start % block == 0 and (rows.stop % block == 0 or rows.stop == n)
        out += r * n - (r * r - int((sizes**2).sum())) // 2 * whole
    return out


def look(n: int, processes: int, least: int = 0) -> int:
    """Pairs of a look at how many survivors there are: some rows of each process that has more pairs than `least`."""
    sizes = [rows.stop - rows.start for rows in shares(n, processes)]
    return sum(n * min(r, SAMPLE) for r in sizes if n * r > least)


def shares(n: int, processes: int) -> list[slice]:
    return [share(n, rank, processes) for rank in range(processes)]


# -- what is counted ---------------------------------------------------------------------------------------------------


@dataclass
class Meter:
    """What facility location asks of its backend while this is open: the calls in order, and what each phase paid."""

    calls: list[tuple[str, int]] = field(default_factory=list)
    paid: dict[str, Cost] = field(default_factory=lambda: dict.fromkeys(PHASES, Cost()))
    block: int = 0
    _tiles: list[int] = field(default_factory=list)  # threads append to it
    _inside: list[Cost] = field(default_factory=list)  # what calls inside of those that are open have paid

    @contextlib.contextmanager
    def open(self) -> Iterator[Meter]:
        tile, keep = NumpyBackend._quantised, NumpyBackend.keep

        def one_tile(backend, source, rows, count, panel, width, m):
            self._tiles.append(count * m)
            return tile(backend, source, rows, count, panel, width, m)

        def one_batch(backend, level, cols, *more):
            self._tiles.append(backend.r * len(cols))
            return keep(backend, level, cols, *more)

        with contextlib.ExitStack() as held:

            def replace(kind: type, name: str, by: Callable[..., Any]) -> None:
                held.enter_context(patch.object(kind, name, by))

            replace(NumpyBackend, "_quantised", one_tile)
            replace(NumpyBackend, "keep", one_batch)
            for kind, names, more in (
                (NumpyBackend, DENSE, ""),
                (sharded.Sharded, DENSE, ""),
                (Survivors, SPARSE, "tail "),
                (sharded.ShardedSparse, SPARSE, "tail "),
                (sharded.ShardedSparse, ("_gather",), ""),
            ):
                for name in names:
                    replace(kind, name, self._counted(getattr(kind, name), more + name))
            yield self

    def _counted(self, work: Callable[..., Any], name: str) -> Callable[..., Any]:
        phase = "gathering" if name == "_gather" else PHASE.get(name, "tail")

        @functools.wraps(work)
        def call(owner, *args, **kwargs):
            ranks = getattr(owner, "ranks", None)
            if ranks is None and self._inside:  # a process's own part of what all of them do
                return work(owner, *args, **kwargs)
            self.block = getattr(owner, "block_size", self.block)
            begin = self._so_far(ranks)
            self._inside.append(Cost())
            try:
                found = work(owner, *args, **kwargs)
            finally:
                inside = self._inside.pop()
            took = self._so_far(ranks) - begin
            self.paid[phase] += took - inside
            if self._inside:
                self._inside[-1] += took
            if name != "_gather":
                self.calls.append((name, _size(name, args, owner, found)))
            return found

        return call

    def _so_far(self, ranks: Any) -> Cost:
        return Cost(sum(self._tiles), *((ranks.messages, ranks.bytes) if ranks is not None else (0, 0)))


def _size(name: str, args: tuple, owner: Any, found: Any) -> int:
    if name.endswith("keep"):
        return len(args[1])
    if name.endswith("accept"):
        return len(args[0].excess)
    if name == "tail compact":
        return len(owner)
    return len(found) if name == "survivors" and found is not None else 0


def measured(runs: list[dict[str, Any]]) -> dict[str, Cost]:
    """By phase, of all processes, from what counted() gave on each."""
    out = {phase: sum((Cost(*run["paid"][phase]) for run in runs), Cost()) for phase in PHASES}
    out = {phase: Cost(c.pairs, c.messages // len(runs), c.bytes) for phase, c in out.items()}
    if len(runs) > 1:
        rest = sum(out.values(), Cost())
        whole = Cost(0, runs[0]["messages"], sum(run["bytes"] for run in runs))
        out["prepare"] += Cost(0, whole.messages - rest.messages, whole.bytes - rest.bytes)
    return out


def counted(x: np.ndarray, k: int, group: str | None, **how: Any) -> dict[str, Any]:
    """A selection by facility location, and what a Meter says of it, as JSON values."""
    with Meter().open() as meter:
        got = smartgpu.select(x, k, backend="numpy", process_group=group, **how)
    paid = {phase: astuple(cost) for phase, cost in meter.paid.items()}
    said = got.together or {"messages": 0, "bytes": 0}
    more = {"indices": got.indices.tolist(), "sweeps": got.sweeps, "block": meter.block, "calls": meter.calls}
    return {"paid": paid, "messages": said["messages"], "bytes": said["bytes"], **more}


# -- the command -------------------------------------------------------------------------------------------------------


def on_alpaca(n: int, k: int, threads: int, memory: str, group: str | None) -> dict[str, Any]:
    return counted(np.load(alpaca_path())[:n], k, group, threads=threads, memory=memory)


def rows(quick: bool) -> Iterator[dict[str, Any]]:
    n, k = (10_000, 300) if quick else (52_002, 5000)
    (one,) = together(1, on_alpaca, n, k, 2, "3GB", None)
    for size in (1, 2):
        runs = [one] if size == 1 else together(2, on_alpaca, n, k, 1, "1.5GB", "world")
        assert all(run["indices"] == one["indices"] for run in runs)
        said, seen = predicted(one["calls"], n, one["block"], size), measured(runs)
        for phase in PHASES:
            both = {"predicted": astuple(said[phase]), "counted": astuple(seen[phase])}
            yield {"what": "model", "processes": size, "n": n, "k": k, "phase": phase, **both}


def table(path: Path) -> str:
    """What docs/scaling.md shows of these rows, the latest of each kind."""
    found = [json.loads(line) for line in path.read_text().splitlines()]
    last = {(row["processes"], row["phase"]): row for row in found if not row["quick"]}
    lines = ["| phase | sweeps, W = 1 | W = 2 | messages | MB |", "| --- | --- | --- | --- | --- |"]

    def cell(form: str, one: float, other: float) -> str:
        return form.format(one) if not one and not other else f"{form.format(one)} ({form.format(other)})"

    for phase in PHASES:
        one, two = last[1, phase], last[2, phase]
        every, pairs = one["n"] ** 2, [(row["predicted"][0], row["counted"][0]) for row in (one, two)]
        cells = [cell("{:.3f}", p / every, c / every) for p, c in pairs]
        cells.append(cell("{:,.0f}", two["predicted"][1], two["counted"][1]))
        cells.append(cell("{:.3f}", two["predicted"][2] / 1e6, two["counted"][2] / 1e6))
        lines.append(f"| {phase} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--table", type=Path, help="print the page's table of these rows, and count nothing")
    args = parser.parse_args()
    if args.table is not None:
        print(table(args.table))
        return 0
    for found in rows(args.quick):
        row = {
            **found,
            "quick": args.quick,
            **describe(),
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        print(json.dumps(found), flush=True)
        if args.out is not None:
            append(args.out, row)
    return 0


if __name__ == "__main__":
    sys.exit(main())
