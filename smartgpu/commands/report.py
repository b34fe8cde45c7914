"""smartgpu report: the pool of an output folder read again and checked, and a report on what the folder holds."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from smartgpu import reporting
from smartgpu.arrays import as_count
from smartgpu.checkpoint import fingerprint
from smartgpu.commands.fields import QUOTAS, read_quality, read_quotas
from smartgpu.commands.folder import ALPHA_PATH, MIXTURE, PARTIAL, SELECTION, SWEEP
from smartgpu.commands.source import Source, read_chosen, read_source
from smartgpu.config import Config
from smartgpu.io import Pool, row_texts, text_fields
from smartgpu.labels import Labels, as_labels
from smartgpu.mixture import Mixture
from smartgpu.reporting import place
from smartgpu.reporting.measuring import Known
from smartgpu.reporting.quality import Rated
from smartgpu.seconds import Seconds
from smartgpu.selection import Selection

log = logging.getLogger("smartgpu")
RANKED = (
    0.1  # of a ranking, which holds all rows: the first share that a report is about, where none is named
)


@dataclass(frozen=True)
class Held:
    """What an output folder holds, whole."""

    folder: Path
    manifest: dict[str, Any]
    result: Selection | Mixture

    @property
    def run(self) -> dict[str, Any]:
        return self.manifest["run"]


def read_folder(folder: Path) -> Held:
    """What is in OUT. ValueError for a folder that is unfinished, of two runs, or not of smartgpu."""
    if not folder.exists():
        raise FileNotFoundError(f"no folder {str(folder)!r}")
    if not folder.is_dir():
        raise ValueError(f"OUT must be a folder of smartgpu select, rank or mix, got the file {folder}")
    if (folder / PARTIAL / "run.json").is_file():
        raise ValueError(
            f"{folder} holds an unfinished run: the command that made it goes on with it, then report"
        )
    kinds = [kind for kind in (SELECTION, MIXTURE) if (folder / kind.manifest).is_file()]
    if len(kinds) != 1:
        names = f"{SELECTION.manifest} {'and' if kinds else 'or'} {MIXTURE.manifest}"
        held = f"holds {names}: keep them in folders of their own" if kinds else f"holds no {names}"
        raise ValueError(f"{folder} {held}")
    (kind,) = kinds
    path = folder / kind.manifest
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        needed = {
            "pool": ("source", "fingerprint"),
            "embeddings": ("shape",),
            "run": ("command", "embeddings"),
        }
        for name, keys in needed.items():
            for key in keys:
                manifest[name][key]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not of smartgpu ({error!r})") from None
    arrays = folder / kind.arrays
    if not arrays.is_file():
        raise ValueError(f"{folder} lacks {kind.arrays} of its {kind.noun}: make it anew with --overwrite")
    result = (Mixture if kind is MIXTURE else Selection).load(arrays)
    said = result.to_dict() if kind is MIXTURE else result.metadata()
    told = {name: manifest.get(name) for name in ("n", "k", "n_rows", "value", "method") if name in said}
    if told != {name: said[name] for name in told}:
        raise ValueError(f"{path} and {kind.arrays} are not of one run: make it anew with --overwrite")
    return Held(folder, manifest, result)


def run(config: Config, progress: bool) -> Path:
    """`smartgpu report OUT`. Raises ValueError or ImportError for bad input, OSError for failures."""
    if config.out is None:
        raise ValueError("OUT is missing: name the output folder of smartgpu select, rank or mix")
    return write(Path(config.out), Path(config.out), _how(config, progress), config)


def _how(config: Config, progress: bool) -> dict[str, Any]:
    names = ("draws", "projection", "backend", "threads", "memory", "precision")
    sample = config.sample or None  # 0: all rows
    return {**{name: getattr(config, name) for name in names}, "sample": sample, "progress": progress}


def write(folder: Path, out: Path, how: dict[str, Any], config: Config | None = None) -> Path:
    """A report on a folder, whose pool is read again; it must be what it was. Returns the page's path."""
    folder, out = folder.expanduser(), out.expanduser()
    config = config or Config()
    reporting.check_installed()
    reporting.check_how(**how)
    held = read_folder(folder)
    place.check_place(out)
    again = _as_it_was(config, held)
    source = _read_again(again, held)
    rows = {name: _chosen_again(config, held, name, source.pool.n) for name in ("given", "exclude")}
    x = source.vectors(again, Seconds(), how.get("progress", False))
    return _write(config, held, out, source.pool, x, rows, how)


def after(
    config: Config, folder: Path, pool: Pool, x: np.ndarray, progress: bool, **rows: np.ndarray
) -> Path:
    """`--report`: on what a run has just written, from the pool and the embeddings that it has at hand."""
    whole = dataclasses.replace(config, k=None)  # its k is of the pool, and met
    path = _write(whole, read_folder(folder), folder, pool, x, rows, _how(config, progress))
    log.info("wrote %s", path)
    return path


