"""What chosen rows are worth to held-out prompts: nearest row, scores of responses, bootstrap intervals."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.outcome_data import Table

BLOCK = 1024  # prompts whose similarities are held at once
REPLICATES = 1000
LEVEL = 95  # per cent, of intervals
METRICS = ("coverage", "rouge1", "exact", "rouge1_tasks")
UNITS = ("prompts", "tasks")  # what the bootstrap draws
PERCENTILES = (1, 5, 10, 50)
CHUNK = 4096  # pairs of responses that a process scores at a time


def nearest(x: np.ndarray, rows: np.ndarray, prompts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each of `prompts` (r, d), the most similar of x[rows]: (r,) rows of x and (r,) float32 cosines.

    Unit rows. Cosines are rounded to multiples of 2^-22, the lowest row wins ties. O(r |rows| d).
    """
    rows = np.sort(rows)
    columns = np.ascontiguousarray(x[rows].T)
    where, value = np.empty(len(prompts), np.int64), np.empty(len(prompts), np.float32)
    for start in range(0, len(prompts), BLOCK):
        part = slice(start, start + BLOCK)
        s = prompts[part] @ columns
        s += np.float32(3)  # to quanta: equal rows differ in the last bit, by their place in the product
        s -= np.float32(3)
        at = s.argmax(axis=1)
        where[part], value[part] = rows[at], s[np.arange(len(s)), at]
    return where, value


# -- scores of responses -----------------------------------------------------------------------------------------------


class _Tokens:
    """rouge-score's own tokenizer, each text once."""

    def __init__(self):
        from rouge_score.tokenizers import DefaultTokenizer

        self.inner, self.known = DefaultTokenizer(use_stemmer=False), {}

    def tokenize(self, text: str) -> list[str]:
        if text not in self.known:
            self.known[text] = self.inner.tokenize(text)
        return self.known[text]


_worker: dict[str, Any] = {}  # what a scoring process holds


def _start(texts: list[str]) -> None:
    from rouge_score.rouge_scorer import RougeScorer

    _worker.update(texts=texts, scorer=RougeScorer(["rouge1"], tokenizer=_Tokens()))


def _score(pairs: np.ndarray) -> np.ndarray:
    texts, scorer = _worker["texts"], _worker["scorer"]
    found = [scorer.score(texts[i], texts[j])["rouge1"].fmeasure for i, j in pairs.tolist()]
    return np.array(found, np.float32)


class Scores:
    """ROUGE-1 F1 by rouge-score (no stemming) and exact match, of pairs of responses.

    Exact match: equal but for case and white space. Every distinct pair is scored once, by `processes` processes of
    their own, and kept: 12 bytes each.
    """

    def __init__(self, texts: list[str], processes: int = 2):
        self.texts = texts
        plain = [" ".join(text.casefold().split()) for text in texts]
        self.plain = np.unique(np.array(plain, object), return_inverse=True)[1]
        self.keys, self.values = np.empty(0, np.int64), np.empty(0, np.float32)
        self.pool = ProcessPoolExecutor(
            processes, multiprocessing.get_context("spawn"), initializer=_start, initargs=(texts,)
        )

    def close(self) -> None:
        self.pool.shutdown(cancel_futures=True)

    def exact(self, truth: np.ndarray, answer: np.ndarray) -> np.ndarray:
        """(r,) float32, 0 or 1, of responses by their places in texts."""
        return (self.plain[truth] == self.plain[answer]).astype(np.float32)

    def rouge1(self, truth: np.ndarray, answer: np.ndarray) -> np.ndarray:
        """(r,) float32 in [0, 1]; 0 where a response has no letter a-z and no digit, whatever the other is."""
        wanted = truth.astype(np.int64) * len(self.texts) + answer
        every = np.unique(wanted)
        place = np.searchsorted(self.keys, every)
        new = np.append(self.keys, -1)[place] != every
        if new.any():
            values = self._score(every[new])
            self.keys = np.insert(self.keys, place[new], every[new])
            self.values = np.insert(self.values, place[new], values)
        return self.values[np.searchsorted(self.keys, wanted)]

    def _score(self, keys: np.ndarray) -> np.ndarray:
        pairs = np.stack(np.divmod(keys, len(self.texts)), axis=1)
        chunks = [pairs[i : i + CHUNK] for i in range(0, len(pairs), CHUNK)]
        return np.concatenate([*self.pool.map(_score, chunks)])


