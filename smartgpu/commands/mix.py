"""smartgpu mix: read the pool and its tasks, choose tasks and rows, write them for people and trainers."""

from __future__ import annotations

import dataclasses
import shlex
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from smartgpu import exports, launch
from smartgpu.arrays import as_matrix
from smartgpu.checkpoint import fingerprint
from smartgpu.commands import other_rows
from smartgpu.commands.fields import (
    as_names,
    as_table,
    check_limits,
    cost_record,
    quality_objective,
    read_labels,
    read_limits,
)
from smartgpu.commands.finished import Finished
from smartgpu.commands.folder import MIXTURE, Folder, check_outside
from smartgpu.commands.source import Source, read_chosen, read_source
from smartgpu.config import Config
from smartgpu.exports.messages import Layout, find_layout
from smartgpu.exports.pools import Rows, check_rows
from smartgpu.io import FORMATS, Pool, output_path, read_embeddings, write_rows
from smartgpu.io.names import safe_names
from smartgpu.labels import Label, Labels
from smartgpu.mixture import Mixture, mix
from smartgpu.mixture.mixer import Mixer
from smartgpu.options import parse_bytes
from smartgpu.seconds import Seconds
from smartgpu.version import __version__

SCHEMA = 1  # of mixture.json
FORMS = ("parquet", "jsonl", "json", "csv")  # of the rows


@dataclass
class Done:
    """A finished run. `fresh` is False where the folder held it already."""

    mixture: Mixture
    manifest: dict[str, Any]
    fresh: bool


@dataclass
class Input:
    """What a run reads, checked: all but the embeddings that have to be made yet."""

    source: Source
    tasks: Labels
    templates: Labels | None
    call: dict[str, Any]  # keyword arguments of mix() and sweep()
    record: dict[str, Any]  # what the result depends on
    rows: dict[str, np.ndarray]  # given, exclude
    beside: dict[str, other_rows.Beside]
    costs: dict[str, Any] | None  # how they are counted

    def arguments(self) -> tuple[list[Label], list[Label | None] | None]:
        """A label per row: tasks, templates."""
        tasks, templates = (
            part and [part.names[code] for code in part.codes.tolist()]
            for part in (self.tasks, self.templates)
        )
        return tasks, templates

    def arguments_with(
        self, config: Config, x: np.ndarray, seconds: Seconds, progress: bool
    ) -> dict[str, Any]:
        """The call's keyword arguments, with rows that may be of other files."""
        sets = other_rows.arguments(config, self.beside, x, self.rows, seconds, progress)
        return {**self.call, **sets, "progress": progress}


# ---- what a run reads


def read(config: Config) -> Input:
    """Read the pool, its labels and the files of tasks. Refuses what needs no embeddings to be refused."""
    call = dry_run(config)
    source = read_source(config)
    pool = source.pool
    tasks = read_labels(pool, config.task_field, "--task-field")
    templates = None
    if config.template_field is not None:
        templates = read_labels(pool, config.template_field, "--template-field", missing=True)
    call |= {name: as_names(getattr(config, name), tasks) for name in ("include", "drop")}
    for name in ("min_rows", "max_rows"):
        call[name] = as_table(name, getattr(config, name), tasks, of="task", shares=False)
    call |= read_limits(config, pool)
    rows = {name: read_chosen(getattr(config, name), pool.n, name) for name in ("given", "exclude")}
    call["include_rows"] = read_chosen(config.include_rows, pool.n, "include_rows")
    beside = other_rows.read(config, source.x)
    costs = cost_record(config, pool)
    call |= {key: read_task_matrix(path) for key, path in task_files(config).items()}
    spec = quality_objective(config, pool, "row_")
    call["row_objective"] = spec or call["row_objective"]
    record = {
        "command": "mix",
        "version": __version__,
        **config.record("mix"),
        "pool": {"rows": pool.n, "fingerprint": pool.fingerprint()},
        "tasks": {key: fingerprint(call[key]) for key in task_files(config)},
        "quality": None if spec is None else fingerprint(spec.quality),
        **{
            name: fingerprint(chosen) if len(chosen) else None
            for name, chosen in {**rows, "include_rows": call["include_rows"]}.items()
        },
        "costs": costs and {name: value for name, value in costs.items() if name != "tokenizer"},
        **{name: some.identity() for name, some in beside.items()},
    }
    return Input(source, tasks, templates, call, record, rows, beside, costs)


