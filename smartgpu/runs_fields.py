"""What the command line takes from fields of a pool: labels, costs, and the limits made of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from smartgpu.config import Config
from smartgpu.constraints import Quotas
from smartgpu.io import Pool
from smartgpu.io.text import row_texts
from smartgpu.labels import Label, Labels, as_labels

CHARACTERS = 4  # of a token, by the plain rule: about what English takes
BLOCK = 4096  # rows whose texts are held at a time
QUOTAS = {"quota_min": "minimum", "quota_max": "maximum", "quota_exact": "exact"}


def read_labels(pool: Pool, name: str, option: str, missing: bool = False) -> Labels:
    """The labels in a field. ValueError lists the fields where it is unknown; null is a label only where `missing`."""
    pool.check_fields([name], option)
    values, what = pool.column(name), f"{option}: field {name!r} of {pool.source}"
    values = values.tolist() if isinstance(values, np.ndarray) else values
    for row, value in enumerate(values):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | str)):
            raise ValueError(f"{what} must hold text or integers, row {row} holds {type(value).__name__}")
    try:
        return as_labels(values, pool.n, what, missing=missing)
    except TypeError as error:  # both
        raise ValueError(str(error)) from error


def as_names(values: list[str] | None, labels: Labels) -> list[Label] | None:
    """Labels by name; as ints where the field holds ints."""
    if values is None or isinstance(labels.names[0], str):
        return values
    return [int(v) if re.fullmatch("[+-]?[0-9]+", v) else v for v in values]


def check_limits(config: Config) -> None:
    """Refuse, before the pool is read, options of limits that do not go together."""
    if (config.cost is None and config.cost_field is None) != (config.budget is None):
        raise ValueError("--budget goes with --cost-field or --cost, which say what a row takes of it")
    if config.cost is not None and config.cost_field is not None:
        raise ValueError("--cost cannot be combined with --cost-field: which is it?")
    if config.cost_text is not None and config.cost != "chars":
        raise ValueError("--cost-text names the fields that --cost chars counts")
    limits = [name for name in QUOTAS if getattr(config, name) is not None]
    if limits and config.quota_field is None:
        raise ValueError(f"--{limits[0].replace('_', '-')} needs --quota-field, whose labels are the groups")
    if config.quota_field is not None and not limits:
        raise ValueError("--quota-field needs --quota-min, --quota-max or --quota-exact")


def read_limits(config: Config, pool: Pool) -> dict[str, Any]:
    """Keyword arguments of select(): budget, cost, quotas, those that are asked for."""
    out: dict[str, Any] = {}
    if config.budget is not None:
        out |= {"budget": config.budget, "cost": read_cost(config, pool)}
    if config.quota_field is not None:
        labels = read_labels(pool, config.quota_field, "--quota-field")
        limits = {
            to: _table(name, getattr(config, name), labels)
            for name, to in QUOTAS.items()
            if getattr(config, name)
        }
        out["quotas"] = Quotas(labels, name=config.quota_field, **limits)
    return out


def read_cost(config: Config, pool: Pool) -> np.ndarray:
    """(n,) float64: a field, or the characters of a row's text over 4, rounded up, 1 at least."""
    if config.cost_field is not None:
        pool.check_fields([config.cost_field], "--cost-field")
        return pool.numbers(config.cost_field)
    names = list(config.cost_text or pool.fields)
    pool.check_fields(names, "--cost-text")
    if not names:
        raise ValueError(
            f"--cost chars counts text, and {pool.source} holds embeddings alone: give --cost-field"
        )
    out = np.empty(pool.n)
    for i in range(0, pool.n, BLOCK):
        rows = np.arange(i, min(i + BLOCK, pool.n))
        columns = [row_texts(pool, rows, [name]) for name in names]
        counts = np.sum([[_length(value) for value in column] for column in columns], axis=0)
        out[rows] = np.maximum(np.ceil(counts / CHARACTERS), 1)
    return out


def _length(value: Any) -> int:
    return len(value) if isinstance(value, str) else 0


def _table(option: str, values: Sequence[str], labels: Labels) -> Any:
    """["5"] -> 5, ["0.2"] -> 0.2, ["a=5", "b=0.1"] -> {"a": 5, "b": 0.1}; a number with a point is a share."""
    flag = "--" + option.replace("_", "-")
    pairs = [value.rpartition("=") for value in values]
    for value, (_, _, number) in zip(values, pairs, strict=True):
        if not re.fullmatch(r"[0-9]+|[0-9]*\.[0-9]+|[0-9]+\.", number.strip()):
            raise ValueError(
                f"{flag} must be a number (a share with a point), or LABEL=NUMBER ..., got {value!r}"
            )
    numbers = [float(n) if "." in n else int(n) for _, _, n in pairs]
    if len(pairs) == 1 and not pairs[0][1]:
        return numbers[0]
    lone = [value for value, (_, sign, _) in zip(values, pairs, strict=True) if not sign]
    if lone:
        raise ValueError(
            f"{flag} must be one number for all, or LABEL=NUMBER for some, got {lone[0]!r} beside others"
        )
    names = as_names([label for label, _, _ in pairs], labels)
    if len(set(names)) < len(names):
        raise ValueError(f"{flag} names a group twice: {next(n for n in names if names.count(n) > 1)!r}")
    return dict(zip(names, numbers, strict=True))