# -- bootstrap ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """Figures of one choice on one group of prompts, in the order of METRICS, and their bootstrap replicates."""

    value: np.ndarray  # (metrics,)
    replicates: dict[str, np.ndarray]  # for each of UNITS (REPLICATES, metrics)

    def __sub__(self, other: Sample) -> Sample:
        """Of the same prompts, drawn in the same way: a paired difference."""
        drawn = {unit: r - other.replicates[unit] for unit, r in self.replicates.items()}
        return Sample(self.value - other.value, drawn)

    def figures(self) -> dict[str, dict[str, Any]]:
        """{metric: {"value", "prompts": [low, high], "tasks": [low, high]}}: percentile intervals."""
        out = {}
        for at, metric in enumerate(METRICS):
            out[metric] = {"value": round(float(self.value[at]), 5)}
            for unit, drawn in self.replicates.items():
                out[metric][unit] = [round(v, 4) for v in interval(drawn[:, at])]
        return out


def interval(values: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(values, [(100 - LEVEL) / 2, (100 + LEVEL) / 2])
    return float(low), float(high)


class Group:
    """Held-out prompts that are reported together, and 2 x REPLICATES ways to draw them anew.

    A figure is a ratio of sums over prompts: coverage sum level_i / sum level_i(pool), with level_i the similarity of
    prompt i to its nearest chosen row, 0 at least, and level_i(pool) that to its nearest row of the whole pool;
    rouge1 and exact means over prompts; rouge1_tasks the mean over tasks of the means over their prompts.
    """

    def __init__(self, held: Table, best: np.ndarray, seed: int):
        """held: the prompts; best (r,): their similarities to the nearest row of the whole pool."""
        self.held = held
        task = np.unique(held.task, return_inverse=True)[1]
        self.even = (1 / np.bincount(task)[task]).astype(np.float32)
        one = np.ones(len(held), np.float32)
        self.below = np.stack([np.maximum(best, 0), one, one, self.even], axis=1).astype(np.float32)
        rng = np.random.default_rng([seed, 2])
        counts = np.stack(
            [
                np.bincount(rng.integers(0, len(held), len(held)), minlength=len(held))
                for _ in range(REPLICATES)
            ]
        )
        drawn = rng.integers(0, task.max() + 1, (REPLICATES, task.max() + 1))
        tasks = np.stack([np.bincount(some, minlength=task.max() + 1) for some in drawn])
        self.weights = {"prompts": counts.astype(np.float32), "tasks": tasks[:, task].astype(np.float32)}
        self.divided = {unit: w @ self.below for unit, w in self.weights.items()}

    def sample(self, similarity: np.ndarray, rouge1: np.ndarray, exact: np.ndarray) -> Sample:
        """From (r,) values of each prompt."""
        above = np.stack([np.maximum(similarity, 0), rouge1, exact, rouge1 * self.even], axis=1)
        above = above.astype(np.float32)
        value = above.sum(axis=0, dtype=np.float64) / self.below.sum(axis=0, dtype=np.float64)
        drawn = {unit: (w @ above) / self.divided[unit] for unit, w in self.weights.items()}
        return Sample(value, drawn)


def seeds_interval(values: Iterable[float]) -> tuple[float, float, float]:
    """(mean, low, high): the percentile bootstrap over a few seeds, all S^S draws of them.

    Each seed holds out other rows and tasks, so its figure varies with the prompts as well. Of five values such an
    interval is somewhat too narrow.
    """
    values = np.asarray(list(values), np.float64)
    means = np.zeros(1)
    for _ in values:  # the sums of all draws, one seed more at a time
        means = np.add.outer(means, values).ravel()
    return float(values.mean()), *interval(means / len(values))
