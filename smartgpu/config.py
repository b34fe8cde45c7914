"""The options of the command line: one dataclass, read from flags or from a YAML file by the same names."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smartgpu.backends import NAMES, resolve
from smartgpu.io import FORMATS
from smartgpu.objectives import OBJECTIVES, GraphCut, LogDet, Objective, as_objective
from smartgpu.options import MAXIMIZERS, PRECISIONS, TIES
from smartgpu.similarity import KINDS, Rbf, Similarity, as_similarity

ALL = ("select", "rank", "plan", "evaluate", "demo")
RUNS = ("select", "rank", "plan", "demo")
# Options that are paths of data, whose content counts, or that change no result.
ASIDE = {
    *(
        "pool",
        "text",
        "embeddings",
        "embedding_field",
        "embedder",
        "max_tokens",
        "given",
        "exclude",
        "chosen",
    ),
    *(
        "out",
        "batch_size",
        "device",
        "cache",
        "threads",
        "memory",
        "overwrite",
        "quiet",
        "verbose",
        "plan",
        "json",
    ),
}


def option(default: Any, text: str, *, on: tuple[str, ...] = ALL, many: bool = False, **more: Any) -> Any:
    """A field with its help text and the commands that take it."""
    meta = {"help": text, "on": on, "many": many, **more}
    return field(default=default, metadata=meta)


@dataclass
class Config:
    """One run of a `smartgpu` command. Field names are flags (--embedding-field) and YAML keys (embedding_field)."""

    pool: str | None = option(
        None,
        "json, jsonl, csv, parquet (a file, a folder of shards or a glob), a HF dataset folder, or embeddings alone "
        "(npy, npz, safetensors, parquet with an embeddings column)",
        on=("select", "rank", "plan", "evaluate"),
        positional=True,
    )
    k: int | float | None = option(
        None,
        "rows to choose: an integer, or a share in (0, 1] with a decimal point",
        on=("select", "plan", "demo"),
        short="-k",
    )
    sizes: Sequence[int | float] | None = option(
        None,
        "several budgets cut out of one ranking, counts or shares: 0.01 0.05 5000",
        on=("select", "plan"),
        many=True,
    )
    coverage: float | None = option(
        None,
        "stop at the smallest prefix that reaches this share of what all rows would give",
        on=("select", "plan"),
    )
    out: str | None = option(None, "output folder", on=RUNS)
    chosen: str | None = option(
        None,
        "rows to score: an output folder, row numbers (one a line, or npy), or rows with a source_row field",
        on=("evaluate",),
    )
    format: str | None = option(
        None, "format of the chosen rows (default: the pool's)", on=RUNS, choices=tuple(FORMATS)
    )
    objective: str = option("facility_location", "what to maximise", choices=tuple(OBJECTIVES))
    lam: float | None = option(None, "lambda of graph_cut (default 0.4) or log_det (default 1)")
    similarity: str = option("cosine", "similarity of two rows", choices=tuple(KINDS))
    gamma: float | None = option(None, "gamma of rbf (default 1 / features)")
    given: str | None = option(
        None,
        "rows already chosen: they count but are not returned (as --chosen)",
        on=("select", "rank", "plan"),
    )
    exclude: str | None = option(
        None, "rows that may not be chosen (as --chosen)", on=("select", "rank", "plan")
    )
    text: Sequence[str] | None = option(None, "field or fields that hold the text to embed", many=True)
    embeddings: str | None = option(None, "file with one embedding per pool row, in pool order")
    embedding_field: str | None = option(None, "column or array that holds the embeddings")
    embedder: str | None = option(
        None, "embedding model: a folder, or a name in the Hugging Face cache (default: all-MiniLM-L6-v2)"
    )
    max_tokens: int | None = option(None, "cut texts here (default: the model's own limit)")
    batch_size: int = option(64, "texts embedded at a time")
    device: str | None = option(None, "torch device for embedding (default: the best there is)")
    cache: str | None = option(None, "folder of the embedding cache, or 'off' (default: ~/.cache/smartgpu)")
    backend: str = option("auto", "what computes", choices=NAMES)
    maximizer: str = option("lazy", "how the greedy picks are found", choices=MAXIMIZERS, on=RUNS)
    precision: str = option("auto", "triton only: what features and their products are", choices=PRECISIONS)
    tie_break: str = option("low", "index that wins among equal gains", choices=TIES, on=RUNS)
    epsilon: float = option(0.01, "stochastic only: n / k ln(1 / epsilon) candidates a pick", on=RUNS)
    seed: int = option(0, "stochastic only", on=RUNS)
    threads: int | None = option(None, "CPU threads (default: all)")
    memory: str | None = option(
        None, "memory beyond the input, bytes or '4GB' (default: an eighth of what is free)"
    )
    overwrite: bool = option(False, "start anew, replacing what OUT holds of another run", on=RUNS)
    quiet: bool = option(False, "no progress bars, warnings only", on=(*ALL, "doctor"), short="-q")
    verbose: bool = option(
        False, "more log lines, and where an error came from", on=(*ALL, "doctor"), short="-v"
    )
    plan: bool = option(
        False, "print what it will allocate, and about how long it takes", on=("select", "rank")
    )
    json: bool = option(False, "print JSON", on=("evaluate", "plan", "doctor"))

    def make_objective(self) -> Objective:
        """The objective that the options name. ValueError where lam is given for one without."""
        if self.lam is None:
            return as_objective(self.objective)
        kinds = {kind.name: kind for kind in (GraphCut, LogDet)}
        if self.objective not in kinds:
            raise ValueError(f"lam is an option of graph_cut and log_det, not of {self.objective}")
        return kinds[self.objective](self.lam)

    def make_similarity(self) -> Similarity:
        """The similarity that the options name. ValueError where gamma is given for one without."""
        if self.gamma is None:
            return as_similarity(self.similarity)
        if self.similarity != Rbf.name:
            raise ValueError(f"gamma is an option of rbf, not of {self.similarity}")
        return Rbf(self.gamma)

    def how(self) -> dict[str, Any]:
        """Keyword arguments of select() that say how to run."""
        names = ("maximizer", "tie_break", "epsilon", "seed", "threads", "memory", "precision")
        return {"backend": resolve(self.backend), **{name: getattr(self, name) for name in names}}

    def record(self) -> dict[str, Any]:
        """The options on which the result depends, as JSON values. Data enter by content (runs.py), not by path."""
        options = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in ASIDE}
        return {**options, "backend": resolve(self.backend)}


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
        value = value if isinstance(value, list) else [value]
        return [_scalar(f, v, where) for v in value]
    return _scalar(f, value, where)


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
    if kind == "bool":
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
