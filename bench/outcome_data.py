"""The table of tasks, what is held out of it, and the ways in which rows are spoiled."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

HELD_ROWS = 0.2  # of the rows of every task that stays
HELD_TASKS = 0.1  # of the tasks
COPIES = 10  # of each row that is duplicated
LIKENESS = 0.5  # cosine of a garbage row's embedding and the original's
DAMAGES = ("responses", "garbage", "copies")


@dataclass(frozen=True)
class Table:
    """n rows of a pool.

    x         (n, d) float32 unit rows, embeddings of the prompts
    task      (n,) names
    prompt    (n,) int64, equal where the texts are
    response  (n,) int64 places in `texts`
    texts     the distinct responses, sorted
    origin    (n,) int64: the row of the undamaged table that this is, or is a copy of
    marked    (n,) bool: spoiled by damage()
    """

    x: np.ndarray
    task: np.ndarray
    prompt: np.ndarray
    response: np.ndarray
    texts: list[str]
    origin: np.ndarray
    marked: np.ndarray

    @classmethod
    def of(cls, x: np.ndarray, task: list[str], prompts: list[str], responses: list[str]) -> Table:
        x = np.asarray(x, np.float32)
        x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
        n = len(x)
        texts, response = np.unique(np.asarray(responses, object), return_inverse=True)
        prompt = np.unique(np.asarray(prompts, object), return_inverse=True)[1]
        task = np.asarray(task, object)
        return cls(x, task, prompt, response, texts.tolist(), np.arange(n), np.zeros(n, bool))

    def __len__(self) -> int:
        return len(self.x)

    def take(self, rows: np.ndarray) -> Table:
        arrays = ("x", "task", "prompt", "response", "origin", "marked")
        return dataclasses.replace(self, **{name: getattr(self, name)[rows] for name in arrays})

    def fingerprint(self) -> str:
        digest = hashlib.sha256(np.ascontiguousarray(self.x).tobytes())
        for part in (self.task, self.texts):
            digest.update("\0".join(part).encode())
        digest.update(self.response.astype(np.int64).tobytes())
        return digest.hexdigest()[:12]


def read(folder: Path) -> Table:
    """The table of shared data: tasks.parquet and minilm.npy."""
    import pyarrow.parquet as pq

    rows = pq.read_table(folder / "tasks.parquet", columns=["task", "prompt", "response"]).to_pydict()
    return Table.of(np.load(folder / "minilm.npy"), rows["task"], rows["prompt"], rows["response"])


def few(table: Table, tasks: int, rows: int) -> Table:
    """Evenly spaced tasks, and the first rows of each: for a look."""
    names = list(dict.fromkeys(table.task))
    kept = [names[i] for i in np.linspace(0, len(names) - 1, tasks).astype(int)]
    places = np.concatenate([np.flatnonzero(table.task == name)[:rows] for name in kept])
    small = table.take(places)
    return dataclasses.replace(small, origin=np.arange(len(small)))


# -- what is held out --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Split:
    """pool: rows to choose from; seen, new: held-out rows of tasks of the pool, and of tasks that it does not have."""

    pool: np.ndarray
    seen: np.ndarray
    new: np.ndarray


def family(task: str) -> str:
    """The data set that a task is made from, as far as its name tells: the first word, after source and number."""
    name = re.sub(r"^(sub)?task\d+_", "", task.split("/", 1)[-1]).lower()
    return re.match(r"[a-z]+|", name)[0] or name


def split(table: Table, seed: int) -> Split:
    """Hold out whole families of tasks, together HELD_TASKS of the tasks at most, and HELD_ROWS of the rows of every
    other task (one at least). A held-out row whose prompt is also in the pool is left out of both.
    """
    rng = np.random.default_rng([seed, 0])
    names = list(dict.fromkeys(table.task))
    members: dict[str, list[str]] = {}
    for name in names:
        members.setdefault(family(name), []).append(name)
    room, out = int(HELD_TASKS * len(names)), set()
    for some in rng.permutation(np.array(list(members), object)):
        if len(members[some]) <= room:
            out.update(members[some])
            room -= len(members[some])
    new = np.isin(table.task, list(out))
    seen = np.zeros(len(table), bool)
    for name in names:
        if name not in out:
            rows = np.flatnonzero(table.task == name)
            seen[rng.permutation(rows)[: max(1, round(HELD_ROWS * len(rows)))]] = True
    pool = ~(seen | new)
    known = np.isin(table.prompt, table.prompt[pool])
    return Split(*(np.flatnonzero(mask) for mask in (pool, seen & ~known, new & ~known)))


# -- damage ------------------------------------------------------------------------------------------------------------


def damage(pool: Table, kind: str, share: float, seed: int) -> Table:
    """The pool with round(share n) rows spoiled, which `marked` says.

    responses   they answer each other's prompts; prompts and embeddings stay, so that no selection can tell
    garbage     as well, their embeddings become LIKENESS x + sqrt(1 - LIKENESS^2) u, u a random unit vector
                orthogonal to x: a stand-in for a garbled prompt, which is not embedded anew
    copies      that many rows are added: COPIES of each of some rows, behind all others
    """
    rng = np.random.default_rng([seed, 1, DAMAGES.index(kind), round(1000 * share)])
    count = round(share * len(pool))
    if kind == "copies":
        base = rng.permutation(len(pool))[: -(-count // COPIES)]
        extra = pool.take(np.repeat(base, COPIES)[:count])
        arrays = ("x", "task", "prompt", "response", "origin")
        joined = {name: np.concatenate([getattr(pool, name), getattr(extra, name)]) for name in arrays}
        return dataclasses.replace(pool, **joined, marked=np.arange(len(pool) + count) >= len(pool))
    rows = rng.permutation(len(pool))[:count]  # in a ring: each gets the next one's response
    response, x, marked = pool.response.copy(), pool.x, np.zeros(len(pool), bool)
    response[rows] = pool.response[np.roll(rows, -1)]
    marked[rows] = True
    if kind == "garbage":
        x = x.copy()
        u = rng.standard_normal((count, x.shape[1])).astype(np.float32)
        u -= (u * x[rows]).sum(axis=1, keepdims=True) * x[rows]
        u /= np.linalg.norm(u, axis=1, keepdims=True)
        x[rows] = LIKENESS * x[rows] + np.float32(np.sqrt(1 - LIKENESS**2)) * u
    return dataclasses.replace(pool, x=x, response=response, marked=marked)
