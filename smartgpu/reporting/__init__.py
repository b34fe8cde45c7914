"""report: what was chosen, how good it is and what it leaves out, as one page and its numbers."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from smartgpu.arrays import as_rows
from smartgpu.backends import resolve
from smartgpu.constraints import Quotas
from smartgpu.labels import as_labels
from smartgpu.mixture import Mixture
from smartgpu.objectives import FacilityLocation
from smartgpu.options import make_options
from smartgpu.reporting import place
from smartgpu.reporting.limits import budget_of, quota_counts
from smartgpu.reporting.measuring import DRAWS, LABEL, SAMPLE, Choice, Known, measure
from smartgpu.reporting.projection import PROJECTIONS
from smartgpu.reporting.quality import Rated, number
from smartgpu.reporting.words import shown
from smartgpu.selecting import as_quotas
from smartgpu.selection import Selection
from smartgpu.similarity import KINDS, choose
from smartgpu.version import __version__

SCHEMA = 1  # of report.json
MOST_TASKS = 1_000  # listed one by one
INSTALL = "pip install 'smartgpu[report]'"


def report(
    result: str | Path | Selection | Mixture,
    X: Any = None,
    out: str | Path | None = None,
    *,
    text: Sequence[Any] | None = None,
    tasks: Any = None,
    quality: Any = None,
    alpha_path: Any = None,
    quotas: Any = None,
    given: Any = None,
    exclude: Any = None,
    draws: int = DRAWS,
    sample: int | None = SAMPLE,
    projection: str = "auto",
    seed: int = 0,
    **options: Any,
) -> Path:
    """Write report.html, one page that needs no network, and report.json, its numbers. Returns the page's path.

    result   a Selection or Mixture, with the X that it was made from; or the output folder of `smartgpu select`,
             `rank` or `mix`, whose pool is read again
    out      the folder to write to; default: the folder that `result` is
    text     (n,) anything, one per row: what the page shows of it
    tasks    (n,) ints or strings, a label per row
    quality  (n,) numbers, missing ones None or NaN: how good the chosen rows are beside random ones, the best and all
    alpha_path  with `quality`, what smartgpu.alpha_path() gave for it, to be drawn beside these rows
    given, exclude, quotas  as select() had them
    draws    random sets of as many rows to compare with
    sample   rows on which coverage is measured where there are more; None is all
    projection  of the map: "pca", "umap" (needs umap-learn), or "auto", which is UMAP where that is installed
    options  backend, threads, memory, precision, progress, as for select()

    With m measured rows O(m d (n + k (draws + 2))). Two calls write the same but for report.created. Raises ValueError
    and TypeError for arguments that do not fit, ImportError where plotly or jinja2 is missing, before any work.
    """
    check_installed()
    how = {"draws": draws, "sample": sample, "projection": projection, "seed": seed, **options}
    check_how(**how)
    if isinstance(result, str | Path):
        from smartgpu.commands import report

        named = {"X": X, "text": text, "tasks": tasks, "given": given, "exclude": exclude}
        named |= {"quality": quality, "alpha_path": alpha_path, "quotas": quotas}
        for name, value in named.items():
            if value is not None:
                raise ValueError(f"{name} cannot be given with a folder, which says where its pool lies")
        return report.write(Path(result), Path(result if out is None else out), how)
    if not isinstance(result, Selection | Mixture):
        raise TypeError(f"result must be a Selection, a Mixture or a folder, got {type(result).__name__}")
    if X is None or out is None:
        raise ValueError(
            f"{'X' if X is None else 'out'} is missing: give the pool and the folder to write to"
        )
    task = None if tasks is None else as_labels(tasks, result.n, "tasks", missing=True)
    if alpha_path is not None and quality is None:
        raise ValueError("alpha_path goes with quality, which it weighs")
    path = alpha_path and alpha_path.to_dict()
    rated = None if quality is None else Rated.of(result, quality, path)
    quotas = as_quotas(quotas)
    rows = {"given": given, "exclude": exclude}
    rows = {name: as_rows([] if v is None else v, result.n, name) for name, v in rows.items()}
    known = Known(_lookup("text", text, result.n), task, rated)
    return write(result, X, Path(out), known, how, **rows, quotas=quotas)


def check_installed() -> None:
    """ImportError, with the pip line, where the page's libraries are missing."""
    for name in ("jinja2", "plotly"):
        if importlib.util.find_spec(name) is None:
            raise ImportError(f"a report needs {name}, which is not installed: {INSTALL}")


