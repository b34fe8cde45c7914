"""Options in a YAML file, and whether a value is what an option takes, however it was given."""

from __future__ import annotations

import dataclasses
import difflib
import re
from pathlib import Path
from typing import Any

from smartgpu.config import Config


def load_config(path: str | Path, command: str) -> dict[str, Any]:
    """The options in a YAML file. ValueError for one that cannot be read, or holds a key that is no option."""
    import yaml

    try:
        with open(path, encoding="utf-8") as file:
            data = yaml.safe_load(file)
    except OSError as error:
        raise ValueError(f"--config: cannot read {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"--config: {path} is not YAML: {error}") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ValueError(f"--config: {path} must hold a mapping of options, got {type(data).__name__}")
    known = {f.name: f for f in dataclasses.fields(Config) if command in f.metadata["on"]}
    out = {}
    for key, value in data.items():
        name = str(key).replace("-", "_")
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; options are {', '.join(known)}"
            raise ValueError(f"--config: {path} holds {key!r}, which is no option of {command}{hint}")
        out[name] = check_value(known[name], value, f"{path}: {key}")
    return out


def check_value(f: dataclasses.Field, value: Any, where: str) -> Any:
    """value, if its type fits the field. ValueError says what was expected."""
    if value is None:
        return f.default
    if f.metadata["many"]:
        return [_scalar(f, v, where) for v in _listed(f, value)]
    return _scalar(f, value, where)


def _listed(f: dataclasses.Field, value: Any) -> list[Any]:
    """The values of an option that takes several: as a list, "8,16,32" taken apart, {task: 5} as "task=5"."""
    if f.metadata.get("table"):
        value = [f"{name}={rows}" for name, rows in value.items()] if isinstance(value, dict) else value
        return [str(v) for v in (value if isinstance(value, list) else [value])]
    value = value if isinstance(value, list) else [value]
    if not f.metadata.get("commas"):
        return value
    parts = [part.strip() for v in value for part in str(v).split(",")]
    if "float" in str(f.type):
        return [float(p) if re.fullmatch(r"[+-]?[0-9.]+(e[+-]?[0-9]+)?", p) else p for p in parts if p]
    numbers = "int" in str(f.type)
    return [int(p) if numbers and re.fullmatch("[+-]?[0-9]+", p) else p for p in parts if p]


def _scalar(f: dataclasses.Field, value: Any, where: str) -> Any:
    kind = str(f.type)
    choices = f.metadata.get("choices")
    if choices and value not in choices:
        near = difflib.get_close_matches(str(value), choices, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{where} must be one of {', '.join(choices)}, got {value!r}{hint}")
    if f.name == "memory":  # bytes, or a size like "4GB"
        return str(value)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if f.metadata.get("bare"):
        fits, expected = number or isinstance(value, bool) or str(value).endswith("%"), "true or a number"
    elif kind == "bool":
        fits, expected = isinstance(value, bool), "true or false"
    elif "str" in kind:
        fits, expected = isinstance(value, str), "text"
    elif "float" in kind:
        fits, expected = number, "a number"
    else:
        fits, expected = number and isinstance(value, int), "an integer"
    if not fits:
        raise ValueError(f"{where} must be {expected}, got {value!r}")
    return value
