"""Rows from other files than the pool, on the command line: what is there already, targets, what must not be near."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np

from smartgpu.arrays import as_matrix
from smartgpu.checkpoint import fingerprint
from smartgpu.config import Config
from smartgpu.io import find_text, read_embeddings, read_pool
from smartgpu.near import Near
from smartgpu.objectives import Objective
from smartgpu.objectives.targets import TARGETS

log = logging.getLogger("smartgpu")
FILES = ("target", "private", "given_from", "exclude_near")


@dataclass
class Beside:
    """Rows of one such file: embeddings, or texts that will be embedded as the pool is."""

    what: str
    x: np.ndarray | None
    texts: list[str] | None

    def identity(self) -> str:
        if self.x is not None:
            return fingerprint(self.x)
        return fingerprint(np.frombuffer("\0".join(self.texts).encode(), np.uint8))

    def vectors(self, config: Config, pool: np.ndarray, seconds: Any, progress: bool) -> np.ndarray:
        if self.x is None:
            from smartgpu.embed import embed

            log.info("embedding %d rows of %s", len(self.texts), self.what)
            how = {"cache": config.cache, "batch_size": config.batch_size, "device": config.device}
            how |= {"max_tokens": config.max_tokens, "progress": progress}
            with seconds("embed"):
                self.x, self.texts = embed(self.texts, config.embedder, **how), None
        self.fits(config, pool)
        return self.x

    def fits(self, config: Config, pool: np.ndarray) -> None:
        if self.x.shape[1] != pool.shape[1]:
            where = config.embeddings or config.pool
            raise ValueError(
                f"{self.what} has {self.x.shape[1]} features, {where} has {pool.shape[1]}: embed both with one model"
            )


def check(config: Config) -> Objective | None:
    """Refuse options that do not go together; the target with rows of one feature, None where none is asked for."""
    if (config.exclude_near is None) != (config.exclude_above is None):
        raise ValueError(
            "--exclude-near goes with --exclude-above, the similarity from which rows are barred"
        )
    if config.exclude_near is not None:
        Near(np.ones((1, 1)), config.exclude_above)
    named = [f for f in FILES if getattr(config, f) is not None]
    if named and config.similarity == "precomputed":
        raise ValueError(f"--{named[0].replace('_', '-')} cannot be combined with --similarity precomputed")
    if named and config.alpha_path:
        raise ValueError(f"--{named[0].replace('_', '-')} cannot be combined with --alpha-path")
    return target(config, {name: np.ones((1, 1)) for name in named})


def target(config: Config, rows: dict[str, Any]) -> Objective | None:
    """The objective of --target and --private, given their rows."""
    asked = tuple(
        name for name in ("query", "private") if rows.get({"query": "target"}.get(name, name)) is not None
    )
    if not asked:
        for name in ("target_objective", "eta", "nu"):
            if getattr(config, name) is not None:
                flag = name.replace("_", "-")
                raise ValueError(
                    f"--{flag} needs --target, --private or both: rows to be like, and to be unlike"
                )
        return None
    if config.alpha is not None or config.alpha_path:
        raise ValueError("--alpha weighs quality against facility location of the pool, not against a target")
    if config.objective != "facility_location":
        raise ValueError(
            f"--objective {config.objective} cannot be combined with a target: name it with --target-objective"
        )
    kind = TARGETS[config.target_objective or DEFAULTS[asked]]
    if asked != kind.SETS:
        flags = {"query": "--target", "private": "--private"}
        need, got = (" and ".join(flags[name] for name in names) for names in (kind.SETS, asked))
        raise ValueError(f"--target-objective {kind.name} takes {need}, got {got}")
    factors = {
        name: getattr(config, name) for name in ("eta", "nu", "lam") if getattr(config, name) is not None
    }
    unknown = next((name for name in factors if name not in kind.FACTORS), None)
    if unknown is not None:
        raise ValueError(f"--{unknown} is not an option of {kind.name}; it has {', '.join(kind.FACTORS)}")
    sets = {name: rows["target" if name == "query" else name] for name in asked}
    return kind(**sets, **factors)


DEFAULTS = {
    ("query",): "facility_location_mi",
    ("private",): "facility_location_cg",
    ("query", "private"): "facility_location_cmi",
}


def read(config: Config, pool: np.ndarray | None) -> dict[str, Beside]:
    """The files that are named, by option. pool: its embeddings, None where its texts will be embedded."""
    out = {}
    for name in FILES:
        path = getattr(config, name)
        if path is not None:
            what = f"--{name.replace('_', '-')} {path}"
            if pool is None:
                held = read_pool(path)
                texts = find_text(held, config.text) if held.fields else None
                out[name] = Beside(what, None if held.fields else as_matrix(held.embeddings, what), texts)
            else:
                out[name] = Beside(
                    what, as_matrix(read_embeddings(path, field=_field(config, path)), what), None
                )
                out[name].fits(config, pool)
    return out


def _field(config: Config, path: str) -> str | None:
    """The pool's own embedding field; an npy has none."""
    return None if str(path).endswith(".npy") else config.embedding_field


def arguments(
    config: Config,
    files: dict[str, Beside],
    x: np.ndarray,
    rows: dict[str, np.ndarray],
    seconds: Any,
    progress: bool,
) -> dict[str, Any]:
    """given and exclude of select(), and the objective where there is a target."""
    vectors = {name: beside.vectors(config, x, seconds, progress) for name, beside in files.items()}
    out: dict[str, Any] = dict(rows)
    if "given_from" in vectors:
        out["given"] = (rows["given"], vectors["given_from"])
    if "exclude_near" in vectors:
        out["exclude"] = [rows["exclude"], Near(vectors["exclude_near"], config.exclude_above)]
    objective = target(config, vectors)
    return out if objective is None else {**out, "objective": objective}