def check_how(draws: int, projection: str, sample: int | None, seed: int = 0, **options: Any) -> None:
    """ValueError or TypeError for options that measure() cannot take."""
    choose(projection, PROJECTIONS, "projection")
    if resolve(make_options(options).backend) == "reference":
        raise ValueError("backend 'reference' cannot measure a report: it holds n x n matrices; use 'numpy'")
    for name, value, least in (("draws", draws, 1), ("sample", sample, 1), ("seed", seed, 0)):
        if name == "sample" and value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            raise TypeError(f"{name} must be an integer, got {value!r}")
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")


def write(
    result: Selection | Mixture,
    X: Any,
    out: Path,
    known: Known,
    how: dict[str, Any],
    *,
    given: np.ndarray | None = None,
    exclude: np.ndarray | None = None,
    marks: Sequence[int] = (),
    quotas: Sequence[Quotas] = (),
    share_of: int | None = None,
    sweep: list[dict[str, Any]] | None = None,
    run: dict[str, Any] | None = None,
    what: str | None = None,
) -> Path:
    """Measure and write. Raises as report().

    marks  sizes of prefixes that were written as files      sweep  the rows of a sweep over numbers of tasks
    quotas that were kept to, and share_of, the k that their shares are of; None is the rows of `result` where no budget
           says how many they are
    run    what the card says of how `result` was made       what   "ranking" for a selection of all rows
    """
    from smartgpu.reporting import page

    place.check_place(out)
    numbers = {
        "schema": SCHEMA,
        "report": {"version": __version__, "created": datetime.now(UTC).isoformat(timespec="seconds")},
        **describe(result),
        **({"what": what} if what else {}),
    }
    empty = np.empty(0, np.int64)
    sets = {"given": empty if given is None else given, "exclude": empty if exclude is None else exclude}
    if isinstance(result, Mixture):
        choice = _of_mixture(result, **sets)
        kind = dict(result.options["similarity"])
        kind = KINDS[kind.pop("name")](**kind)
        groups = known.task.codes if known.task else None
    else:
        choice, kind, groups = _of_selection(result, **sets, marks=marks), result._spec, None
    budget = budget_of(result)
    k = len(choice.rows) if share_of is None and budget is None else share_of
    numbers["budget"], numbers["quotas"] = budget, quota_counts(quotas, choice.rows, result.n, k)
    numbers |= measure(X, kind, choice, known, **how, groups=groups)
    numbers["tasks"] = task_shares(result, choice, known)
    numbers["sweep"] = sweep
    numbers["run"] = run or _run_card(result)
    return place.write(out, page.render(numbers), numbers)


def describe(result: Selection | Mixture) -> dict[str, Any]:
    """What was made, and how, in a few words."""
    if isinstance(result, Mixture):
        return {
            "what": "mixture",
            "objective": result.options["row_objective"],
            "similarity": result.options["similarity"],
            "method": result.method,
            "limits": None,
            "polished": None,
            "gap": None,
            "prefixes": True,
            "n_tasks": len(result.tasks),
            "n_tasks_in_pool": result.n_tasks_in_pool,
        }
    return {
        "what": "selection",
        "objective": result.objective,
        "similarity": result.similarity,
        "method": result.method,
        "value": result.value,
        "limits": result.limits,
        "polished": result.polished,
        "gap": result.gap,
        **({} if result.approximation is None else {"approximation": result.approximation}),
        "prefixes": not result.limits and result.options.get("maximizer") != "stochastic",
    }


def _of_selection(selection: Selection, given, exclude, marks) -> Choice:
    covered = None
    if selection.objective == FacilityLocation().describe() and not selection.sampled:
        covered = selection.base_value + np.concatenate([[0.0], np.cumsum(selection.gains)])
    return Choice(selection.n, selection.indices, selection.gains, covered, given, exclude, marks)


