"""smartgpu select --baseline: rows by a rule that QDIT is compared with, written as those of any selection are."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from smartgpu.baselines import BASELINES
from smartgpu.commands.fields import read_quality
from smartgpu.config import Config
from smartgpu.io import Pool
from smartgpu.objectives.quality import fill
from smartgpu.options import make_options
from smartgpu.selection import Selection

OWN = ("tau", "clusters")  # options of some baselines
# Options of a greedy selection, which no baseline is.
NOT = (
    *("objective", "lam", "alpha", "alpha_path", "quality_scale", "coverage", "target", "private"),
    *("target_objective", "eta", "nu", "maximizer", "fallback", "plan", "polish"),
)


def check(config: Config) -> None:
    """Refuse, before the pool is read, options that do not go together."""
    named = [name for name in OWN if getattr(config, name) is not None]
    if config.baseline is None:
        if named:
            raise ValueError(f"--{named[0]} is an option of --baseline {_takes(named[0])}")
        return
    takes = inspect.signature(BASELINES[config.baseline]).parameters
    default = Config.of("select", {})
    for name in NOT:
        if getattr(config, name) != getattr(default, name):
            flag = name.replace("_", "-")
            raise ValueError(
                f"--{flag} cannot be combined with --baseline {config.baseline}: it is of a greedy selection"
            )
    for name in named:
        if name not in takes:
            raise ValueError(f"--{name} is an option of --baseline {_takes(name)}, not of {config.baseline}")
    given = [name for name in ("quality", "quality_field") if getattr(config, name) is not None]
    if "quality" in takes and not given:
        raise ValueError(f"--baseline {config.baseline} needs --quality-field, or a file with --quality")
    given += ["quality_missing"] if config.quality_missing is not None else []
    if "quality" not in takes and given:
        flag = given[0].replace("_", "-")
        raise ValueError(
            f"--{flag} cannot be combined with --baseline {config.baseline}, which asks for none"
        )
    if config.sizes and (
        config.baseline == "threshold" or (config.baseline == "cluster" and not config.clusters)
    ):
        why = (
            "may find fewer rows"
            if config.baseline == "threshold"
            else "makes other clusters for each: --clusters"
        )
        raise ValueError(f"--sizes cannot be combined with --baseline {config.baseline}, which {why}")
    make_options(_how(config))


def _takes(name: str) -> str:
    return next(kind for kind in BASELINES if name in inspect.signature(BASELINES[kind]).parameters)


def _how(config: Config) -> dict[str, Any]:
    names = ("seed", "threads", "memory", "precision")
    return {"backend": config.how()["backend"], **{name: getattr(config, name) for name in names}}


def quality_of(config: Config, pool: Pool) -> np.ndarray | None:
    """(n,) quality of the rows, None for a baseline without."""
    if config.quality is None and config.quality_field is None:
        return None
    return fill(read_quality(config, pool), config.quality_missing)


def make(config: Config, quality: np.ndarray | None) -> Callable[..., Selection]:
    """What takes the place of select(): of X, k and select()'s limits."""

    def select(x: Any, k: Any, **limits: Any) -> Selection:
        own = {name: getattr(config, name) for name in OWN if getattr(config, name) is not None}
        own |= {} if quality is None else {"quality": quality}
        how = {**_how(config), "similarity": config.make_similarity()}
        return BASELINES[config.baseline](x, k, **own, **how, **limits)

    return select
