"""Quality against diversity on Alpaca: QDIT, its baselines and its claims (docs/quality.md).

python bench/quality.py --out FILE [--quick]

One JSON line for each set of rows, when it is measured; what FILE holds already is not measured again. Two studies:
"alpaca", all rows by MiniLM and cosine, three raters and three k; "others", every fifth row by other similarities and
other embeddings. Needs scikit-learn.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

import smartgpu
from bench.cases import alpaca_path
from bench.machine import describe, package_version
from bench.run import append
from smartgpu import FacilityLocation, QualityDiversity, baselines, select
from smartgpu.alpha import TAIL, Cover
from smartgpu.job import Job
from smartgpu.options import Options
from smartgpu.similarity import Rbf, as_similarity

RATERS = ("ds2_gpt4o_mini", "ds2_llama31_8b", "ds2_mistral7b_v03")
MAIN = RATERS[0]
KS = (3000, 1000, 10_000)  # the paper's first
SEEDS = range(5)
TAUS = (0.5, 0.7, 0.9)  # cosines from which threshold skips a row
MEAN = (0.01, 0.02, 0.05, 0.1, 0.3, 0.5, 0.7, 0.9)
FEW = (0.1, 0.5)
PAPER = (0.5, 0.7, 0.9)  # the paper's best, in literal sums
ITERATIONS = {1000: 15, 3000: 8, 10_000: 3}  # of k-means, for the time it takes
EVERY = 5  # rows of the second study
SVD = 256
# similarity -> (its kind, what a cosine of unit rows is in it)
KINDS = {
    "cosine": (as_similarity("cosine"), lambda c: c),
    "cosine_shifted": (as_similarity("cosine_shifted"), lambda c: (1 + c) / 2),
    "rbf, gamma 1": (Rbf(1.0), lambda c: float(np.exp(2 * c - 2))),
}


@dataclass
class Data:
    folder: Path
    every: int

    def _rows(self, n: int) -> np.ndarray:
        return np.arange(0, n, self.every)

    @cached_property
    def minilm(self) -> np.ndarray:
        x = np.load(self.folder / "minilm.npy", mmap_mode="r", allow_pickle=False)
        return np.asarray(x[self._rows(len(x))], np.float32)

    @cached_property
    def quality(self) -> dict[str, np.ndarray]:
        import pyarrow.parquet as pq

        table = pq.read_table(self.folder / "quality.parquet", columns=list(RATERS))
        rows = self._rows(table.num_rows)
        return {name: table.column(name).to_numpy()[rows].astype(np.float64) for name in RATERS}

    @cached_property
    def tfidf(self) -> np.ndarray:
        """Unit rows: words by TF-IDF, SVD components of them, of the texts that MiniLM embeds."""
        import pyarrow.parquet as pq
        from sklearn.decomposition import TruncatedSVD
        from sklearn.feature_extraction.text import TfidfVectorizer

        table = pq.read_table(self.folder / "alpaca.parquet", columns=["instruction", "input"]).to_pylist()
        texts = [f"{r['instruction']}\n{r['input']}" if r["input"] else r["instruction"] for r in table]
        words = TfidfVectorizer(sublinear_tf=True, min_df=2).fit_transform(texts[:: self.every])
        x = TruncatedSVD(SVD, random_state=0).fit_transform(words).astype(np.float32)
        norms = np.linalg.norm(x, axis=1, keepdims=True)
        return np.divide(x, norms, out=np.zeros_like(x), where=norms > 0)


@dataclass
class Study:
    """Writes rows, and skips those that are there."""

    out: Path
    quick: bool
    held: set[str] = field(default_factory=set)
    covers: dict[tuple[int, str], Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.out.is_file():
            for line in self.out.read_text(encoding="utf-8").splitlines():
                self.held.add(_key(json.loads(line)["what"]))

    def lacks(self, **what: Any) -> bool:
        return _key(what) not in self.held

    def cover(self, x: np.ndarray, similarity: str) -> Cover:
        key = (id(x), similarity)
        if key not in self.covers:
            job = Job.check(x, "facility_location", KINDS[similarity][0], Options())
            self.covers[key] = Cover(FacilityLocation(), job.ground())
        return self.covers[key]

    def write(
        self, x: np.ndarray, q: np.ndarray, rows: np.ndarray, seconds: float, by: str, **what: Any
    ) -> None:
        """Measure rows by the similarity `by`, and write them, where that is not there yet."""
        if _key(what) in self.held:
            return
        coverage, worst = self.cover(x, by)(rows)
        row = {
            "benchmark": "quality",
            "what": what,
            "n": len(x),
            "rows": len(rows),
            "coverage": coverage,
            "worst": {str(p): v for p, v in worst.items()},
            "quality_mean": float(q[rows].mean()),
            "quality_tail": float(np.percentile(q[rows], TAIL)),
            "quality_min": float(q[rows].min()),
            "seconds": round(seconds, 3),
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            **self.machine,
        }
        append(self.out, row)
        self.held.add(_key(what))
        print(
            f"{what}: coverage {coverage:.2%}, quality {row['quality_mean']:.3f}, {seconds:.1f} s", flush=True
        )

    @cached_property
    def machine(self) -> dict[str, Any]:
        told = describe()
        told["versions"] |= {"scikit-learn": package_version("scikit-learn")}
        return {"quick": self.quick, **told}


def _key(what: dict[str, Any]) -> str:
    return json.dumps(what, sort_keys=True)


def alpaca(study: Study, data: Data, ks: tuple[int, ...]) -> None:
    """All rows, MiniLM, cosine."""
    x = data.minilm
    same = {"study": "alpaca", "embedding": "minilm", "similarity": "cosine"}

    def write(rows: np.ndarray, seconds: float, rater: str, **what: Any) -> None:
        study.write(x, data.quality[rater], rows, seconds, "cosine", **same, rater=rater, **what)

    most = max(ks)
    if any(
        study.lacks(**same, rater=r, k=k, method="qdit", scale="any", alpha=0.0) for r in RATERS for k in ks
    ):
        whole = select(x, most)  # the same for all raters; every prefix is the selection of that size
        for rater in RATERS:
            for k in ks:
                seconds = sum(whole.seconds.values()) if k == most else 0.0
                write(whole.indices[:k], seconds, rater, k=k, method="qdit", scale="any", alpha=0.0)
    for rater in RATERS:
        q = data.quality[rater]
        if not any(study.lacks(**same, rater=rater, k=k, method="threshold", tau=TAUS[-1]) for k in ks):
            continue  # the last of these
        top = baselines.quality_only(x, most, q)
        for k in ks:
            write(top.indices[:k], 0.0, rater, k=k, method="qdit", scale="any", alpha=1.0)
            for seed in SEEDS:
                rows = baselines.random(x, k, seed).indices
                write(rows, 0.0, rater, k=k, method="random", seed=seed)
        for tau in TAUS:
            found = baselines.threshold(x, most, q, tau)
            for k in ks:
                if found.k >= k:
                    seconds = found.seconds["select"] if k == most else 0.0
                    write(found.indices[:k], seconds, rater, k=k, method="threshold", tau=tau)
    for k in ks:
        for rater in RATERS:
            for scale, alpha in settings(rater == MAIN, k == ks[0]):
                what = {"k": k, "method": "qdit", "scale": scale, "alpha": alpha}
                if study.lacks(**same, rater=rater, **what):
                    found = select(x, k, QualityDiversity(alpha, data.quality[rater], scale))
                    write(found.indices, sum(found.seconds.values()), rater, **what)
        what = {"k": k, "method": "cluster", "iterations": ITERATIONS.get(k, 10)}
        if any(study.lacks(**same, rater=rater, **what) for rater in RATERS):
            start = time.perf_counter()
            label = baselines.kmeans(x, k, iterations=what["iterations"])
            seconds = time.perf_counter() - start
            for rater in RATERS:
                write(baselines.cluster(x, k, data.quality[rater], label).indices, seconds, rater, **what)


def settings(first_rater: bool, first_k: bool) -> Iterator[tuple[str, float]]:
    """(scale, alpha) between the ends, most for the first rater and k."""
    if first_k:
        yield from (("paper", alpha) for alpha in PAPER)
    yield from (("mean", alpha) for alpha in (MEAN if first_rater and first_k else FEW))


def others(study: Study, data: Data) -> None:
    """Every fifth row: chosen by each similarity and embedding, and judged by each."""
    pools = {"minilm": data.minilm, "tfidf": data.tfidf}
    q, n = data.quality[MAIN], len(data.minilm)
    k = round(KS[0] * n / 52_002)
    for embedding, similarity in [("minilm", name) for name in KINDS] + [("tfidf", "cosine")]:
        x, (kind, of_cosine) = pools[embedding], KINDS[similarity]
        judges = [(embedding, similarity)]
        if similarity == "cosine":
            judges.append(("tfidf" if embedding == "minilm" else "minilm", "cosine"))
        same = {"study": "others", "embedding": embedding, "similarity": similarity, "rater": MAIN, "k": k}
        for what, choose in ways(x, k, q, kind, of_cosine):
            todo = [j for j in judges if study.lacks(**same, **what, judge=list(j))]
            if todo:
                start = time.perf_counter()
                rows = choose()
                seconds = time.perf_counter() - start
                for judge in todo:
                    study.write(
                        pools[judge[0]], q, rows, seconds, judge[1], **same, **what, judge=list(judge)
                    )


def ways(
    x: np.ndarray, k: int, q: np.ndarray, kind: Any, of_cosine: Any
) -> Iterator[tuple[dict[str, Any], Any]]:
    """(what, a function that chooses k rows)."""
    for alpha in (0.0, *MEAN, 1.0):
        what = {"method": "qdit", "scale": "any" if alpha in (0, 1) else "mean", "alpha": alpha}
        yield what, lambda a=alpha: select(x, k, QualityDiversity(a, q), kind).indices
    for seed in SEEDS:
        yield {"method": "random", "seed": seed}, lambda s=seed: baselines.random(x, k, s).indices
    tau = 0.7
    yield (
        {"method": "threshold", "tau": tau},
        lambda: baselines.threshold(x, k, q, of_cosine(tau), kind).indices,
    )
    yield {"method": "cluster", "iterations": 15}, lambda: baselines.cluster(x, k, q, iterations=15).indices


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="JSON lines are added to it")
    parser.add_argument("--quick", action="store_true", help="a rehearsal: every 20th row, small k")
    given = parser.parse_args(argv)
    folder = alpaca_path().parent
    print(f"smartgpu {smartgpu.__version__}, data in {folder}", flush=True)
    study = Study(given.out, given.quick)
    others(study, Data(folder, 20 if given.quick else EVERY))
    whole = Data(folder, 20 if given.quick else 1)
    alpaca(study, whole, tuple(k // 20 for k in KS) if given.quick else KS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