def _of_mixture(mixture: Mixture, given, exclude) -> Choice:
    """Rows by their relative rank in their task: a prefix is a smaller mixture of the same shares."""
    tasks = [task for task in mixture.tasks if task.budget]
    rank = np.concatenate([(np.arange(task.budget) + 0.5) / task.budget for task in tasks])
    rows = np.concatenate([task.indices for task in tasks])
    return Choice(mixture.n, rows[np.argsort(rank, kind="stable")], None, None, given, exclude)


def task_shares(result: Selection | Mixture, choice: Choice, known: Known) -> dict[str, Any] | None:
    """Each task's share of the pool and of the chosen rows, and their mean quality where that is known; of a mixture
    its budgets too. None without tasks.

    A mixture's tasks are in the order of selection, a selection's by rows in the pool. What is left out of the first
    MOST_TASKS is in `others`.
    """
    labels = known.task
    if isinstance(result, Mixture):
        names = [t.task for t in result.tasks[:MOST_TASKS]]
        rows = [
            {
                "task": shown(t.task, LABEL)["text"],
                "size": t.size,
                # of a budget of tokens its share in rows of the mean cost
                "budget": t.budget_before_caps if t.cost is None else round(t.weight * len(result)),
                "chosen": t.budget,
                "capped": t.capped,
                "gain": t.gain,
                **({} if t.cost is None else {"allowance": t.allowance, "cost": t.cost}),
            }
            for t in result.tasks[:MOST_TASKS]
        ]
        count = result.n_tasks_in_pool
    elif labels is not None:
        size, chosen = labels.sizes(), np.bincount(labels.codes[choice.rows], minlength=len(labels.names))
        largest = np.argsort(-size, kind="stable")[:MOST_TASKS].tolist()
        names = [labels.names[t] for t in largest]
        rows = [
            {"task": shown(labels.names[t], LABEL)["text"], "size": int(size[t]), "chosen": int(chosen[t])}
            for t in largest
        ]
        count = len(labels.names)
    else:
        return None
    if known.rated is not None and labels is not None:
        place = {name: code for code, name in enumerate(labels.names)}
        groups = [place.get(name) for name in names]
        means = [
            known.rated.means(labels.codes, len(labels.names)),
            known.rated.take(choice.rows).means(labels.codes[choice.rows], len(labels.names)),
        ]
        for row, group in zip(rows, groups, strict=True):
            pool, those = (None if group is None else number(mean[group]) for mean in means)
            row["quality"] = {"pool": pool, "chosen": those}
    n, k = result.n, len(choice.rows)
    others = {
        "tasks": count - len(rows),
        "size": n - sum(row["size"] for row in rows),
        "chosen": k - sum(row["chosen"] for row in rows),
    }
    rows = [{**row, "pool_share": row["size"] / n, "share": row["chosen"] / k} for row in rows]
    return {"tasks": rows, "others": others}


def _run_card(result: Selection | Mixture) -> dict[str, Any]:
    nothing = dict.fromkeys(("pool", "embeddings", "run"))
    if isinstance(result, Mixture):
        names = ("method", "options", "seconds", "versions")
        return {name: getattr(result, name) for name in names} | nothing
    metadata = result.metadata()
    names = (
        "objective",
        "limits",
        "similarity",
        "options",
        "backend",
        "dtype",
        "exact",
        "evaluations",
        "sweeps",
        "seconds",
        "versions",
    )
    return {name: metadata[name] for name in names} | nothing


def _lookup(name: str, values: Sequence[Any] | None, n: int) -> Any:
    if values is None:
        return None
    sized = hasattr(values, "__len__") and hasattr(values, "__getitem__") and not isinstance(values, str)
    if not sized or len(values) != n:
        got = f"{len(values)} values" if sized else type(values).__name__
        raise ValueError(f"{name} must hold one value for each of the {n} rows of X, got {got}")
    return lambda rows: [values[row] for row in rows.tolist()]
