"""One selection, from its arguments to its result: what every entry point that selects ends in."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from smartgpu import polish, reference
from smartgpu.arrays import as_count
from smartgpu.backends import resolve
from smartgpu.backends.gpu import FAILURES, DeviceLostError
from smartgpu.checkpoint import Checkpoint, differences, fingerprint
from smartgpu.constraints import Constraint, Purse, Quotas, Tree, as_budget, as_costs, as_quotas
from smartgpu.constraints.exchange import Exchange
from smartgpu.job import Budget, Job
from smartgpu.maximize import Picker, take_turns
from smartgpu.near import Barred, RowSets, bar
from smartgpu.objectives import Ground, State, swaps
from smartgpu.options import EXACT, Options
from smartgpu.planning import make_plan
from smartgpu.ranks import Ranks, join
from smartgpu.seconds import Seconds
from smartgpu.selection import Selection
from smartgpu.similarity import Matrix
from smartgpu.version import __version__
from smartgpu.workers import cpu_count, one_thread

log = logging.getLogger("smartgpu")


@dataclass(frozen=True)
class Wanted:
    """What is asked for besides the objective: how much, and which rows may or must be there. As select() takes it."""

    k: Any = None
    coverage: Any = None
    budget: Any = None
    cost: Any = None
    quotas: Any = None
    given: Any = None
    include: Any = None
    exclude: Any = None


def attempt(check: Callable[[Options], Call], options: Options) -> Selection:
    """Run the call that `check` makes of options; once more by the fallback, if one is given and a device fails."""
    if options.process_group is not None:
        return _attempt_together(check, options)
    try:
        return check(options).run()
    except FAILURES as error:
        if options.fallback is None:
            raise
        log.warning("%s. Backend %r takes over, from the start", error, options.fallback)
    # out of the handler, whose traceback holds what was on the device
    return check(replace(options, backend=options.fallback, memory=None, precision="auto")).run(options)


def _attempt_together(check: Callable[[Options], Call], options: Options) -> Selection:
    """The same on every process of a group. What one refuses, or was given otherwise than the first, all refuse."""
    ranks = join(options)
    if options.threads is None:
        options = replace(options, threads=max(1, cpu_count() // ranks.beside))
    call = ranks.all_of(lambda: check(options))
    if ranks.size == 1:
        return call.run()
    ranks.agree(call.record, differences)
    with ranks.running():
        return call.among(ranks).run()


def select_checked(
    make: Callable[[Options], Job], k: int, options: Options, share: int | None = None, **limits: Any
) -> Selection:
    """select() on checked arguments, which `make` gives for options: k is a number of rows, 1 to n.

    share: the bytes that it may take where others run beside it; more only if it cannot do with less.
    limits: fields of Call, checked as well.
    """
    nothing = np.empty(0, np.int64)
    limits = {"given": nothing, "include": nothing, "exclude": nothing} | limits

    def check(how: Options) -> Call:
        seconds = Seconds()
        with seconds("prepare"):
            job = make(how).sized(k)
            memory = job.budget(k + len(limits["given"])) if job.planned else None
            if memory is not None and share is not None:
                memory = replace(memory, memory=max(share, memory.cost.least))
        return Call(job, k, memory=memory, seconds=seconds, **limits)

    return attempt(check, options)


@dataclass
class Call:
    """The checked arguments of one selection."""

    job: Job
    count: int  # rows to choose, at most
    given: np.ndarray
    include: np.ndarray
    exclude: np.ndarray
    coverage: float | None = None
    money: float | None = None  # in the units of cost
    cost: np.ndarray | None = None
    quotas: tuple[Quotas, ...] = ()
    share_of: int | None = None  # the k that shares are shares of, where one was given
    barred: tuple[Barred, ...] = ()  # excluded for what they are close to
    memory: Budget | None = None  # where what it allocates is known beforehand
    seconds: Seconds | None = None
    ground: Ground | None = None  # where calls on one pool share it
    ranks: Ranks | None = None  # the processes that choose together
    look: Callable[[State], None] | None = None  # at the state after the last pick

    def __post_init__(self) -> None:
        self.seconds = Seconds() if self.seconds is None else self.seconds

    @classmethod
    def check(cls, X: Any, objective: Any, similarity: Any, options: Options, wanted: Wanted) -> Call:
        """Raises ValueError, TypeError as select() does."""
        seconds = Seconds()
        with seconds("prepare"):
            job = Job.check(X, objective, similarity, options)
            n = job.n
            if wanted.coverage is not None:
                job.objective.need_monotone(job.x, job.kind)
                if options.polish is not None:
                    raise ValueError(
                        "polish keeps the number of rows that is asked for: it is not for coverage"
                    )
            rows, elsewhere, near = RowSets.of(n, wanted.given, wanted.include, wanted.exclude)
            job = job.beside(elsewhere, [each.rows for each in near])
            barred = tuple(bar(job, each) for each in near)
            rows = rows.without(barred)
            room = n - len(rows.given) - len(rows.exclude)
            if room == 0:
                raise ValueError(f"nothing is left to choose: given and exclude hold all {n} rows")
            count = room if wanted.k is None else as_count(wanted.k, n)
            if count > room:
                raise ValueError(f"k must be at most {room}, the rows left by given and exclude, got {count}")
            if len(rows.include) > count:
                raise ValueError(f"include names {len(rows.include)} rows, but k is {count}")
            money, cost = _money(wanted, n)
            call = cls(
                job,
                count,
                rows.given,
                rows.include,
                rows.exclude,
                coverage=wanted.coverage,
                money=money,
                cost=cost,
                quotas=as_quotas(wanted.quotas),
                barred=barred,
                share_of=None if wanted.k is None else count,
                seconds=seconds,
            )
            call.check_limits()
            call.job = job = job.sized(call.count)
            if job.planned:
                call.memory = job.budget(call.count + len(call.given), wanted.coverage is not None)
        return call

    def constraint(self, by_cost: bool = True) -> Constraint:
        return Constraint(
            self.job.n,
            self.count,
            self.closed,
            purse=self._purse(),
            tree=self._tree(),
            by_cost=by_cost,
            reach=self.share_of is not None and self.money is None,
        )

    @property
    def closed(self) -> np.ndarray:
        """Rows that may not be chosen."""
        return np.concatenate([self.given, self.exclude])

    def _purse(self) -> Purse | None:
        return None if self.money is None else Purse(self.cost, self.money)

    def _tree(self) -> Tree | None:
        return Tree(self.quotas, self.job.n, self.share_of) if self.quotas else None

    def check_limits(self) -> None:
        """Refuse limits that no rows meet, and rows to include that they bar; lower the count to what can be paid."""
        if self.money is not None:
            if len(self.quotas) > 1:
                raise ValueError(
                    "a budget and quotas of several fields cannot be combined: keep the quotas of one"
                )
            open_ = np.ones(self.job.n, bool)
            open_[self.closed] = False
            sums = np.cumsum(np.sort(self.cost[open_]))
            self.count = min(self.count, int(np.searchsorted(sums, self.money * (1 + 1e-9), side="right")))
            if self.count == 0:
                raise ValueError(
                    f"budget must be at least {sums[0]}, the cost of the cheapest row, got {self.money}"
                )
        constraint = self.constraint()
        for j in self.include.tolist():
            if not constraint.open[j]:
                raise ValueError(
                    f"row {j} cannot be included: budget, quotas or the rows included before it bar it"
                )
            constraint.take(j)

    def run(self, instead: Options | None = None) -> Selection:
        """instead: the options of a call that failed, whose checkpoint this one replaces."""
        job, seconds, options = self.job, self.seconds, self.job.options
        if options.plan and (self.ranks is None or self.ranks.rank == 0):
            text = make_plan(job, self.count, self.given, self.exclude, self.coverage)
            print(text, file=sys.stderr, flush=True)
        if resolve(options.backend) == "reference":
            if options.checkpoint is not None:
                raise ValueError("checkpoint is not for backend 'reference'")
            return self._by_reference()
        with seconds("prepare"):
            kept = None if options.checkpoint is None else self._checkpoint(instead)
            ground = self.ground or job.ground(self.memory, self.ranks)
            compiled, swept = ground.engine.compiling(), ground.sweeps
        states, runs = self._runs(ground, kept)
        best = max(runs, key=lambda run: run.reached)  # the first of equals
        if self.look is not None:
            with job.failures(self.memory), one_thread():
                self.look(states[runs.index(best)])
        order = "gain / cost" if self.money is not None and best is runs[0] else "gain"
        said: dict[str, Any] = {}
        if options.polish is not None:
            best, said = self._polish(ground, states, best)
            runs.append(best)
        compiled = ground.engine.compiling() - compiled
        if compiled:
            seconds["compile"] = compiled
        run, gains = best.run, np.array(best.run.gains, np.float64)
        return Selection(
            indices=np.array(run.indices, np.int64),
            gains=gains,
            value=best.start + float(gains.sum()),
            base_value=best.start,
            evaluations=sum(each.run.evaluations for each in runs),
            sweeps=ground.sweeps - swept,
            backend=resolve(options.backend),
            dtype="/".join(ground.dtypes) or "float64",
            exact=options.maximizer in EXACT,
            seconds=dict(seconds),
            limits=self.limits(run.indices, order),
            together=None if self.ranks is None else self.ranks.said(),
            **said,
            **job.described(),
        )

    def among(self, ranks: Ranks) -> Call:
        """This call as one that several processes make together. ValueError for what they cannot."""
        options = self.job.options
        for name in ("fallback", "polish"):
            if getattr(options, name) is not None:
                raise ValueError(f"{name} is for one process, and process_group has {ranks.size}")
        if resolve(options.backend) == "reference":
            raise ValueError(f"backend 'reference' is for one process, and process_group has {ranks.size}")
        rows = self.job.x.shape[0]
        if rows < ranks.size:
            raise ValueError(
                f"process_group must have no more processes than X has rows, {rows}: got {ranks.size}"
            )
        memory = self.memory
        if memory is not None:  # what one process may take, the same on all
            own = memory.memory
            if options.memory is None and not memory.shape.footprint.place:
                own = max(own // ranks.beside, memory.cost.least)
            self.memory = self.job.together(memory, int(ranks.each(own, "memory").min()), ranks)
        self.ranks = ranks
        return self

    def _before(self, kept: Checkpoint | None) -> tuple[np.ndarray, np.ndarray]:
        """The picks that are there already, and their gains. Of several processes the first reads them."""
        if kept is None:
            return np.empty(0, np.int64), np.empty(0)
        return kept.load() if self.ranks is None else self.ranks.first(kept.load)

    def _polish(self, ground: Ground, states: list[State], best: Picker) -> tuple[Picker, dict[str, Any]]:
        """The better set that swaps lead to from greedy's, ranked; and what a Selection says of it."""
        job, options, start = self.job, self.job.options, time.perf_counter()
        open_ = np.ones(job.n, bool)
        open_[self.closed] = False
        rows = np.sort(np.array(best.run.indices, np.int64))
        limits = Exchange(open_, rows, np.isin(rows, self.include), self._purse(), self._tree())
        by_group = None if not self.quotas else replace(self, money=None, cost=None).constraint
        most = polish.most_of(self.count, open_, self.money, self.cost, by_group)
        with job.failures(self.memory), one_thread():
            del states[1:]
            polish.release(states[0])
            low = polish.floor(states[0], self.given)
            found = polish.improve(states[0], low, limits, best.reached, options.polish, most)
            again = polish.rank(states[0], low, found.rows, self.include, best.start, options.tie_break)
        again.run.evaluations += found.evaluations
        _check_inputs(ground, None)
        took = self.seconds["polish"] = time.perf_counter() - start
        said = {"before": best.reached, "after": again.reached, "swaps": found.swaps, "passes": found.passes}
        return again, {
            "polished": {**said, "optimum": found.optimum, "seconds": took},
            "bound": max(found.bound, again.reached),
        }

    def _runs(self, ground: Ground, kept: Checkpoint | None) -> tuple[list[State], list[Picker]]:
        """Greedy's picks; with a budget those by gain / cost, then those by gain, with the work shared that can be."""
        job, seconds, options = self.job, self.seconds, self.job.options
        with seconds("prepare"):
            before = self._before(kept)
            if self.ranks is not None and self.ranks.rank > 0:
                kept = None
            with job.failures(self.memory, fresh=self.ground is None):
                first = job.objective.bind(ground)
                if options.polish is not None:
                    swaps.keep_survivors(first)
                if len(self.given):
                    first.add(self.given)
                base = first.value() if len(self.given) or job.outside is not None else 0.0
                until = None if self.coverage is None else float(self.coverage) * first.total()
                second = pair = None
                if self.money is not None:
                    shared = first.twin() if options.maximizer == "lazy" else None
                    second, pair = shared or (job.objective.bind(ground), None)
                    if pair is None and len(self.given):
                        second.add(self.given)
                first.add(before[0])
        with seconds("select"), one_thread(), _progress(options, self.count) as tell:
            picker = Picker(self.constraint(), base, until, tell)
            for j, gain in zip(*before, strict=True):
                picker.take(int(j), float(gain))
            picker.checkpoint = kept
            runs = [(first, picker)]
            if second is not None:
                runs.append((second, Picker(self.constraint(by_cost=False), base, until, None)))
            try:
                with job.failures(self.memory):
                    for state, each in runs:
                        self._include(state, each)
                    take_turns(runs, pair, options.search)
            except DeviceLostError as error:
                raise DeviceLostError(
                    f"{error}; {_go_on(kept, len(picker.run.indices))}"
                ) from error.__cause__
            finally:
                if kept is not None:
                    kept.save(picker.run.indices, picker.run.gains, force=True)
            _check_inputs(ground, kept)
        return [state for state, _ in runs], [each for _, each in runs]

    def _include(self, state: State, picker: Picker) -> None:
        """The rows that must be there, those that are not."""
        for j in self.include[len(picker.run.indices) :].tolist():
            gain = float(state.evaluate(np.array([j])).gains[0])
            state.add(np.array([j]))
            picker.take(j, gain)

    def limits(self, indices: Sequence[int], order: str | None) -> dict[str, Any] | None:
        """What was kept to besides k, as JSON values."""
        out: dict[str, Any] = {}
        if self.money is not None:
            out |= {"budget": self.money, "cost": float(self.cost[list(indices)].sum()), "greedy_by": order}
        if self.quotas:
            out["quotas"] = [quotas.describe() for quotas in self.quotas]
        if len(self.include):
            out["include"] = self.include.tolist()
        if self.barred:
            out["near"] = [barred.describe() for barred in self.barred]
        if self.job.outside is not None:
            rows = self.job.outside
            out["given"] = {"rows": len(rows), "sha256": fingerprint(rows)}
        return out or None

    def _checkpoint(self, instead: Options | None) -> Checkpoint:
        options = self.job.options
        check_checkpoint(options)
        record = {**self.data, "options": _recorded(options)}
        return Checkpoint(options.checkpoint, record, instead and {**record, "options": _recorded(instead)})

    def record(self) -> dict[str, Any]:
        """What processes must have in common: everything that the picks depend on, and how they are searched for."""
        aside = ("threads", "progress")
        how = {name: value for name, value in self.job.options.to_dict().items() if name not in aside}
        barred = [fingerprint(each.rows) for each in self.barred]
        versions = self.job.described()["versions"]
        checkpoint = self.job.options.checkpoint
        more = {"barred": barred, "versions": versions, "checkpoint": checkpoint and Path(checkpoint).name}
        return {**self.data, "options": how | {"backend": resolve(how["backend"])}, **more}

    @cached_property
    def data(self) -> dict[str, Any]:
        """What a result is of, by content."""
        job, x = self.job, self.job.x
        parts = [x] if not isinstance(x, Matrix) else [x.dense] if x.dense is not None else list(x.csc)
        record = {
            "version": __version__,
            "data": [fingerprint(part) for part in parts],
            "k": self.count,
            "coverage": self.coverage,
            "given": fingerprint(self.given),
            "exclude": fingerprint(np.sort(self.exclude)),
            "objective": job.objective.describe(),
            "similarity": job.kind.describe(),
        }
        if self.money is not None:
            record |= {"budget": self.money, "cost": fingerprint(self.cost)}
        if self.quotas:
            codes = [fingerprint(quotas.labels(job.n).codes) for quotas in self.quotas]
            record["quotas"] = [{**q.describe(), "rows": c} for q, c in zip(self.quotas, codes, strict=True)]
        if len(self.include):
            record["include"] = fingerprint(self.include)
        if job.outside is not None:
            record["outside"] = fingerprint(job.outside)
        return record

    def _by_reference(self) -> Selection:
        """The same call on the float64 oracle; the dense matrices of a large pool are refused."""
        job, options = self.job, self.job.options
        if options.maximizer not in EXACT:
            raise ValueError(
                f"backend 'reference' is naive greedy: maximizer {options.maximizer!r} is not for it"
            )
        x = job.dense()

        def greedy(by_cost: bool) -> reference.Greedy:
            return reference.greedy(
                x,
                self.count,
                job.objective,
                job.kind,
                given=self.given,
                first=self.include,
                constraint=self.constraint(by_cost),
                tie_break=options.tie_break,
                until=until,
                outside=job.outside,
            )

        with self.seconds("select"):
            until = None
            if self.coverage is not None:
                problem = reference.Problem(x, job.kind, job.objective, job.outside)
                until = self.coverage * problem.value(range(job.n))
            run, order = greedy(True), "gain / cost" if self.money is not None else "gain"
            if self.money is not None:
                other = greedy(False)
                if other.value > run.value:
                    run, order = other, "gain"
        return Selection(
            indices=run.indices,
            gains=run.gains,
            value=run.value,
            base_value=run.base_value,
            evaluations=job.n * len(run.indices),
            sweeps=1.0,
            backend="reference",
            dtype="float64",
            seconds=dict(self.seconds),
            limits=self.limits(run.indices, order),
            **job.described(),
        )


