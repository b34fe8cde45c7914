"""The greedy loop on a device, many picks between two looks of the host. See smartgpu.kernels.resident for a step.

What is picked, and each gain, is what maximize.lazy() picks from the same state: it is the specification.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from smartgpu.backends import cuda, cuda_tail
from smartgpu.constraints import Found, Goal
from smartgpu.kernels import linear, resident, sweeps, volume, walk

STEPS = 128  # between two looks, where steps are short
CHUNK = 8  # steps of one graph
DENSE_CHUNK = 4
OFTEN = 4  # a pick in so many steps is enough; with fewer, all bounds are made anew
GRID = 2.0**40  # as in objectives/log_det.py
NUMBERS = 1 << 22  # float64 numbers of a block

looks = 0  # how often this process has waited for a device to say what was picked


class Replay:
    """A step, recorded once and replayed as a CUDA graph; in Triton's interpreter it is called until all is done."""

    def __init__(self, step: Callable[[], None], search: resident.Search, chunk: int):
        self.step, self.search, self.device = step, search, search.device
        self.chunk = chunk if self.device.type == "cuda" else 1
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, steps: int) -> int:
        """Make at least so many steps; returns how many."""
        times = -(-steps // self.chunk)
        for _ in range(times):
            if self.device.type != "cuda":
                if self.search.head[1]:
                    break
                self.step()
            elif self.graph is None:  # launches compile and load what nothing may load while it is recorded
                for _ in range(self.chunk):
                    self.step()
                self.graph = self._record()
            else:
                self.graph.replay()
        return times * self.chunk

    def _record(self) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self.device):
            here, there = torch.cuda.current_stream(), torch.cuda.Stream()
            there.wait_stream(here)
            with torch.cuda.stream(there):
                graph.capture_begin(capture_error_mode="thread_local")
                try:
                    for _ in range(self.chunk):
                        self.step()
                finally:
                    graph.capture_end()
            here.wait_stream(there)
        return graph


