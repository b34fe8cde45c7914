"""The options of the command line: one dataclass, read from flags or from a YAML file by the same names."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from smartgpu.backends import NAMES, resolve
from smartgpu.baselines import BASELINES, TAU
from smartgpu.exports import TRAINERS
from smartgpu.io import FORMATS
from smartgpu.mixture import METHODS, ORDERS
from smartgpu.mixture.mixer import SEED
from smartgpu.objectives import NAMED, OBJECTIVES, FacilityLocation, GraphCut, LogDet, Objective, as_objective
from smartgpu.objectives.quality import MISSING, SCALE, SCALES, check_alpha
from smartgpu.objectives.targets import TARGETS
from smartgpu.options import FALLBACKS, MAXIMIZERS, PRECISIONS, TIES
from smartgpu.partition import PARTITIONS
from smartgpu.reporting import DRAWS, PROJECTIONS, SAMPLE
from smartgpu.similarity import KINDS, Rbf, Similarity, as_similarity

ONE = ("select", "rank", "plan", "evaluate", "demo")  # a selection from one pool
ALL = (*ONE, "mix")
POOLS = (*ALL, "report", "graph")  # what reads a pool
RUNS = ("select", "rank", "plan", "demo", "mix")
MIX = ("mix",)
QDIT = ("select", "rank", "plan", "mix")
RATED = (*QDIT, "report")  # what reads quality
REPORT = ("report",)
LIMITED = ("select", "mix")
BESIDE = ("select", "rank", "plan")
# Options that are paths of data, whose content counts, or that change no result.
ASIDE = {
    *(
        "pool",
        "task_embeddings",
        "task_matrix",
        "export",
        "export_root",
        "response_field",
        "text",
        "embeddings",
        "embedding_field",
        "embedder",
        "max_tokens",
        "given",
        "exclude",
        *("given_from", "exclude_near", "target", "private"),
        "chosen",
        "quality",
        "alpha_path",
        "include_rows",
        "tokenizer",
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
        "report",
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
        on=("select", "rank", "plan", "evaluate", "mix", "report", "graph"),
        positional=("select", "rank", "plan", "evaluate", "mix", "graph"),
    )
    k: int | float | None = option(
        None,
        "rows to choose: an integer, or a share in (0, 1] with a decimal point",
        on=("select", "plan", "demo", "report"),
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
    neighbors: int | None = option(
        None, "entries of each row: its most similar rows", on=("graph",), short="-k"
    )
    symmetric: bool = option(
        False, "store a pair where either row is a neighbour of the other", on=("graph",)
    )
    no_self: bool = option(False, "no row is its own neighbour", on=("graph",))
    out: str | None = option(
        None,
        "output folder; of graph a file, .npz",
        on=(*RUNS, "report", "graph"),
        positional=("report", "graph"),
    )
    chosen: str | None = option(
        None,
        "rows to score: an output folder, row numbers (one a line, or npy), or rows with a source_row field",
        on=("evaluate",),
    )
    format: str | None = option(
        None, "format of the chosen rows (default: the pool's)", on=RUNS, choices=tuple(FORMATS)
    )
    task_field: str = option("task", "field that holds each row's task (default: task)", on=(*MIX, "report"))
    template_field: str | None = option(
        None, "field that says how a row is worded: a task's budget is split over its templates", on=MIX
    )
    n_tasks: int | None = option(None, "tasks to choose (default: all)", on=MIX)
    n_rows: int | float | None = option(
        None, "rows of the mixture, or a share of the pool; or --budget", on=MIX
    )
    method: str = option("smart", "how tasks and their budgets are chosen", on=MIX, choices=METHODS)
    order: str = option("shuffled", "order of the rows in the combined file", on=MIX, choices=ORDERS)
    sweep: Sequence[int] | None = option(
        None,
        "numbers of tasks to compare instead of writing a mixture: 8,16,32",
        on=MIX,
        many=True,
        commas=True,
    )
    export: Sequence[str] | None = option(
        None,
        "trainers to write it for, by commas",
        on=MIX,
        many=True,
        commas=True,
        choices=tuple(TRAINERS),
        none="none",
    )
    export_root: str | None = option(
        None, "path of OUT where the trainer runs (default: that of OUT here, absolute)", on=MIX
    )
    response_field: str | None = option(
        None, "field that holds the answer, for --export (default: by the usual names)", on=MIX
    )
    temperature: float = option(1.0, "of the softmax, or of the method temperature", on=MIX)
    include: Sequence[str] | None = option(None, "tasks that are chosen in any case", on=MIX, many=True)
    drop: Sequence[str] | None = option(None, "tasks that are left out", on=MIX, many=True)
    min_rows: Sequence[str] | None = option(
        None,
        "least rows of a chosen task: a number for all, or TASK=NUMBER ...",
        on=MIX,
        many=True,
        table=True,
    )
    max_rows: Sequence[str] | None = option(
        None, "most rows of a task: a number for all, or TASK=NUMBER ...", on=MIX, many=True, table=True
    )
    task_objective: str = option("graph_cut", "what selects tasks", on=MIX, choices=tuple(OBJECTIVES))
    task_lam: float | None = option(None, "lambda of the task objective (default 0.4, log_det 1)", on=MIX)
    task_similarity: str = option(
        "cosine", "similarity of two tasks", on=MIX, choices=tuple(k for k in KINDS if k != "precomputed")
    )
    task_embeddings: str | None = option(
        None, "file with a row per task, in order of first appearance (default: the mean of its rows)", on=MIX
    )
    task_matrix: str | None = option(
        None, "file with the similarities of tasks, tasks x tasks, in order of first appearance", on=MIX
    )
    row_objective: str = option(
        "facility_location", "what selects rows in a task", on=MIX, choices=(*OBJECTIVES, "random")
    )
    row_lam: float | None = option(None, "lambda of the row objective (default 0.4, log_det 1)", on=MIX)
    full_order: bool = option(False, "order all rows of the chosen tasks, in mixture.npz", on=MIX)
    objective: str = option("facility_location", "what to maximise", on=ONE, choices=tuple(NAMED))
    lam: float | None = option(None, "lambda of graph_cut (default 0.4) or log_det (default 1)", on=ONE)
    baseline: str | None = option(
        None,
        "choose by a plain rule instead, to compare with",
        on=("select",),
        choices=tuple(BASELINES),
        none="none, greedily",
    )
    tau: float | None = option(
        None,
        f"of --baseline threshold: similarity from which rows are skipped (default: {TAU})",
        on=("select",),
    )
    clusters: int | None = option(None, "of --baseline cluster: how many (default: k)", on=("select",))
    alpha: float | None = option(
        None, "0 to 1, share of quality against coverage (QDIT); of the rows of a task with mix", on=QDIT
    )
    quality_field: str | None = option(
        None, "field that holds each row's quality, of the pool or of --quality", on=RATED
    )
    quality: str | None = option(
        None, "file with the quality of each pool row, in pool order: npy, or rows with a field", on=RATED
    )
    quality_scale: str | None = option(
        None, "scale between coverage and quality", on=QDIT, choices=SCALES, none="mean"
    )
    quality_missing: str | None = option(
        None, "what takes the place of missing quality", on=RATED, choices=MISSING, none="none, refused"
    )
    alpha_path: Sequence[float] | None = option(
        None, "alphas to compare instead of selecting: 0,0.1,0.5,1", on=("select",), many=True, commas=True
    )
    budget: float | None = option(
        None, "what the chosen rows may cost together, in units of the cost", on=LIMITED
    )
    cost_field: str | None = option(
        None, "field that holds what each row costs, tokens for example", on=LIMITED
    )
    cost: str | None = option(
        None,
        "what the text of a row costs: its tokens, or its characters over 4, about as many in English",
        on=LIMITED,
        choices=("tokens", "chars"),
        none="none",
    )
    cost_text: Sequence[str] | None = option(
        None, "fields that --cost counts (default: all that hold text)", on=LIMITED, many=True
    )
    tokenizer: str | None = option(
        None,
        "of --cost tokens: a tokenizer.json, a folder that has one, or a name in the Hugging Face cache "
        "(default: all-MiniLM-L6-v2's)",
        on=LIMITED,
    )
    quota_field: str | None = option(None, "field whose labels are groups with quotas", on=LIMITED)
    quota_min: Sequence[str] | None = option(
        None,
        "least rows of a group: a count, a share of k with a point, or LABEL=NUMBER ...",
        on=LIMITED,
        many=True,
        table=True,
    )
    quota_max: Sequence[str] | None = option(None, "most rows of a group", on=LIMITED, many=True, table=True)
    quota_exact: Sequence[str] | None = option(None, "rows of a group", on=LIMITED, many=True, table=True)
    partition: str | None = option(
        None,
        "for pools too large for exact greedy: choose in the parts of a partition first, then among these",
        on=("select",),
        choices=PARTITIONS,
        none="none, exactly",
    )
    parts: int | None = option(
        None, "parts of --partition (default: of about 16,384 rows each)", on=("select",)
    )
    candidates: float | None = option(
        None, "rows that the last round of --partition chooses from, times k (default: 10)", on=("select",)
    )
    rounds: int | None = option(
        None, "of --partition (default: 2): all but the last reduce the pool, part by part", on=("select",)
    )
    represented: int | float | None = option(
        None,
        "rows, or a share of them, that the last round of --partition represents: a random sample, and f(S) is "
        "estimated on another (default: all)",
        on=("select",),
    )
    include_rows: str | None = option(
        None, "rows that must be chosen (as --chosen): they are the first picks", on=LIMITED
    )
    similarity: str = option("cosine", "similarity of two rows", on=(*ALL, "graph"), choices=tuple(KINDS))
    gamma: float | None = option(None, "gamma of rbf (default 1 / features)", on=(*ALL, "graph"))
    given: str | None = option(
        None,
        "rows already chosen: they count but are not returned (as --chosen)",
        on=(*BESIDE, *MIX, *REPORT),
    )
    exclude: str | None = option(
        None, "rows that may not be chosen (as --chosen)", on=(*BESIDE, *MIX, *REPORT)
    )
    given_from: str | None = option(
        None,
        "file of rows that are not in the pool and count as chosen: embeddings, or texts",
        on=(*BESIDE, *MIX),
    )
    exclude_near: str | None = option(
        None, "file of rows (embeddings or texts) that no chosen row may be close to", on=(*BESIDE, *MIX)
    )
    exclude_above: float | None = option(
        None, "the similarity from which a row is too close to these", on=(*BESIDE, *MIX)
    )
    target: str | None = option(
        None, "file of rows (embeddings or texts) that the chosen shall be like: a query set", on=BESIDE
    )
    private: str | None = option(None, "file of rows that the chosen shall be unlike", on=BESIDE)
    target_objective: str | None = option(
        None, "how", on=BESIDE, choices=tuple(TARGETS), none="that of facility location for what is given"
    )
    eta: float | None = option(
        None, "of a target: weight of the similarity to the query (default: 1)", on=BESIDE
    )
    nu: float | None = option(
        None, "of a target: weight of the similarity to the private rows (default: 1)", on=BESIDE
    )
    text: Sequence[str] | None = option(
        None, "field or fields that hold the text to embed", on=POOLS, many=True
    )
    embeddings: str | None = option(None, "file with one embedding per pool row, in pool order", on=POOLS)
    embedding_field: str | None = option(None, "column or array that holds the embeddings", on=POOLS)
    embedder: str | None = option(
        None,
        "embedding model: a folder, or a name in the Hugging Face cache (default: all-MiniLM-L6-v2)",
        on=POOLS,
    )
    max_tokens: int | None = option(
        None, "cut texts here (default: the model's own limit)", on=(*ALL, "graph")
    )
    batch_size: int = option(64, "texts embedded at a time", on=POOLS)
    device: str | None = option(None, "torch device for embedding (default: the best there is)", on=POOLS)
    cache: str | None = option(
        None, "folder of the embedding cache, or 'off' (default: ~/.cache/smartgpu)", on=POOLS
    )
    backend: str = option("auto", "what computes", on=POOLS, choices=NAMES)
    maximizer: str = option("lazy", "how the greedy picks are found", choices=MAXIMIZERS, on=RUNS)
    polish: bool | int | float | str | None = option(
        None,
        "exchange chosen rows for others while that improves the objective: until no swap does, or for so many swaps "
        "(an integer) or seconds (a number with a decimal point) at most, or until they gain little (0.01%%)",
        on=("select", "mix"),
        bare=True,
    )
    precision: str = option(
        "auto", "triton only: what features and their products are", on=POOLS, choices=PRECISIONS
    )
    fallback: str | None = option(
        None,
        "backend that takes over where a GPU lacks the memory or fails",
        on=("select", "rank"),
        choices=FALLBACKS,
    )
    tie_break: str = option("low", "index that wins among equal gains", choices=TIES, on=RUNS)
    epsilon: float = option(
        0.01,
        "stochastic: n / k ln(1 / epsilon) candidates a pick; threshold: each is 1 - epsilon of the one before",
        on=RUNS,
    )
    seed: int = option(
        0,
        "stochastic only; with mix, of the shuffle and all that is random (default: 23)",
        on=RUNS,
        of_mix=SEED,
    )
    threads: int | None = option(None, "CPU threads (default: all)", on=POOLS)
    memory: str | None = option(
        None, "memory beyond the input, bytes or '4GB' (default: an eighth of what is free)", on=POOLS
    )
    report: bool = option(
        False, "write a report as well: OUT/report.html, and its numbers", on=("select", "rank", "mix")
    )
    draws: int = option(DRAWS, f"random sets of as many rows to compare with (default: {DRAWS})", on=REPORT)
    sample: int = option(
        SAMPLE,
        f"rows on which coverage is measured where there are more (default: {SAMPLE}); 0 is all",
        on=REPORT,
    )
    projection: str = option("auto", "how rows are drawn in the plane", on=REPORT, choices=PROJECTIONS)
    overwrite: bool = option(
        False, "start anew, replacing what OUT holds of another run", on=(*RUNS, "graph")
    )
    quiet: bool = option(False, "no progress bars, warnings only", on=(*POOLS, "doctor"), short="-q")
    verbose: bool = option(
        False, "more log lines, and where an error came from", on=(*POOLS, "doctor"), short="-v"
    )
    plan: bool = option(
        False, "print what it will allocate, and about how long it takes", on=("select", "rank")
    )
    json: bool = option(False, "print JSON", on=("evaluate", "plan", "doctor"))

    @classmethod
    def of(cls, command: str, options: dict[str, Any]) -> Config:
        """The options of a command; of those that are not given, the defaults of that command."""
        name = f"of_{command}"
        defaults = {f.name: f.metadata[name] for f in dataclasses.fields(cls) if name in f.metadata}
        return cls(**(defaults | options))

    def make_objective(self, of: str = "") -> Objective:
        """The objective that the options name, "task_" or "row_" before them. ValueError for a lam of one without."""
        objective, lam = getattr(self, f"{of}objective"), getattr(self, f"{of}lam")
        if lam is None or self.target is not None or self.private is not None:
            return as_objective(objective)
        kinds = {kind.name: kind for kind in (GraphCut, LogDet)}
        if objective not in kinds:
            raise ValueError(f"{of}lam is an option of graph_cut and log_det, not of {objective}")
        return kinds[objective](lam)

    def quality_options(self, of: str = "") -> dict[str, Any] | None:
        """scale and missing of the quality that is asked for, None where none is. ValueError for what does not fit."""
        named = {
            name: getattr(self, name)
            for name in ("quality", "quality_field", "quality_scale", "quality_missing")
        }
        if self.baseline is not None:  # whose quality is weighed against nothing
            return None
        alphas = list(self.alpha_path or ()) + ([] if self.alpha is None else [self.alpha])
        if not alphas:
            for name, value in named.items():
                if value is not None:
                    raise ValueError(
                        f"--alpha is missing: --{name.replace('_', '-')} is the quality that it weighs"
                    )
            return None
        if self.alpha_path and self.alpha is not None:
            raise ValueError("--alpha cannot be combined with --alpha-path, which compares several")
        for alpha in alphas:
            check_alpha(alpha)
        if self.quality is None and self.quality_field is None:
            raise ValueError(
                "--alpha needs the quality of the rows: --quality-field, or a file with --quality"
            )
        objective = getattr(self, f"{of}objective")
        if objective != FacilityLocation.name:
            flag = f"--{of}objective".replace("_", "-")
            raise ValueError(
                f"--alpha weighs quality against facility_location, not against {flag} {objective}"
            )
        return {"scale": self.quality_scale or SCALE, "missing": self.quality_missing}

    def make_similarity(self) -> Similarity:
        """The similarity that the options name. ValueError where gamma is given for one without."""
        if self.gamma is None:
            return as_similarity(self.similarity)
        if self.similarity != Rbf.name:
            raise ValueError(f"gamma is an option of rbf, not of {self.similarity}")
        return Rbf(self.gamma)

    def how(self) -> dict[str, Any]:
        """Keyword arguments of select() that say how to run."""
        names = ("maximizer", "tie_break", "epsilon", "seed", "threads", "memory", "precision", "fallback")
        found = {name: getattr(self, name) for name in names}
        return {"backend": resolve(self.backend), **found, "polish": self.polish}

    def record(self, command: str) -> dict[str, Any]:
        """The options on which the result depends, as JSON values. Data enter by content (commands/), not by path."""
        fields = [f for f in dataclasses.fields(self) if f.name not in ASIDE and command in f.metadata["on"]]
        options = {f.name: getattr(self, f.name) for f in fields}
        return {**options, "backend": resolve(self.backend)}
