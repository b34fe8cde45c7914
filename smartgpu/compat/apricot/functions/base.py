"""What the selectors share: arguments, fit, transform, partial_fit, and the attributes they leave."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from smartgpu import compat
from smartgpu.arrays import as_matrix, as_rows
from smartgpu.compat.apricot import _pools
from smartgpu.compat.apricot._stream import Stream
from smartgpu.compat.apricot.optimizers import BaseOptimizer, check_random_state, make_optimizer
from smartgpu.constraints.knapsack import as_budget, as_costs
from smartgpu.heuristics import Pool
from smartgpu.objectives import Objective
from smartgpu.options import make_options
from smartgpu.similarity import Cosine, Similarity

KWDS: dict[str, Any] = {}  # a default, never written to


class BaseSelection:
    """Chooses n_samples rows; the arguments of apricot's selectors, and what fit() leaves.

    n_samples          rows to choose; with sample_cost the budget, which may be more than n and need not be whole
    initial_subset     rows chosen already, not in `ranking`: indices or a mask; for functions of features also (m, d)
                       rows that need not be in X
    optimizer          a name of optimizers.OPTIMIZERS, or an object
    optimizer_kwds     options of an optimizer given by name
    reservoir          (r, d) rows on which partial_fit measures a function of similarities; None: rows of the stream
    max_reservoir_size how many of these, where none are given
    random_state       None, an int or a RandomState, for what draws
    verbose            a bar on stderr
    n_jobs             accepted; all cores that the process may use are used, see smartgpu.compat.options

    ranking (k,) int64 rows in pick order, gains (k,) float64, subset (k, d) the rows (empty for a precomputed matrix),
    mask (n,) int8, 1 for rows that are chosen or initial, idxs: the others.
    """

    graph = False  # a function of similarities between rows
    tabular = True  # a function of what rows hold
    custom = False  # a function of the user's own, which may not be submodular
    metric = "ignore"
    n_neighbors: Any = None

    def __init__(
        self,
        n_samples,
        initial_subset=None,
        optimizer="lazy",
        optimizer_kwds=KWDS,
        reservoir=None,
        max_reservoir_size=1000,
        n_jobs=1,
        random_state=None,
        verbose=False,
    ):
        if isinstance(n_samples, (bool, str)) or not np.isscalar(n_samples):
            raise TypeError(f"n_samples must be a number, got {n_samples!r}")
        if not n_samples > 0 or not np.isfinite(n_samples):
            raise ValueError(f"n_samples must be positive, got {n_samples}")
        if initial_subset is not None and not isinstance(initial_subset, (list, np.ndarray)):
            raise ValueError(
                f"initial_subset must be a list, an array or None, got {type(initial_subset).__name__}"
            )
        if verbose not in (True, False):
            raise ValueError(f"verbose must be True or False, got {verbose!r}")
        self.n_samples = n_samples
        self.random_state = check_random_state(random_state)
        self.optimizer_kwds = dict(optimizer_kwds or {})
        make_optimizer("optimizer", optimizer, self.random_state, self.optimizer_kwds)
        self.optimizer = optimizer
        if isinstance(optimizer, BaseOptimizer):
            optimizer.function = self
        self.n_jobs = n_jobs
        self.verbose = verbose
        self.initial_subset = None if initial_subset is None else np.array(initial_subset)
        self.reservoir = None if reservoir is None else as_matrix(reservoir, "reservoir")
        if reservoir is None and (
            not isinstance(max_reservoir_size, (int, np.integer)) or max_reservoir_size < 1
        ):
            raise ValueError(
                f"max_reservoir_size must be an integer of 1 at least, got {max_reservoir_size!r}"
            )
        self.max_reservoir_size = int(max_reservoir_size) if reservoir is None else len(self.reservoir)
        self.idxs = self.mask = self.sparse = None
        self._ranking = self._gains = self._subset = None
        self._stream: Stream | None = None
        self._stale = False

    # -- what a selector says of itself ----------------------------------------------------------------------------

    def _objective(self, table: Any, before: np.ndarray | None) -> tuple[float, Objective]:
        """(weight, objective): f is the weight times it.

        table (n, p) is what rows hold, where that is not the pool itself; before: initial rows from elsewhere.
        """
        raise NotImplementedError

    def _data(self, X: Any) -> tuple[Any, Similarity, Any]:
        """(data, kind, table): what select() takes, and what _objective() does. Functions of features have any kind."""
        return X, Cosine(), None

    # -- fit -------------------------------------------------------------------------------------------------------

    def fit(self, X, y=None, sample_weight=None, sample_cost=None):
        """Choose from X (n, d), or (n, n) for metric "precomputed"; y is not looked at.

        sample_cost (n,) > 0: what each row takes of the budget n_samples; the largest gain / cost that can be paid
        comes next. sample_weight changes nothing, and a warning says so. Returns self. Raises ValueError, TypeError
        that name the argument, before any work.
        """
        x = self._checked(X)
        self._warn(sample_weight)
        n = x.shape[0]
        given, limits = self._limits(n, sample_cost)
        optimizer = make_optimizer("optimizer", self.optimizer, self.random_state, self.optimizer_kwds)
        data, kind, table = self._data(x)
        before = given if given is not None and given.ndim == 2 else None
        weight, objective = self._objective(table, before)
        total = limits.get("budget", limits["k"])
        with self._bar(total, limits.get("cost")) as report:
            options = replace(make_options(compat.options), report=report)
            pool = Pool(data, objective, kind)
            held = None if self.custom and before is not None else given
            run = optimizer.run(pool, options=options, custom=self.custom, given=held, **limits)
        return self._record(x, run.indices, weight * np.array(run.gains, np.float64), given)

    def transform(self, X, y=None, sample_weight=None):
        """The chosen rows of X, in pick order, with those of y and of sample_weight where given."""
        if self.ranking is None:
            raise ValueError("nothing was chosen yet: call fit() first")
        rows = _take(X, self.ranking)
        if sample_weight is not None:
            return rows, None if y is None else _take(y, self.ranking), _take(sample_weight, self.ranking)
        return rows if y is None else (rows, _take(y, self.ranking))

    def fit_transform(self, X, y=None, sample_weight=None, sample_cost=None):
        """fit(), then transform()."""
        self.fit(X, y=y, sample_weight=sample_weight, sample_cost=sample_cost)
        return self.transform(X, y=y, sample_weight=sample_weight)

    def partial_fit(self, X, y=None, sample_weight=None, sample_cost=None):
        """The next rows of a stream: n_samples of all rows so far, by sieve-streaming, in memory that does not grow.

        `ranking` counts rows over the whole stream; `subset` holds the rows themselves. What is maximised, and what is
        held, stands in docs/from_apricot.md. Returns self. ValueError for another width than before, and for what a
        stream cannot have: sample_cost, initial_subset, a precomputed matrix.
        """
        x = self._checked(X)
        self._warn(sample_weight)
        if sample_cost is not None:
            raise ValueError("sample_cost is not for partial_fit: sieve-streaming counts rows")
        stream = self._stream or Stream(self)
        stream.update(_pools.dense(x))
        self._stream, self._stale = stream, True
        return self

    def _settle(self) -> None:
        """What the stream came to, when it is asked for."""
        if self._stale:
            self._ranking, self._gains, self._subset = self._stream.result()
            self._stale = False

    @property
    def ranking(self):
        self._settle()
        return self._ranking

    @property
    def gains(self):
        self._settle()
        return self._gains

    @property
    def subset(self):
        self._settle()
        return self._subset

    @property
    def n_seen_(self) -> int:
        """Rows of the stream so far."""
        return 0 if self._stream is None else self._stream.seen

    def _checked(self, X: Any) -> Any:
        x = X.tocsr() if _pools.is_sparse(X) else as_matrix(X)
        self.sparse = _pools.is_sparse(x)
        return x

    def _limits(self, n: int, sample_cost: Any) -> tuple[Any, dict[str, Any]]:
        """(given, what select() takes besides): rows chosen already, and how much is to be chosen."""
        given, held = self.initial_subset, 0
        if given is not None and given.ndim == 1:
            given = as_rows(given, n, "initial_subset")
            held = len(given)
        elif given is not None and (self.graph or given.ndim != 2):
            allowed = "indices or a mask" + ("" if self.graph else ", or a matrix of rows")
            raise ValueError(f"initial_subset must be {allowed}, got shape {given.shape}")
        if sample_cost is not None:
            cost = as_costs(sample_cost, n, "sample_cost")
            return given, {"k": None, "cost": cost, "budget": as_budget(self.n_samples, "n_samples")}
        k = self.n_samples
        if k != int(k):
            raise ValueError(f"n_samples must be an integer without sample_cost, got {k}")
        if k > n - held:
            less = f" less the {held} of initial_subset" if held else ""
            raise ValueError(f"n_samples must be at most the number of rows, {n}{less}, got {k}")
        return given, {"k": int(k)}

    def _warn(self, sample_weight: Any) -> None:
        if sample_weight is not None:
            warnings.warn(
                "sample_weight does not change what is chosen (nor does it in apricot): it is only passed through by "
                "transform(). smartgpu.FacilityLocation(weights=...) weighs rows",
                UserWarning,
                stacklevel=3,
            )

    @contextmanager
    def _bar(self, total: float, cost: np.ndarray | None) -> Iterator[Callable[[int, float], None] | None]:
        if not self.verbose:
            yield None
            return
        from tqdm.auto import tqdm

        with tqdm(total=total, unit_scale=True) as self.pbar:
            yield lambda j, gain: self.pbar.update(1 if cost is None else round(float(cost[j]), 1))

    def _record(self, x: Any, ranking: Any, gains: np.ndarray, given: np.ndarray | None) -> BaseSelection:
        self._stream, self._stale = None, False
        self._ranking, self._gains = np.array(ranking, np.int64), np.asarray(gains, np.float64)
        self.mask = np.zeros(x.shape[0], np.int8)
        self.mask[self._ranking] = 1
        if given is not None and given.ndim == 1:
            self.mask[given] = 1
        self.idxs = np.flatnonzero(self.mask == 0)
        rows = x[self._ranking if self.metric != "precomputed" else self._ranking[:0]]
        self._subset = np.asarray(rows.toarray() if self.sparse else rows, np.float64)
        return self


class BaseGraphSelection(BaseSelection):
    """A function of similarities: metric and n_neighbors say which; see smartgpu.compat.apricot._pools.

    metric       "euclidean", "cosine", "corr" or "correlation", any other of scikit-learn's, or "precomputed"
    n_neighbors  an int or a KNeighborsTransformer: only the nearest are similar at all; not for "precomputed"
    """

    graph, tabular = True, False

    def __init__(
        self,
        n_samples,
        metric="euclidean",
        initial_subset=None,
        optimizer="two-stage",
        optimizer_kwds=KWDS,
        n_neighbors=None,
        reservoir=None,
        max_reservoir_size=1000,
        n_jobs=1,
        random_state=None,
        verbose=False,
    ):
        super().__init__(
            n_samples,
            initial_subset,
            optimizer,
            optimizer_kwds,
            reservoir,
            max_reservoir_size,
            n_jobs,
            random_state,
            verbose,
        )
        self.metric = _pools.as_metric(metric)
        self.n_neighbors = n_neighbors

    def _data(self, X):
        data, kind = _pools.similarity(X, self.metric, self.n_neighbors)
        return data, kind, None


def _take(values: Any, rows: np.ndarray) -> Any:
    if hasattr(values, "iloc"):
        return values.iloc[rows]
    return np.asarray(values)[rows] if isinstance(values, (list, tuple)) else values[rows]
