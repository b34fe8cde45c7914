"""What the command line takes from fields of a pool: labels, quality, costs, and the limits made of them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from smartgpu.config import Config
from smartgpu.constraints import Quotas
from smartgpu.io import Pool, read_pool
from smartgpu.io.text import as_turns
from smartgpu.labels import Label, Labels, as_labels
from smartgpu.objectives import QualityDiversity
from smartgpu.tokens import CHARS, Rule, find_rule

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
    if config.cost_text is not None and config.cost is None:
        raise ValueError("--cost-text names the fields that --cost counts")
    if config.tokenizer is not None and config.cost != "tokens":
        raise ValueError("--tokenizer is what --cost tokens counts by")
    if config.cost is not None:
        _cost_rule(config)  # one that is not here is refused
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
        out["quotas"] = read_quotas(config, pool)
    return out


def read_quotas(config: Config, pool: Pool) -> Quotas:
    """The quotas of --quota-field."""
    labels = read_labels(pool, config.quota_field, "--quota-field")
    limits = {
        to: as_table(name, getattr(config, name), labels)
        for name, to in QUOTAS.items()
        if getattr(config, name)
    }
    return Quotas(labels, name=config.quota_field, **limits)


def read_quality(config: Config, pool: Pool) -> np.ndarray:
    """(n,) float64, NaN where a row has none: from a field of the pool, from an npy, or from a field of other rows."""
    name = config.quality_field
    if config.quality is None:
        pool.check_fields([name], "--quality-field")
        return pool.numbers(name, missing=True)
    what, path = f"--quality {config.quality}", Path(config.quality).expanduser()
    if path.suffix == ".npy":
        if name is not None:
            raise ValueError(f"--quality-field {name} cannot be combined with {what}: an npy has no fields")
        try:
            values = np.load(path, allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise ValueError(f"{what} must hold one number per row: {error}") from error
    else:
        held = read_pool(config.quality)
        if name is None and len(held.fields) != 1:
            raise ValueError(
                f"{what}: name the field with --quality-field; its fields: {', '.join(held.fields)}"
            )
        name = held.fields[0] if name is None else name
        held.check_fields([name], "--quality-field")
        values = held.numbers(name, missing=True)
    if values.shape != (pool.n,):
        raise ValueError(f"{what} must hold one number per pool row: {pool.n}, got shape {values.shape}")
    return values


def read_cost(config: Config, pool: Pool) -> np.ndarray:
    """(n,) float64: a field, or what a rule counts in a row's text."""
    if config.cost_field is not None:
        pool.check_fields([config.cost_field], "--cost-field")
        return pool.numbers(config.cost_field)
    return _cost_rule(config).costs(_texts(pool, _cost_text(config, pool)))


def cost_record(config: Config, pool: Pool) -> dict[str, Any] | None:
    """How costs are counted, for the manifest; None where nothing costs."""
    if config.budget is None:
        return None
    if config.cost_field is not None:
        return {"rule": "field", "field": config.cost_field}
    return {**_cost_rule(config).said, "text": _cost_text(config, pool)}


def _cost_rule(config: Config) -> Rule:
    return find_rule(CHARS if config.cost == CHARS else config.tokenizer)


def _cost_text(config: Config, pool: Pool) -> list[str]:
    names = list(config.cost_text or (name for name in pool.fields if name != pool.embedding_field))
    pool.check_fields(names, "--cost-text")
    if not names:
        raise ValueError(
            f"--cost {config.cost} counts text, and {pool.source} holds embeddings alone: give --cost-field"
        )
    return names


def _texts(pool: Pool, names: Sequence[str]) -> Iterator[list[str]]:
    """Of each row all the text in these fields, a block of rows at a time."""
    for i in range(0, pool.n, BLOCK):
        rows = np.arange(i, min(i + BLOCK, pool.n))
        columns = pool.store.columns(names, rows)
        for at in range(len(rows)):
            yield [text for name in names for text in _strings(columns[name][at])]


def _strings(value: Any) -> list[str]:
    """The text in a value: of a conversation what everybody says, but not who."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        if (turns := as_turns(value)) is not None:
            return _strings(turns)
        value = [v for key, v in value.items() if key not in ("role", "from", "type")]
    if isinstance(value, list | tuple | np.ndarray):
        return [text for item in value for text in _strings(item)]
    return []


def as_table(
    option: str, values: Sequence[str] | None, labels: Labels, *, of: str = "label", shares: bool = True
) -> Any:
    """["5"] -> 5, ["0.2"] -> 0.2, ["a=5", "b=0.1"] -> {"a": 5, "b": 0.1}; where `shares`, with a point, are allowed.

    of: what the labels are, for messages.
    """
    if values is None:
        return None
    flag, pair = "--" + option.replace("_", "-"), f"{of.upper()}=NUMBER"
    pairs = [value.rpartition("=") for value in values]
    form = r"[0-9]+|[0-9]*\.[0-9]+|[0-9]+\." if shares else "[0-9]+"
    for value, (_, _, number) in zip(values, pairs, strict=True):
        if not re.fullmatch(form, number.strip()):
            what = "a number (a share with a point)" if shares else "a number of rows"
            raise ValueError(f"{flag} must be {what}, or {pair} ..., got {value!r}")
    numbers = [float(n) if "." in n else int(n) for _, _, n in pairs]
    if len(pairs) == 1 and not pairs[0][1]:
        return numbers[0]
    lone = [value for value, (_, sign, _) in zip(values, pairs, strict=True) if not sign]
    if lone:
        raise ValueError(
            f"{flag} must be one number for all {of}s, or {pair} for some, got {lone[0]!r} beside others"
        )
    names = as_names([label for label, _, _ in pairs], labels)
    if len(set(names)) < len(names):
        raise ValueError(f"{flag} names a {of} twice: {next(n for n in names if names.count(n) > 1)!r}")
    return dict(zip(names, numbers, strict=True))


def quality_objective(config: Config, pool: Pool, of: str = "") -> QualityDiversity | None:
    """The objective of --alpha, or of the first of --alpha-path; None where quality is not asked for."""
    asked = config.quality_options(of)
    if asked is None:
        return None
    alpha = config.alpha_path[0] if config.alpha_path else config.alpha
    spec = QualityDiversity(alpha, read_quality(config, pool), **asked)
    if config.coverage is not None:
        spec.need_monotone(None, None)
    return spec