def check(config: Config) -> None:
    """Before a run with `--report`: refuse what would make its report fail."""
    reporting.check_installed()
    reporting.check_how(**_how(config, False))
    place.check_place(Path(config.out).expanduser())


def _write(
    config: Config,
    held: Held,
    out: Path,
    pool: Pool,
    x: np.ndarray,
    rows: dict[str, np.ndarray],
    how: dict[str, Any],
) -> Path:
    result = held.result
    if isinstance(result, Selection):
        k = config.k
        if k is None and held.run["command"] == "rank":
            k = max(1, round(RANKED * result.k))
        if k is not None:
            result = _first(result, as_count(k, result.k, "-k"))
    elif config.k is not None:
        raise ValueError(
            "-k cannot be given for a mixture: it says which rows a smaller one would have itself"
        )
    files = held.manifest.get("files") or []
    marks = [int(cut["k"]) for cut in files if "k" in cut and int(cut["k"]) < len(result)]
    known = Known(_text(config, held, pool), _tasks(config, held, pool), _rated(config, held, pool))
    card = {name: held.manifest[name] for name in CARD if name in held.manifest}
    card |= {
        name: held.manifest.get(name)
        for name in ("options", "seconds", "versions", "pool", "embeddings", "run")
    }
    card["files"] = [str(cut["file"]) for cut in files]
    what = "ranking" if held.run["command"] == "rank" else None
    more = {"marks": marks, "sweep": _sweep(held), "run": card, "what": what, **_quotas(held, pool)}
    return reporting.write(result, x, out, known, how, **rows, **more)


# Of the manifest, for the card.
CARD = (
    "created",
    "objective",
    "similarity",
    "method",
    "backend",
    "dtype",
    "exact",
    "limits",
    "evaluations",
    "sweeps",
)


# ---- the pool, read again


def _as_it_was(config: Config, held: Held) -> Config:
    """The options that name the pool and its embeddings: those given now, else those of the run."""
    pool, origin = held.manifest["pool"], held.manifest["embeddings"]
    told = {"pool": config.pool or pool["source"], "similarity": held.run.get("similarity", "cosine")}
    if "file" in origin:
        told["embeddings"] = config.embeddings or (None if _own(held) else origin["file"])
        told["embedding_field"] = config.embedding_field or origin.get("field")
        told["text"] = None if _own(held) else config.text
    else:
        told |= {"text": origin.get("text"), "max_tokens": origin.get("max_tokens")}
        told["embedder"] = config.embedder or origin.get("model")
    return dataclasses.replace(config, **told)


def _own(held: Held) -> bool:
    """Whether the embeddings came with the pool."""
    return held.manifest["embeddings"].get("file") == held.manifest["pool"]["source"]


def _read_again(config: Config, held: Held) -> Source:
    """The pool and its embeddings as they were; ValueError or FileNotFoundError where they are changed or gone."""
    origin, source_then = held.manifest["embeddings"], held.manifest["pool"]["source"]
    try:
        source = read_source(config)
    except FileNotFoundError as error:
        beside = "file" in origin and not _own(held)
        made = f"the pool {source_then}" + (f" and the embeddings {origin['file']}" if beside else "")
        names = "--pool" + (" and --embeddings" if beside else "")
        raise FileNotFoundError(
            f"{error}; {held.folder} was made from {made}: where they lie elsewhere now, name them with {names}"
        ) from None
    then, now = held.manifest["pool"]["fingerprint"], source.pool.fingerprint()
    if now != then:
        raise ValueError(
            f"{config.pool} is not the pool that {held.folder} was made from, or has changed since: its fingerprint is "
            f"{now[:12]}..., that of the pool was {str(then)[:12]}..."
        )
    then, now = held.run["embeddings"], source.identity(config)
    if now != then:
        what = f"{config.embeddings or config.pool} holds" if "file" in origin else "the model makes"
        raise ValueError(f"{what} other embeddings than {held.folder} was made from: {_differ(then, now)}")
    return source


def _differ(was: Any, now: Any) -> str:
    was, now = (str(v.get("identity", v) if isinstance(v, dict) else v)[:12] for v in (was, now))
    return f"fingerprint {now}... now, {was}... then"


def _chosen_again(config: Config, held: Held, name: str, n: int) -> np.ndarray:
    """The rows of --given or --exclude, as they were."""
    was = held.run.get(name)
    path = getattr(config, name) or held.manifest.get(name)
    if was is None:
        if getattr(config, name) is not None:
            raise ValueError(f"--{name} cannot be given: {held.folder} was made without")
        return np.empty(0, np.int64)
    if path is None:
        raise ValueError(f"--{name} is missing: {held.folder} was made with one")
    rows = read_chosen(path, n, name)
    if fingerprint(rows) != was:
        raise ValueError(f"--{name} {path} holds other rows than {held.folder} was made with")
    return rows


