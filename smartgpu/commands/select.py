"""smartgpu select, rank, plan and evaluate: read the pool, embed it, select, write into the output folder."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from smartgpu import api, evaluation, launch
from smartgpu.arrays import as_count
from smartgpu.checkpoint import fingerprint
from smartgpu.commands import baseline, other_rows, partition
from smartgpu.commands.fields import check_limits, cost_record, quality_objective, read_limits
from smartgpu.commands.folder import ARRAYS, Folder, check_outside
from smartgpu.commands.source import read_chosen, read_source
from smartgpu.config import Config
from smartgpu.io import Pool, output_path, write_rows
from smartgpu.options import EXACT, parse_bytes
from smartgpu.planning import Plan
from smartgpu.seconds import Seconds
from smartgpu.selection import Selection
from smartgpu.version import __version__

SCHEMA = 1  # of selection.json


def budgets(config: Config, n: int) -> tuple[int | None, list[int]]:
    """(k, the prefixes to write besides it) of a selection from n rows."""
    if config.sizes:
        if config.k is not None or config.coverage is not None or config.budget is not None:
            raise ValueError(
                "--sizes cannot be combined with -k, --coverage or --budget: it cuts several k out of one ranking"
            )
        if config.quota_field is not None:
            raise ValueError("--sizes cannot be combined with quotas: a prefix need not meet them")
        if config.polish:
            raise ValueError("--sizes cannot be combined with --polish, which improves a set of one size")
        if config.maximizer == "stochastic":
            raise ValueError(
                "--sizes needs an exact maximizer: a prefix of a stochastic selection is not one"
            )
        cuts = sorted({as_count(size, n, "--sizes") for size in config.sizes})
        return cuts[-1], cuts
    if config.k is None and config.coverage is None and config.budget is None:
        raise ValueError("-k is missing: give -k (rows or a share), --sizes, --coverage or --budget")
    return None if config.k is None else as_count(config.k, n), []


def check_room(n: int, k: int | None, given: np.ndarray, exclude: np.ndarray) -> None:
    """Refuse, before anything is embedded, rows both given and excluded, and more rows than are left."""
    both = np.intersect1d(given, exclude)
    if len(both):
        raise ValueError(f"row {both[0]} is in --given and in --exclude")
    room = n - len(given) - len(exclude)
    if room == 0 or (k or 0) > room:
        raise ValueError(
            f"k must be at most {room}, the rows left by --given and --exclude, got {k or 'all'}"
        )


# ---- the commands


@dataclass
class Done:
    """A finished run. x is None where the folder held it whole already."""

    selection: Selection
    manifest: dict[str, Any]
    pool: Pool
    x: np.ndarray | None


def dry_run(config: Config) -> dict[str, Any]:
    """Refuse what can be refused without the pool, by the same call on a pool of one row; the call's arguments."""
    baseline.check(config)
    partition.check(config)
    config.quality_options()
    check_limits(config)
    target = other_rows.check(config)
    objective = config.make_objective() if target is None else target
    call = {"objective": objective, "similarity": config.make_similarity(), **config.how()}
    if call["memory"] is not None:  # how much it must be depends on the pool
        parse_bytes(call["memory"])
    api.select(np.ones((1, 1), np.float32), 1, coverage=config.coverage, **{**call, "memory": None})
    return call