def dry_run(config: Config) -> dict[str, Any]:
    """Refuse what can be refused without the pool, by the same call on one row; the call's arguments."""
    names = ("method", "temperature", "order", "full_order", "task_similarity")
    if config.task_matrix is not None and (
        config.task_embeddings is not None or config.task_similarity != "cosine"
    ):
        raise ValueError(
            "--task-matrix cannot be combined with --task-embeddings or --task-similarity: it is the similarity itself"
        )
    config.quality_options("row_")
    check_limits(config)
    other_rows.check(config)
    at_random = config.row_objective == "random" and config.row_lam is None
    call = {
        **{name: getattr(config, name) for name in names},
        "task_objective": config.make_objective("task_"),
        "row_objective": "random" if at_random else config.make_objective("row_"),
        "similarity": config.make_similarity(),
        **config.how(),
    }
    if call["memory"] is not None:  # how much it must be depends on the pool
        parse_bytes(call["memory"])
    one = np.ones((1, 1), np.float32)
    matrix = {"task_similarity": one} if config.task_matrix or config.similarity == "precomputed" else {}
    size: dict[str, Any] = {"n_rows": config.n_rows and 1}
    if config.budget is not None:
        size |= {"budget": config.budget, "cost": [config.budget if config.budget > 0 else 1]}
    elif config.n_rows is None:
        raise ValueError("n_rows is missing: give --n-rows (rows, or a share of the pool's) or --budget")
    mix(one, ["task"], 1, **size, **{**call, **matrix, "memory": None})
    return call


def task_files(config: Config) -> dict[str, str]:
    """Argument of mix() -> the file that holds it."""
    files = {"task_embeddings": config.task_embeddings, "task_similarity": config.task_matrix}
    return {key: path for key, path in files.items() if path is not None}


def read_task_matrix(path: str) -> np.ndarray:
    return as_matrix(read_embeddings(path), f"the matrix in {path}")


def check_sizes(config: Config, given: Input, sizes: list[int | None]) -> None:
    """Refuse, before anything is embedded, numbers of tasks and rows, and limits, that no mixture can have."""
    tasks, templates = given.arguments()
    x = given.source.x
    if config.similarity != "precomputed":
        x = np.ones((len(tasks), 1), np.float32)
    call = {name: value for name, value in given.call.items() if name != "budget"}
    mixer = Mixer(x, tasks, templates, **{**call, **given.rows, "memory": None})
    for size in sizes:
        mixer.check_size(size, config.n_rows, config.budget)


# ---- rows for trainers


def export_root(config: Config) -> str:
    """Where a trainer will find OUT/exports."""
    return f"{config.export_root or Path(config.out).expanduser().resolve()}/exports"


def check_export(config: Config, pool: Pool) -> Layout:
    """How rows become conversations. Refuses a pool of which some rows do not, before any long work."""
    exports.check_root(export_root(config))
    layout = find_layout(pool.fields, config.text, config.response_field)
    check_rows(pool, layout)
    return layout


def write_exports(
    config: Config,
    names: list[str],
    mixture: Mixture,
    pool: Pool,
    out: Path,
    files: Mapping[Label, str],
    layout: Layout,
) -> dict[str, Any]:
    """The exports, in the folder `exports` of `out`, and what mixture.json says of them.

    files  task -> the file of its rows, by whose name the task's export is named
    """
    root = export_root(config)
    taken = [(Path(files[t.task]).stem, t.indices) for t in mixture.tasks if t.budget]
    tasks = {name: Rows(pool, indices, layout.fields) for name, indices in taken}
    how = {"merged": Rows(pool, mixture.indices, layout.fields), "ordered": config.order == "rank"}
    written = exports.export(names, tasks, out / "exports", **how, root=root, layout=layout)
    return {
        name: {
            "read_by": exports.TRAINERS[name].reads.format(root=shlex.quote(root)),
            "files": [f"exports/{f}" for f in files],
        }
        for name, files in written.items()
    }


# ---- the commands


def run(config: Config, progress: bool) -> Done:
    """`smartgpu mix`. Raises ValueError or ImportError for bad input, OSError for failures."""
    seconds = Seconds()
    if config.out is None:
        raise ValueError("--out is missing: name the output folder")
    if config.report:
        from smartgpu.commands import report

        report.check(config)
    with seconds("read"):
        given = read(config)
        pool = given.source.pool
        check_sizes(config, given, [config.n_tasks])
        names, combined = output_names(config, pool, given.tasks)
        layout = check_export(config, pool) if config.export else None
        record = {**given.record, "embeddings": given.source.identity(config)}
        folder = Folder(config.out, record, config.overwrite, MIXTURE)
    if folder.whole:
        done = _held(config, folder, pool, names, layout)
        if config.report:
            x = given.source.vectors(config, seconds, progress)
            report.after(config, folder.path, pool, x, progress, **given.rows)
        return done
    with folder.working([combined, *names.values(), *_manifests(config.export or [])]):
        cache = str(folder.partial / "cache") if config.cache == "off" else config.cache
        x = given.source.vectors(dataclasses.replace(config, cache=cache), seconds, progress)
        tasks, templates = given.arguments()
        finished = Finished(folder.partial)
        how = given.arguments_with(config, x, seconds, progress)
        how |= {"report": finished.report, "done": finished.load()}
        try:
            mixture = launch.call(mix, x, tasks, config.n_tasks, config.n_rows, templates, **how)
        finally:
            finished.flush()
        seconds.update(mixture.seconds)
        with seconds("write"):
            files = _write(folder.partial, pool, mixture, names, combined)
        shutil.rmtree(folder.partial / "exports", ignore_errors=True)  # of a run that was stopped here
        exported = {}
        if layout is not None:
            with seconds("export"):
                exported = write_exports(config, config.export, mixture, pool, folder.partial, names, layout)
        mixture = dataclasses.replace(mixture, seconds=seconds.rounded())
        mixture.save(folder.partial / MIXTURE.arrays)
        manifest = _manifest(folder, given, mixture, names, files, exported, x)
        manifest |= {name: getattr(config, name) for name in given.rows}  # where a report finds them
        manifest["quality"] = config.quality  # where a report finds it
        folder.finish(manifest)
    if config.report:
        report.after(config, folder.path, pool, x, progress, **given.rows)
    return Done(mixture, manifest, True)


