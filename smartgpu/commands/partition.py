"""smartgpu select --partition: partition greedy, where exact greedy takes too long or too much memory."""

from __future__ import annotations

from typing import Any

from smartgpu import launch
from smartgpu.arrays import as_count
from smartgpu.config import Config
from smartgpu.partition import KINDS, as_represented, check_numbers, select_partitioned
from smartgpu.selection import Selection

OWN = ("parts", "candidates", "rounds", "represented")
# What exact greedy alone can do.
NOT = (
    *(
        "objective",
        "lam",
        "alpha",
        "alpha_path",
        "coverage",
        "budget",
        "cost_field",
        "quota_field",
        "baseline",
        "sizes",
    ),
    *(
        "given",
        "exclude",
        "include_rows",
        "given_from",
        "exclude_near",
        "target",
        "private",
        "polish",
        "fallback",
    ),
)


def check(config: Config) -> None:
    """Refuse, before the pool is read, options that do not go together."""
    if config.partition is None:
        for name in OWN:
            if getattr(config, name) is not None:
                raise ValueError(f"--{name} is an option of --partition")
        return
    default = Config.of("select", {})
    for name in NOT:
        if getattr(config, name, None) != getattr(default, name, None):
            flag = name.replace("_", "-")
            raise ValueError(
                f"--{flag} cannot be combined with --partition: facility location of k rows alone"
            )
    known = [kind.name for kind in KINDS]
    if config.similarity not in known:
        raise ValueError(f"--partition needs --similarity {', '.join(known)}; got {config.similarity}")
    check_numbers(*(given if given is not None else 2 for given in (config.candidates, config.rounds)))


def check_rows(config: Config, n: int) -> None:
    """Refuse, before anything is embedded, what does not fit a pool of n rows."""
    if config.parts is not None:
        as_count(config.parts, n, "--parts")
    as_represented(config.represented, n, "--represented")


def select(config: Config, x: Any, k: int, call: dict[str, Any]) -> Selection:
    """By all processes. call: arguments of select()."""
    names = ("similarity", "progress", "plan", "checkpoint", *config.how())
    how = {name: call[name] for name in names}
    how |= {name: value for name in OWN if (value := getattr(config, name)) is not None}
    return launch.call(select_partitioned, x, k, partition=config.partition, **how)