def _text(config: Config, held: Held, pool: Pool) -> Callable[[np.ndarray], Sequence[Any]] | None:
    """The texts of rows: of --text, of the fields that were embedded, or by convention; None where there are none."""
    fields = config.text or held.manifest["embeddings"].get("text")
    if not fields:
        try:
            fields = text_fields(pool)
        except ValueError:
            return None
    fields = text_fields(pool, fields)
    return lambda rows: row_texts(pool, rows, fields)


def _tasks(config: Config, held: Held, pool: Pool) -> Labels | None:
    """The labels in the task field, where there is one; of any type, as text where they are not all ints."""
    name = held.run.get("task_field") or config.task_field
    if name not in pool.fields:
        if name != Config.task_field:
            pool.check_fields([name], "--task-field")
        return None
    values = pool.column(name)
    values = values.tolist() if isinstance(values, np.ndarray) else values
    if not all(v is None or (isinstance(v, int) and not isinstance(v, bool)) for v in values):
        values = [v if v is None or isinstance(v, str) else json.dumps(v, default=str) for v in values]
    return as_labels(values, pool.n, name, missing=True)


def _first(result: Selection, k: int) -> Selection:
    """A prefix, of which the cost is not known."""
    first, limits = result.prefix(k), result.limits or {}
    if k < result.k and "budget" in limits:
        first = dataclasses.replace(first, limits={**limits, "cost": None})
    return first


def _rated(config: Config, held: Held, pool: Pool) -> Rated | None:
    """The quality that is asked for, else that by which the rows were chosen; None without.

    ValueError where the latter is not what it was.
    """
    asked = config.quality is not None or config.quality_field is not None
    if not asked:
        if held.run.get("quality") is None:
            return None
        config = Config(quality=held.manifest.get("quality"), quality_field=held.run.get("quality_field"))
        if config.quality is None and config.quality_field is None:
            log.warning("%s does not say where its quality lies: name it with --quality", held.folder)
            return None
    try:
        values = read_quality(config, pool)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; where it lies elsewhere now, name it with --quality") from None
    rule = held.run.get("quality_missing") if config.quality_missing is None else config.quality_missing
    rated = Rated.of(held.result, values, missing=rule)
    if not asked and not rated.used:
        raise ValueError(
            f"{config.quality or config.quality_field} holds other quality than {held.folder} was made with: name one "
            "with --quality or --quality-field"
        )
    return dataclasses.replace(rated, path=_path(held, rated))


def _quotas(held: Held, pool: Pool) -> dict[str, Any]:
    """Quotas of a run, and the number of rows that shares are of."""
    if held.run.get("quota_field") is None:
        return {}
    named = {name: held.run.get(name) for name in ("quota_field", *QUOTAS)}
    k = len(held.result) if isinstance(held.result, Mixture) else held.run.get("k")
    return {
        "quotas": (read_quotas(Config(**named), pool),),
        "share_of": None if k is None else as_count(k, pool.n),
    }


def _path(held: Held, rated: Rated) -> dict[str, Any] | None:
    """OUT/alpha_path.json, where it is of this pool and this quality."""
    record = {**held.run, "quality": fingerprint(rated.values)}

    def same(found: dict[str, Any]) -> bool:
        for point in found["points"]:
            point["alpha"], point["coverage"], point["quality_mean"]
        found["k"], found["suggested"], found["objective"]["scale"]
        names = ("pool", "embeddings", "quality", "similarity")
        return all(found["run"][name] == record[name] for name in names)

    return _table(held.folder / ALPHA_PATH, same)


def _sweep(held: Held) -> list[dict[str, Any]] | None:
    """The table of OUT/sweep.json, where it is of this pool."""
    names = ("n_tasks", "n_rows", "coverage", "coverage_left_out", "effective_tasks")

    def same(found: dict[str, Any]) -> bool:
        found["rows"] = [{name: row[name] for name in names} for row in found["sweep"]]
        return found["pool"]["fingerprint"] == held.manifest["pool"]["fingerprint"]

    found = _table(held.folder / SWEEP, same)
    return found and found["rows"]


def _table(path: Path, same: Callable[[dict[str, Any]], bool]) -> dict[str, Any] | None:
    """What is in a file beside the result, where it is `same`, of what the result is of; else None, and a warning."""
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        fits = same(found)
    except (ValueError, KeyError, TypeError):
        log.warning("%s is not of smartgpu: left out of the report", path)
        return None
    if not fits:
        log.warning("%s is of another pool, or another quality: left out of the report", path)
    return found if fits else None