def output_names(config: Config, pool: Pool, tasks: Labels) -> tuple[dict[Label, str], str]:
    """(task -> the file of its rows, the file of all rows), relative to OUT. Refuses files and folders of the pool."""
    form = config.format or (pool.format if pool.format in FORMS else "parquet")
    if form not in FORMS:
        raise ValueError(f"--format of a mixture must be one of {', '.join(FORMS)}, got {form!r}")
    check_outside(config, pool)
    out = Path(config.out).expanduser()
    combined = output_path(pool, out / f"mixed{FORMATS[form]}", form)[0]
    ours = [(out / name).resolve() for name in ("tasks", "exports", ".partial")]
    inside = [file for file in pool.files if any(file.resolve().is_relative_to(path) for path in ours)]
    if inside:
        raise ValueError(f"--out {config.out} is where the pool lies ({inside[0]}): name another folder")
    safe = safe_names(str(task) for task in tasks.names)
    return {task: f"tasks/{safe[str(task)]}{FORMATS[form]}" for task in tasks.names}, combined.name


def _write(
    out: Path, pool: Pool, mixture: Mixture, names: Mapping[Label, str], combined: str
) -> list[dict[str, Any]]:
    """Rows of each task, and of all: with rank and gain in their task, and source_row."""
    (out / "tasks").mkdir(exist_ok=True)
    given = [task for task in mixture.tasks if task.budget]
    rows = np.concatenate([task.indices for task in given])
    gains = np.concatenate([task.gains for task in given])
    ranks = np.concatenate([np.arange(task.budget) for task in given])
    by_row = np.argsort(rows)
    order = by_row[np.searchsorted(rows, mixture.indices, sorter=by_row)]
    extra = {"rank": ranks[order], "gain": gains[order], "source_row": mixture.indices}
    write_rows(pool, mixture.indices, extra, out / combined)
    files = [{"file": combined, "rows": len(rows)}]
    for task in given:
        extra = {"rank": np.arange(task.budget), "gain": task.gains, "source_row": task.indices}
        write_rows(pool, task.indices, extra, out / names[task.task])
        files.append({"file": names[task.task], "rows": task.budget})
    return files


def _manifest(
    folder: Folder,
    given: Input,
    mixture: Mixture,
    names: Mapping[Label, str],
    files: list[dict[str, Any]],
    exported: dict[str, Any],
    x: np.ndarray,
) -> dict[str, Any]:
    pool, origin = given.source.pool, given.source.origin
    said = mixture.to_dict()
    for task in said["tasks"]:
        task["file"] = names[task["task"]] if task["budget"] else None
    return {
        "schema": SCHEMA,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        **said,
        "files": [*files, *_export_files(exported)],
        "exports": exported,
        "pool": {
            "source": pool.source,
            **folder.record["pool"],
            "format": pool.format,
            "fields": list(pool.fields),
        },
        "embeddings": {**origin, "shape": list(x.shape), "dtype": str(x.dtype)},
        "costs": given.costs,
        "run": folder.record,
    }


def _manifests(names: Iterable[str]) -> list[str]:
    """What exports write beside the data, relative to OUT."""
    return [f"exports/{file}" for name in names for file in exports.TRAINERS[name].files]


def _export_files(exported: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"file": f} for f in dict.fromkeys(f for export in exported.values() for f in export["files"])]


def _held(
    config: Config, folder: Folder, pool: Pool, files: Mapping[Label, str], layout: Layout | None
) -> Done:
    """The mixture that OUT holds; exports that it lacks are added."""
    mixture, manifest = Mixture.load(folder.path / MIXTURE.arrays), folder.held()
    before = manifest["exports"]
    names = list(dict.fromkeys([*before, *(config.export or ())]))
    if len(names) > len(before):
        layout = layout or check_export(config, pool)
        folder.check_free(_manifests(names))
        after = write_exports(config, names, mixture, pool, folder.path, files, layout)
        rows = [cut for cut in manifest["files"] if not cut["file"].startswith("exports/")]
        folder.replace_files(manifest | {"exports": after, "files": [*rows, *_export_files(after)]})
        manifest = folder.held()
    return Done(mixture, manifest, False)