class Loop:
    """Bounds on the gains of n candidates, and the picks of a `goal` made from them."""

    def __init__(self, n: int, device: torch.device, goal: Goal, **how):
        self.n, self.device, self.goal, self.weight = n, device, goal, goal.weight
        self.before, self.after = (None if a is None else self._put(a) for a in (goal.before, goal.after))
        self.open = torch.from_numpy(goal.open).to(device)
        self.search = resident.Search(
            n,
            goal.k,
            device,
            low=goal.low,
            weight=goal.weight,
            before=self.before,
            after=self.after,
            cost=None if goal.cost is None else self._put(goal.cost),
            left=goal.left,
            rate=None if goal.rate is None else self._put(goal.rate),
            quotas=goal.quotas
            and (*(torch.from_numpy(a).to(device) for a in goal.quotas[:3]), goal.quotas[3]),
            reached=goal.reached,
            until=goal.until,
            **how,
        )
        self.t = self.evaluated = 0
        self.done = goal.k == 0
        self.head = torch.empty(6, dtype=torch.int64, pin_memory=device.type == "cuda")
        self.log = torch.empty((4 * STEPS, 2), dtype=torch.float64, pin_memory=device.type == "cuda")

    def _put(self, values: np.ndarray | torch.Tensor) -> torch.Tensor:
        if isinstance(values, np.ndarray):
            values = torch.from_numpy(np.ascontiguousarray(values, np.float64))
        return values.to(self.device)

    def bound(self, bounds: np.ndarray | torch.Tensor, fresh: bool) -> None:
        """Better bounds on all gains, (n,) float64, without weight and sums; fresh where they are the gains."""
        key = self._put(bounds) * self.weight
        if self.before is not None:
            key = self.before + key
        if self.after is not None:
            key = key + self.after
        known, stamp = self.search.key, self.search.stamp
        if self.t == 0:
            known.copy_(torch.where(self.open, key, -torch.inf))
        elif stamp is None and not fresh:
            torch.minimum(known, key, out=known)
        else:
            known.copy_(torch.where(known > -torch.inf, key, known))
        if stamp is not None:
            stamp.fill_(self.t if fresh else -1)

    def run(self, replay: Replay, steps: int) -> Found:
        """Make about so many steps, and look: the one place where the host waits."""
        global looks
        steps = replay(min(steps, len(self.log) - replay.chunk))
        end = min(self.t + steps, self.goal.k)
        self.head.copy_(self.search.head, non_blocking=True)
        self.log[: end - self.t].copy_(self.search.log[self.t : end], non_blocking=True)
        if self.device.type == "cuda":
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream(self.device))
            event.synchronize()
        looks += 1
        t, done, _, evaluated, _, _ = self.head.tolist()
        log = self.log[: t - self.t].numpy()
        found = Found(log[:, 0].astype(np.int64), log[:, 1].copy(), evaluated - self.evaluated, steps)
        self.t, self.done, self.evaluated = t, bool(done), evaluated
        return found

    def steps(self) -> int:
        """Enough for the picks that are left, and no more than a look may take."""
        left = self.goal.k - self.t
        return min(STEPS, left + left // 4 + 1)


class Excesses(Loop):
    """Facility location: dense work by tiles until survivors are stored, then by their lists."""

    def __init__(self, backend, level, weights, scale: float, goal: Goal):
        super().__init__(backend.n, backend.device, goal, gain=(scale,))
        self.backend, self.source, self.level, self.weights = backend, backend.source, level, weights
        self.scale = scale
        self.fresh = torch.zeros(self.search.slots, dtype=torch.int64, device=self.device)
        self.pairs = None
        self.dense = Replay(self._dense, self.search, DENSE_CHUNK)
        self.sparse: Replay | None = None
        self.tail: cuda_tail.Tail | None = None  # in the stead of steps, where CUDA kernels are there

    def advance(self, survivors, sweeps: float) -> Found:
        """A look's worth of picks, from tiles for about so many sweeps, or from survivors where they are stored."""
        if survivors is None:
            share = int(sweeps * self.n / self.search.slots)
            found = self.run(self.dense, max(1, min(self.steps(), share)))
            self.backend.pairs += self.backend.r * (found.evaluations + len(found.indices))
            return found
        pairs = (survivors.ptr, survivors.rows, survivors.q)
        if self.pairs is None or any(a is not b for a, b in zip(pairs, self.pairs, strict=True)):
            self.pairs, self.sparse, self.tail = pairs, None, None  # drops what holds the old ones
            self.sparse = Replay(self._sparse, self.search, CHUNK)
            self.tail = cuda_tail.open_tail(self, survivors)
        if self.tail is not None:
            found = self._by_tail()
            if found is not None:
                return found
        found = self.run(self.sparse, self.steps())
        if len(
            found.indices
        ):  # the next scan would raise it; whoever reads the level before must find it raised
            walk.sparse_raise(*pairs, self.level, int(found.indices[-1]))
        return found

    def _by_tail(self) -> Found | None:
        """Thousands of picks by one launch; None where it cannot be made, and steps go on."""
        global looks
        made: list[tuple[Found, bool]] = []
        if not cuda.started(self.device, lambda: made.append(self.tail.advance())):
            self.tail = None
            return None
        looks += 1
        found, self.done = made[0]
        self.t += len(found.indices)
        return found

    def _dense(self) -> None:
        search, source = self.search, self.source
        search.scan(self.fresh)
        sweeps.excess(
            source.x, source.y, self.level, source.form, weights=self.weights, cols=search.at, out=self.fresh,
            **source.squares,
        )  # fmt: skip
        search.decide(self.fresh, "excess")
        sweeps.raise_level(source.x, source.y, search.pick, self.level, source.form, **source.squares)

    def _sparse(self) -> None:
        self.search.scan(self.fresh, pairs=self.pairs, level=self.level)
        resident.fresh_excess(self.search, self.pairs, self.level, self.fresh, weights=self.weights)
        self.search.decide(self.fresh, "excess")


class Cuts(Loop):
    """Graph cut on a linear kind, with v = a (whole - 2 lam picked):

    gain_j = unit (scale x_j.v + b (r - 2 lam |S|) - lam own_j)
    """

    def __init__(self, features, goal: Goal, *, whole, picked, own, a, b, r, lam, unit, count,
                 slack, margin):  # fmt: skip
        x = features.x
        gain = (unit, features.scale, b, float(r), 2 * lam, lam, float(count))
        stale = {
            "slack": slack * goal.weight,
            "margin": margin * goal.weight,
            "stale": slack > 0 or margin > 0,
        }
        super().__init__(len(x), x.device, goal, gain=gain, **stale)
        self.x, self.scale, self.a, self.b, self.r = x, features.scale, a, b, r
        self.lam, self.unit, self.count = lam, unit, count
        self.whole, self.picked, self.own = self._put(whole), self._put(picked).clone(), self._put(own)
        self.v = a * (self.whole - 2 * lam * self.picked)
        self.slope = torch.tensor([a, 2 * lam], dtype=torch.float64, device=self.device)
        self.fresh = torch.zeros(self.search.slots, dtype=torch.float64, device=self.device)
        self.replay = Replay(self._step, self.search, CHUNK)

    def advance(self) -> Found:
        found = self.run(self.replay, self.steps())
        if OFTEN * len(found.indices) < found.steps and not self.done:
            constant = self.b * (self.r - 2 * self.lam * (self.count + self.t))
            along = linear.times(self.x, self.v).mul_(self.scale)
            self.bound(self.unit * (along + constant - self.lam * self.own), True)
        return found

    def sum(self) -> np.ndarray:
        """(d,) float64 sum of all picks."""
        return self.picked.cpu().numpy()

    def _step(self) -> None:
        self.search.scan()
        linear.times(self.x, self.v, self.search.at, out=self.fresh)
        self.search.decide(self.fresh, "cut", own=self.own)
        resident.commit_cut(self.search, self.x, self.whole, self.picked, self.v, self.slope)


class Volumes(Loop):
    """Log-determinant on a linear kind: gain_j = log(lam + y_j' Q y_j).

    Steps are of two forms. A lazy one evaluates the best bounds; where so few of these lead to picks that renewing all
    residuals after each pick is cheaper, an eager one does that as well.
    """

    def __init__(self, span, goal: Goal, *, lam: float, q: np.ndarray, residuals: np.ndarray,
                 top: float, margin: float):  # fmt: skip
        x = span.x
        error = 4 * (len(q) + 8) * np.finfo(np.float64).eps * top  # of a fall
        gain = (lam, GRID, resident.ROUND, 0.0, error)
        super().__init__(len(x), x.device, goal, gain=gain, stale=True, margin=margin * goal.weight)
        self.lam, self.error = lam, error
        self.upper = self._put(residuals).clone()
        last = (
            None if span.last is None else torch.tensor([span.last], dtype=torch.float64, device=self.device)
        )
        self.volume = volume.Volume(x, span.factors, last, self._put(q).clone())
        self.parts = self.volume.parts(self.search.slots)
        self.lazy, self.eager = (Replay(s, self.search, CHUNK) for s in (self._step, self._eager))
        self.renewed = True  # bounds were, just before the next steps

    def advance(self) -> Found:
        found = self.run(self.lazy, self.steps())
        if OFTEN * len(found.indices) >= found.steps or self.done:
            self.renewed = False
            return found
        if not self.renewed:
            self._renew()
            self.renewed = True
            return found
        more = self.run(self.eager, self.steps())  # leaves bounds renewed
        return Found(
            np.concatenate([found.indices, more.indices]),
            np.concatenate([found.gains, more.gains]),
            found.evaluations + more.evaluations,
            found.steps + more.steps,
        )

    def inverse(self) -> np.ndarray:
        return self.volume.quad.cpu().numpy()

    def _renew(self) -> None:
        """Bounds on all residuals from Q: O(n d^2)."""
        v, n = self.volume, self.n
        step = max(1, NUMBERS // v.size)
        for i in range(0, n, step):
            y = v.x[i : i + step].to(torch.float64) * v.factors[i : i + step, None]
            if v.last is not None:
                y = torch.cat([y, v.last.expand(len(y), 1)], dim=1)
            self.upper[i : i + step] = ((y @ v.quad) * y).sum(dim=1)
        self.upper.add_(self.lam + self.error).clamp_(min=self.lam)
        self.bound(self.upper.log(), False)

    def _step(self) -> None:
        self.search.scan()
        self.volume.evaluate(self.search, self.parts)
        self.search.decide(self.parts, "log")
        self.volume.commit(self.search)

    def _eager(self) -> None:
        self._step()
        self.volume.lower_all(self.search, self.upper)
