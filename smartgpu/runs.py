"""One run into an output folder: read, embed, select, write; resumable until it is whole.

While a run is unfinished OUT/.partial holds what it is (run.json) and how far it came (picks.npz). The same command goes
on from there. selection.json is written last: where it stands, the run is whole.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from smartgpu import api
from smartgpu.arrays import as_count, as_rows
from smartgpu.checkpoint import differences, fingerprint
from smartgpu.config import Config
from smartgpu.files import replacing
from smartgpu.io import Pool, find_text, output_path, read_embeddings, read_pool, text_fields, write_rows
from smartgpu.selection import Selection

log = logging.getLogger("smartgpu")
SCHEMA = 1  # of selection.json
PARTIAL = ".partial"


@dataclass
class Loaded:
    """A pool with what it is selected by: embeddings, or a precomputed similarity."""

    pool: Pool
    x: np.ndarray
    origin: dict[str, Any]  # where the embeddings come from, for the manifest


class Seconds(dict):
    """Seconds by phase."""

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self[phase] = round(self.get(phase, 0.0) + time.perf_counter() - start, 4)


def load(config: Config, seconds: Seconds, progress: bool) -> Loaded:
    """Read the pool and get its embeddings: from --embeddings, from the pool itself, or by embedding its text."""
    if config.pool is None:
        raise ValueError("pool is missing: name a file, a folder of shards, a glob or embeddings")
    precomputed = config.similarity == "precomputed"
    with seconds("read"):
        field = None if config.embeddings else config.embedding_field
        pool = read_pool(config.pool, embedding_field=field)
        if config.embeddings:
            x = read_embeddings(config.embeddings, field=config.embedding_field)
            if (x.shape[1] if precomputed else len(x)) != pool.n:
                raise ValueError(
                    f"embeddings must have one row per pool row: {pool.n} in {config.pool}, got {len(x)} in "
                    f"{config.embeddings}"
                )
            return Loaded(pool, x, {"file": str(config.embeddings), "field": config.embedding_field})
        if pool.embeddings is not None and config.embedder is None and config.text is None:
            return Loaded(pool, pool.embeddings, {"field": pool.embedding_field})
        if precomputed:
            raise ValueError(
                "similarity 'precomputed' needs the matrix: give it with --embeddings, or as the pool"
            )
        texts, fields = find_text(pool, config.text), text_fields(pool, config.text)
    with seconds("embed"):
        from smartgpu.embed import DEFAULT_MODEL, embed

        log.info("embedding %d rows from %s", pool.n, " + ".join(fields))
        x = embed(
            texts,
            config.embedder,
            cache=config.cache,
            batch_size=config.batch_size,
            max_tokens=config.max_tokens,
            device=config.device,
            progress=progress,
        )
    model = config.embedder or DEFAULT_MODEL
    return Loaded(pool, x, {"model": model, "max_tokens": config.max_tokens, "text": list(fields)})


def read_chosen(path: str, n: int, option: str) -> np.ndarray:
    """Row numbers from a file: an output folder, selection.npz, npy, one number a line, or rows with source_row."""
    where = Path(path)
    if where.is_dir() and (where / "selection.npz").is_file():
        where = where / "selection.npz"
    if where.suffix == ".npz" and where.is_file():
        with np.load(where, allow_pickle=False) as file:
            if "indices" not in file:
                raise ValueError(f"--{option}: {path} holds no array 'indices', only {', '.join(file)}")
            return as_rows(file["indices"], n, option)
    if where.suffix == ".npy" and where.is_file():
        return as_rows(np.load(where, allow_pickle=False), n, option)
    if where.suffix == ".txt" and where.is_file():
        rows = []
        for number, line in enumerate(where.read_text(encoding="utf-8").splitlines(), 1):
            if line.strip():
                try:
                    rows.append(int(line))
                except ValueError:
                    raise ValueError(
                        f"--{option}: {path}, line {number}: expected a row number, got {line[:40]!r}"
                    ) from None
        return as_rows(rows, n, option)
    chosen = read_pool(path)
    name = next((c for c in ("smartgpu_source_row", "source_row") if c in chosen.fields), None)
    if name is None:
        raise ValueError(
            f"--{option}: {path} has no field 'source_row'; its fields: {', '.join(chosen.fields)}"
        )
    return as_rows(chosen.numbers(name).astype(np.int64), n, option)


@dataclass
class Sizes:
    """The budgets asked for: k for the selection itself, and the prefixes to write."""

    k: int | None
    cuts: list[int]

    @classmethod
    def of(cls, config: Config, n: int, command: str) -> Sizes:
        if command == "rank":
            return cls(None, [])
        if config.sizes:
            if config.k is not None or config.coverage is not None:
                raise ValueError(
                    "sizes cannot be combined with k or coverage: it cuts several k out of one ranking"
                )
            cuts = sorted({as_count(size, n, "sizes") for size in config.sizes})
            return cls(cuts[-1], cuts)
        if config.k is None and config.coverage is None:
            raise ValueError("k is missing: give -k (rows or a share), --sizes or --coverage")
        return cls(None if config.k is None else as_count(config.k, n), [])


class Folder:
    """OUT: refuses what another run left there, keeps the unfinished one, and knows when a run is whole."""

    def __init__(self, path: str, record: dict[str, Any], overwrite: bool):
        self.path, self.partial = Path(path), Path(path) / PARTIAL
        self.manifest = self.path / "selection.json"
        self.record = json.loads(json.dumps(record))
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"out must be a folder, got the file {path}")
        if overwrite:
            self._clear()
        self.whole = self._same(self.manifest, "run")
        if not self.whole:
            self._same(self.partial / "run.json", None)
            self.partial.mkdir(parents=True, exist_ok=True)
            with replacing(self.partial / "run.json", "w") as file:
                json.dump(self.record, file, indent=1)

    def _same(self, path: Path, key: str | None) -> bool:
        """True if the record in `path` is this run's, False if there is none; ValueError for another run's."""
        if not path.is_file():
            return False
        try:
            there = json.loads(path.read_text(encoding="utf-8"))
            there = there if key is None else there[key]
        except (ValueError, KeyError) as error:
            raise ValueError(
                f"{path} is not of smartgpu ({error}); choose another folder, or --overwrite"
            ) from None
        changed = differences(there, self.record)
        if changed:
            raise ValueError(
                f"{self.path} holds {'a' if key else 'an unfinished'} selection of other options or data; choose another "
                "folder, or --overwrite to start anew. " + "; ".join(changed)
            )
        return True

    def _clear(self) -> None:
        """Remove what an earlier run of smartgpu wrote here, and nothing else."""
        if self.manifest.is_file():
            try:
                files = [
                    cut["file"] for cut in json.loads(self.manifest.read_text(encoding="utf-8"))["files"]
                ]
            except (ValueError, KeyError, TypeError):
                raise ValueError(
                    f"{self.manifest} is not of smartgpu: it is not overwritten; choose another folder"
                ) from None
            for name in [*files, "selection.npz"]:
                target = self.path / Path(name).name  # never outside the folder
                if target.is_dir():
                    shutil.rmtree(target)
                else:
                    target.unlink(missing_ok=True)
            self.manifest.unlink()
        shutil.rmtree(self.partial, ignore_errors=True)

    def finish(self, manifest: dict[str, Any]) -> None:
        with replacing(self.manifest, "w") as file:
            json.dump(manifest, file, indent=1, ensure_ascii=False)
            file.write("\n")
        shutil.rmtree(self.partial, ignore_errors=True)


def run(config: Config, command: str, progress: bool) -> tuple[dict[str, Any], Selection | None, Pool]:
    """`smartgpu select` or `rank`: the manifest, the selection (None where the folder held it whole), the pool."""
    seconds = Seconds()
    if config.out is None:
        raise ValueError("out is missing: name the output folder with --out")
    objective, similarity, how = config.make_objective(), config.make_similarity(), config.how()
    if config.pool is not None:  # what can be refused before embedding is refused before embedding
        _check_early(config, command)
    loaded = load(config, seconds, progress)
    pool = loaded.pool
    sizes = Sizes.of(config, pool.n, command)
    with seconds("read"):
        lists = {name: _rows_of(getattr(config, name), pool.n, name) for name in ("given", "exclude")}
        record = {
            "command": command,
            **config.record(),
            "pool": {"source": str(config.pool), "rows": pool.n, "fingerprint": pool.fingerprint()},
            "embedded": fingerprint(np.asarray(loaded.x)),
            **{name: None if rows is None else fingerprint(rows) for name, rows in lists.items()},
        }
    stem = "ranked" if command == "rank" else "selected"
    cuts = sizes.cuts or [None]
    names = [stem if cut is None else f"{stem}-{cut}" for cut in cuts]
    for name in names:
        output_path(pool, Path(config.out) / name, config.format)
    folder = Folder(config.out, record, config.overwrite)
    if folder.whole:
        return json.loads(folder.manifest.read_text(encoding="utf-8")), None, pool
    checkpoint = (
        None
        if config.maximizer == "stochastic" or config.backend == "reference"
        else folder.partial / "picks.npz"
    )
    selection = api._select(
        loaded.x,
        sizes.k,
        objective,
        similarity,
        api.make_options(how.pop("backend"), {**how, "progress": progress}),
        config.coverage,
        lists["given"],
        lists["exclude"],
        None,
        checkpoint,
    )
    seconds.update({phase: round(value, 4) for phase, value in selection.seconds.items()})
    files = []
    for cut, name in zip(cuts, names, strict=True):
        part = selection if cut is None else selection.prefix(cut)
        extra: dict[str, np.ndarray] = {"rank": np.arange(part.k), "gain": part.gains}
        if command != "rank":
            with seconds("assign"):
                extra["weight"] = part.assign(loaded.x).weight
        extra["source_row"] = part.indices
        with seconds("write"):
            written = write_rows(pool, part.indices, extra, folder.path / name, config.format)
        files.append({"file": written.name, "k": part.k, "value": part.value})
    with seconds("write"):
        dataclasses.replace(selection, seconds=dict(seconds)).save(folder.path / "selection.npz")
    manifest = {
        "schema": SCHEMA,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **{key: value for key, value in selection.metadata().items() if key != "seconds"},
        "files": files,
        "pool": {**record["pool"], "format": pool.format, "fields": list(pool.fields)},
        "embeddings": {**loaded.origin, "shape": list(loaded.x.shape), "dtype": str(loaded.x.dtype)},
        "seconds": dict(seconds),
        "run": folder.record,
    }
    folder.finish(manifest)
    return manifest, selection, pool


def _check_early(config: Config, command: str) -> None:
    """k, sizes and coverage against nothing but themselves: n is not known yet."""
    if command != "rank":
        Sizes.of(config, 1 << 62, command)
    if config.coverage is not None:
        api._check_share("coverage", config.coverage)


def _rows_of(path: str | None, n: int, option: str) -> np.ndarray | None:
    return None if path is None else read_chosen(path, n, option)


def evaluate(config: Config, progress: bool) -> api.Evaluation:
    """`smartgpu evaluate`: the rows of --chosen, scored on the pool."""
    if config.chosen is None:
        raise ValueError("chosen is missing: name the rows to score with --chosen")
    objective, similarity = config.make_objective(), config.make_similarity()
    loaded = load(config, Seconds(), progress)
    rows = read_chosen(config.chosen, loaded.pool.n, "chosen")
    options = {"threads": config.threads, "memory": config.memory}
    return api.evaluate(loaded.x, rows, objective, similarity, config.backend, **options)