def _money(wanted: Wanted, n: int) -> tuple[float | None, np.ndarray | None]:
    if (wanted.budget is None) != (wanted.cost is None):
        raise ValueError("budget and cost go together: a budget, and what each row takes of it")
    if wanted.budget is None:
        return None, None
    return as_budget(wanted.budget), as_costs(wanted.cost, n)


def _recorded(options: Options) -> dict[str, Any]:
    names = ("maximizer", "tie_break", "precision")
    return {"backend": resolve(options.backend), **{name: getattr(options, name) for name in names}}


def _go_on(kept: Checkpoint | None, picks: int) -> str:
    """What can be done when a device failed."""
    if kept is None:
        return "start a new process (with checkpoint=, the same call would go on from the picks so far)"
    return f"{picks} picks are kept in {kept.path}: in a new process the same call goes on from them"


def check_checkpoint(options: Options) -> None:
    """ValueError where a checkpoint is asked for that cannot be kept."""
    if options.checkpoint is None:
        return
    if options.maximizer not in EXACT:
        raise ValueError(
            "checkpoint is for exact maximizers: the samples of 'stochastic' and the thresholds of 'threshold' "
            "are not kept"
        )
    if Path(options.checkpoint).suffix != ".npz":
        raise ValueError(f"checkpoint must be a file name that ends in .npz, got {str(options.checkpoint)!r}")


def _check_inputs(ground: Ground, kept: Checkpoint | None) -> None:
    """ValueError where the caller changed data that were used in place: no checkpoint of such picks stays."""
    try:
        ground.check_inputs()
    except ValueError:
        if kept is not None:
            kept.path.unlink(missing_ok=True)
        raise


@contextmanager
def _progress(options: Options, k: int) -> Iterator[Callable | None]:
    """What is told of every pick: the caller's report, and a bar on stderr where asked for."""
    report = options.report
    if not options.progress:
        yield report
        return
    from tqdm.auto import tqdm

    with tqdm(total=k, desc="picks", unit="row", mininterval=0.5) as bar:

        def tell(j: int, gain: float) -> None:
            bar.update()
            if bar.n % 64 == 1:
                bar.set_postfix(gain=f"{gain:.4g}", refresh=False)
            if report is not None:
                report(j, gain)

        yield tell
