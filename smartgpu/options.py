"""How to run: everything that does not change what is being maximised."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from smartgpu.backends import NAMES
from smartgpu.similarity import choose

MAXIMIZERS = ("lazy", "naive", "stochastic", "threshold")
EXACT = ("lazy", "naive")  # the greedy answer itself
TIES = ("low", "high")
FALLBACKS = ("numpy",)
PRECISIONS = ("auto", "fp16", "bf16", "tf32", "tf32x3", "ieee")


@dataclass(frozen=True)
class Options:
    """How a selection runs.

    backend    "auto" (the fastest there is), "numpy", "triton" (an NVIDIA GPU), or "reference" (float64, naive: for
               checks on small pools)
    maximizer  "lazy" (exact), "naive" (exact, the slow definition), "stochastic" (a sample per pick),
               "threshold" (any row whose gain is at least 1 - epsilon of the largest)
    tie_break  "low" or "high": which index wins among equal gains
    epsilon    stochastic: sample size n / k ln(1 / epsilon); threshold: each is 1 - epsilon of the one before;
               in (0, 1)
    seed       stochastic only
    threads    worker threads of the CPU backend; None is all this process may use
    memory     bytes that a selection may take beyond its input, or "4GB"; None is an eighth of what is free. On a GPU
               bytes of its memory, without tensors that are used where they are; None is half of what is free there,
               and no more than what is free is ever taken
    progress   a bar on stderr
    precision  triton only, what features and their products are: "fp16", "bf16", "tf32", "tf32x3" (nearly float32) or
               "ieee" (float32, no tensor cores); "auto" is "fp16" for cosines, exact for 16-bit dot products, and else
               "tf32x3". Inputs are rounded to it once; sums are exact in all of them
    fallback   "numpy": a selection for which a GPU has not the memory, or which it fails to finish, is made anew by
               that backend, with its own default memory; the result's `backend` says so. None: it is an error
    checkpoint a file (.npz) to which the picks so far are written every few seconds: the same call goes on from it,
               with the same result; a call with other data or options is refused, with what differs
    report     called with (row, gain) after every pick
    polish     exchange chosen rows for others while f rises, once greedy is done: True until no swap of one row for
               another does, and then a little beyond; a float for so many seconds of search at most, an int for so
               many swaps, "0.01%" until all swaps of a pass over the candidates raise f by less than that. The result
               is ranked greedily within itself, and says how much better any choice could be (docs/polish.md). For
               facility location, its targets and their sums with quality; `report` and `checkpoint` are of greedy
    plan       print the plan of the call to stderr first: what it will allocate, and about how long it will take
    process_group  a torch.distributed.ProcessGroup, or "world" for the default one: its processes, which all make this
               same call, choose the rows together, each with its share of the represented rows. The result, the same on
               all of them, is bit for bit that of one process (docs/scaling.md). The checkpoint is that of the first
    timeout    seconds that a process of the group may keep the others waiting before they end the call
    """

    backend: str = "auto"
    maximizer: str = "lazy"
    tie_break: str = "low"
    epsilon: float = 0.01
    seed: int = 0
    threads: int | None = None
    memory: int | str | None = None
    progress: bool = False
    precision: str = "auto"
    fallback: str | None = None
    checkpoint: str | Path | None = None
    report: Callable[[int, float], None] | None = None
    plan: bool = False
    polish: bool | int | float | str | None = None
    process_group: Any = None
    timeout: float = 600.0

    def __post_init__(self) -> None:
        choose(self.backend, NAMES, "backend")
        choose(self.maximizer, MAXIMIZERS, "maximizer")
        choose(self.tie_break, TIES, "tie_break")
        choose(self.precision, PRECISIONS, "precision")
        if self.fallback is not None:
            choose(self.fallback, FALLBACKS, "fallback")
        _number("epsilon", self.epsilon, float, 0, 1, open_ends=True)
        _number("seed", self.seed, int, 0, 2**63)
        if self.threads is not None:
            _number("threads", self.threads, int, 1, 4096)
        _number("timeout", self.timeout, float, 0, 1e9, open_ends=True)
        if self.memory is not None:
            object.__setattr__(self, "memory", parse_bytes(self.memory))
        object.__setattr__(self, "polish", as_polish(self.polish))
        for name in ("seed", "threads", "epsilon"):  # plain numbers: they are written as JSON
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, float(value) if name == "epsilon" else int(value))

    @property
    def search(self) -> dict[str, Any]:
        """How picks are searched for: what maximize() takes."""
        return {name: getattr(self, name) for name in ("maximizer", "tie_break", "epsilon", "seed")}

    def to_dict(self) -> dict[str, Any]:
        """What a result depends on, or its cost: not where picks are told of."""
        names = [f.name for f in dataclasses.fields(self)]
        aside = ("checkpoint", "report", "plan", "process_group", "timeout")
        return {name: getattr(self, name) for name in names if name not in aside}


def make_options(given: dict[str, Any]) -> Options:
    """Options from keyword arguments. TypeError for an unknown one, with the nearest known name."""
    known = [f.name for f in dataclasses.fields(Options)]
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; options are {', '.join(known)}"
            raise TypeError(f"unknown option {name!r}{hint}")
    return Options(**given)


def as_polish(value: Any) -> bool | int | float | str | None:
    """True, a number of seconds (float) or of swaps (int), or a share ("0.01%"), more than 0; None for False too."""
    if value is None or isinstance(value, (bool, np.bool_)):
        return True if value else None
    if isinstance(value, str):
        parse_share(value)
        return value.strip()
    if not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(
            "polish must be True, a number of seconds (a float) or of swaps (an integer), or a share such as "
            f"'0.01%', got {value!r}"
        )
    if not 0 < value < np.inf:
        raise ValueError(f"polish must be more than 0 seconds or swaps, and finite, got {value}")
    return float(value) if isinstance(value, (float, np.floating)) else int(value)


def parse_share(value: str) -> float:
    """ "0.01%" -> 1e-4, between 0 and 100 %."""
    match = re.fullmatch(r"\s*([0-9.]+(?:e-?[0-9]+)?)\s*%\s*", value)
    try:
        share = float(match[1]) / 100 if match else 0.0
    except ValueError:
        share = 0.0
    if not 0 < share < 1:
        raise ValueError(f"polish must be a share between 0% and 100%, such as '0.01%', got {value!r}")
    return share


def parse_bytes(value: int | str) -> int:
    """2_000_000, "2GB", "512 MiB" -> bytes (1 GB is 10^9, 1 GiB is 2^30)."""
    if isinstance(value, str):
        match = re.fullmatch(r"\s*([0-9.]+)\s*([kmgt]?)(i?)b?\s*", value, re.IGNORECASE)
        if match:
            number, prefix, binary = match.groups()
            base = 1024 if binary else 1000
            try:
                size = int(float(number) * base ** " kmgt".index(prefix.lower() or " "))
            except ValueError:
                size = 0
            if size > 0:
                return size
    elif not isinstance(value, bool) and isinstance(value, (int, np.integer)) and value > 0:
        return int(value)
    raise ValueError(f"memory must be a positive number of bytes or a size like '4GB', got {value!r}")


def bytes_text(size: float, up: bool = False) -> str:
    """93165432 -> '93.2MB', as parse_bytes reads it; rounded up where it is a least."""
    for unit in ("", "k", "M", "G", "T"):
        if size < 999.5 or unit == "T":
            break
        size /= 1000
    if not unit:
        return f"{int(size)} bytes"
    digits = 2 if size < 10 else 1 if size < 100 else 0
    step = 10.0**-digits
    shown = np.ceil(size / step) * step if up else size
    return f"{shown:.{digits}f}{unit}B"


def _number(name: str, value: Any, kind: type, low: float, high: float, open_ends: bool = False) -> None:
    whole = (int, np.integer)
    allowed = (*whole, float, np.floating) if kind is float else whole
    if isinstance(value, bool) or not isinstance(value, allowed):
        raise TypeError(f"{name} must be {'a number' if kind is float else 'an integer'}, got {value!r}")
    if not (low < value < high if open_ends else low <= value <= high):
        raise ValueError(
            f"{name} must lie in {'(' if open_ends else '['}{low}, {high}{')' if open_ends else ']'}, got {value}"
        )