def run(config: Config, command: str, progress: bool) -> Done:
    """`smartgpu select` or `rank`. Raises ValueError or ImportError for bad input, OSError for failures."""
    seconds = Seconds()
    if config.out is None:
        raise ValueError("--out is missing: name the output folder")
    call = dry_run(config)
    if config.report:
        from smartgpu.commands import report

        report.check(config)
    if command == "select":
        budgets(config, 1 << 62)  # a bad k is refused before the pool is read
    with seconds("read"):
        source = read_source(config)
        pool = source.pool
        k, cuts = budgets(config, pool.n) if command == "select" else (None, [])
        partition.check_rows(config, pool.n)
        rows = {name: read_chosen(getattr(config, name), pool.n, name) for name in ("given", "exclude")}
        check_room(pool.n, k, **rows)
        included = read_chosen(config.include_rows, pool.n, "include_rows")
        limits, costs = read_limits(config, pool), cost_record(config, pool)
        names = _output_names(config, command, pool, cuts)
        spec = quality_objective(config, pool)
        call["objective"] = spec or call["objective"]
        quality = baseline.quality_of(config, pool) if spec is None else spec.quality
        beside = other_rows.read(config, source.x)
        record = {
            "command": command,
            "version": __version__,
            **config.record(command),
            "pool": {"rows": pool.n, "fingerprint": pool.fingerprint()},
            "embeddings": source.identity(config),
            "quality": None if quality is None else fingerprint(quality),
            **{name: fingerprint(chosen) if len(chosen) else None for name, chosen in rows.items()},
            "include_rows": fingerprint(included) if len(included) else None,
            "costs": costs and {name: value for name, value in costs.items() if name != "tokenizer"},
            **{name: rows.identity() for name, rows in beside.items()},
        }
        folder = Folder(config.out, record, config.overwrite)
    if folder.whole:
        if config.report:
            x = source.vectors(config, seconds, progress)
            report.after(config, folder.path, pool, x, progress, **rows)
        return Done(Selection.load(folder.path / ARRAYS), folder.held(), pool, None)
    with folder.working([path.name for path in names.values()]):
        x = source.vectors(config, seconds, progress)
        resumable = config.maximizer in EXACT and config.backend != "reference"
        elsewhere = other_rows.arguments(config, beside, x, rows, seconds, progress)
        call |= elsewhere
        call |= {"progress": progress, "plan": config.plan}
        call["checkpoint"] = folder.partial / "picks.npz" if resumable else None
        if config.baseline is not None:
            chosen = baseline.make(config, quality)
            selection = chosen(x, k, include=included, **limits, **elsewhere)
        elif config.partition is not None:
            selection = partition.select(config, x, k, call)
        elif command == "rank":
            selection = launch.call(api.rank, x, **call)
        else:
            how = {"coverage": config.coverage, "include": included, **limits, **call}
            selection = launch.call(api.select, x, k, **how)
        seconds.update(selection.seconds)
        files = _write(folder, pool, x, selection, names, weigh=command == "select", seconds=seconds)
        selection = dataclasses.replace(selection, seconds=seconds.rounded())
        selection.save(folder.partial / ARRAYS)
        manifest = {
            "schema": SCHEMA,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            **selection.metadata(),
            "files": files,
            "pool": {
                "source": pool.source,
                **record["pool"],
                "format": pool.format,
                "fields": list(pool.fields),
            },
            "embeddings": {**source.origin, "shape": list(x.shape), "dtype": str(x.dtype)},
            **{name: getattr(config, name) for name in (*rows, "quality")},  # where a report finds them
            "costs": costs,
            "run": folder.record,
        }
        folder.finish(manifest)
    if config.report:
        report.after(config, folder.path, pool, x, progress, **rows)
    return Done(selection, manifest, pool, x)


def _output_names(config: Config, command: str, pool: Pool, cuts: list[int]) -> dict[int | None, Path]:
    """cut (None: all) -> the file of its rows. Refuses the pool's own files and folder, and a missing library."""
    out = Path(config.out).expanduser()
    stem = "ranked" if command == "rank" else "selected"
    names = {cut: out / (stem if cut is None else f"{stem}-{cut}") for cut in cuts or [None]}
    paths = {cut: output_path(pool, name, config.format)[0] for cut, name in names.items()}
    if output_path(pool, names[cuts[0] if cuts else None], config.format)[1] == "hf":
        from smartgpu.io.tables import import_datasets

        import_datasets("--format hf")
    check_outside(config, pool)
    return paths


def _write(folder, pool, x, selection, names, *, weigh: bool, seconds: Seconds) -> list[dict[str, Any]]:
    """Each cut's rows into .partial, with rank, gain, weight and source_row; what selection.json says of them."""
    files = []
    for cut, path in names.items():
        part = selection if cut is None else selection.prefix(cut)
        extra: dict[str, np.ndarray] = {"rank": np.arange(part.k), "gain": part.gains}
        if weigh:
            with seconds("assign"):
                extra["weight"] = part.assign(x).weight
        extra["source_row"] = part.indices
        with seconds("write"):
            form = None if path.suffix else "hf"
            written = write_rows(pool, part.indices, extra, folder.partial / path.name, form)
        files.append({"file": written.name, "k": part.k, "value": part.value})
    return files


def plan(config: Config, progress: bool) -> Plan:
    """`smartgpu plan`: of select with these options; of rank where no number of rows is given."""
    call = dry_run(config)
    source = read_source(config)
    n = source.pool.n
    k = budgets(config, n)[0] if config.k is not None or config.sizes or config.coverage is not None else None
    rows = {name: read_chosen(getattr(config, name), n, name) for name in ("given", "exclude")}
    check_room(n, k, **rows)
    call["objective"] = quality_objective(config, source.pool) or call["objective"]
    beside = other_rows.read(config, source.x)
    x = source.vectors(config, Seconds(), progress)
    call |= other_rows.arguments(config, beside, x, rows, Seconds(), progress)
    return api.plan(x, k, coverage=config.coverage, **call)


def evaluate(config: Config, progress: bool) -> evaluation.Evaluation:
    """`smartgpu evaluate`: the rows of --chosen, scored on the pool."""
    if config.chosen is None:
        raise ValueError("--chosen is missing: name the rows to score")
    call = dry_run(config)
    source = read_source(config)
    rows = read_chosen(config.chosen, source.pool.n, "chosen")
    names = ("objective", "similarity", "backend", "threads", "memory", "precision")
    options = {name: call[name] for name in names}
    return evaluation.evaluate(source.vectors(config, Seconds(), progress), rows, **options)
