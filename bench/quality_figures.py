"""Rows of bench/quality.py to the tables, claims and pictures of docs/quality.md.

python bench/quality_figures.py RESULTS [--docs FILE] [--images DIR]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from bench.cases import ROOT
from bench.plot import write_readme
from smartgpu.alpha import suggest

MARKS = ("<!-- quality:begin -->", "<!-- quality:end -->")
NEAR = 0.95  # of the best mean quality: what "holds quality" means here
RATERS = {
    "ds2_gpt4o_mini": "GPT-4o-mini",
    "ds2_llama31_8b": "Llama 3.1 8B",
    "ds2_mistral7b_v03": "Mistral 7B",
}
FIRST = next(iter(RATERS))
FIGURES = ("coverage", "quality_mean", "quality_tail", "quality_min")
POOLS = {"minilm": "MiniLM", "tfidf": "TF-IDF + SVD"}

Row = dict[str, Any]


def read(path: Path) -> list[Row]:
    """The latest row of each set of rows; random is the mean of its seeds."""
    latest: dict[str, Row] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        latest[json.dumps(row["what"], sort_keys=True)] = row
    out: list[Row] = []
    seeds: dict[str, list[Row]] = {}
    for row in latest.values():
        what = dict(row["what"])
        if what.pop("seed", None) is None:
            out.append(row)
        else:
            seeds.setdefault(json.dumps(what, sort_keys=True), []).append(row)
    for key, rows in seeds.items():
        mean = {name: float(np.mean([row[name] for row in rows])) for name in FIGURES}
        worst = {p: float(np.mean([row["worst"][p] for row in rows])) for p in rows[0]["worst"]}
        out.append({**rows[0], **mean, "worst": worst, "what": json.loads(key)})
    return out


def name(row: Row) -> str:
    what = row["what"]
    if what["method"] == "qdit":
        ends = {0.0: "facility location (alpha 0)", 1.0: "quality only (alpha 1)"}
        return ends.get(what["alpha"], f"QDIT {what['alpha']:g}, {what['scale']}")
    if what["method"] == "threshold":
        return f"threshold {what['tau']:g}"
    return {"random": "random, 5 seeds", "cluster": "cluster"}[what["method"]]


def order(row: Row) -> tuple:
    """The path first, by how much quality counts, then the baselines."""
    what = row["what"]
    if what["method"] != "qdit":
        return (1, ("threshold", "cluster", "random").index(what["method"]), what.get("tau", 0), "")
    return (0, odds(row), what["alpha"], what["scale"])


def odds(row: Row) -> float:
    """alpha c / (1 - alpha): by it, paths of different scales lie on one line."""
    what = row["what"]
    if what["alpha"] == 1:
        return np.inf
    return what["alpha"] / (1 - what["alpha"]) * (row["n"] / row["rows"] if what["scale"] == "mean" else 1)


def pick(rows: list[Row], **what: Any) -> list[Row]:
    found = [row for row in rows if all(row["what"].get(key) == value for key, value in what.items())]
    return sorted(found, key=order)


def one(rows: list[Row], **what: Any) -> Row | None:
    found = pick(rows, **what)
    return found[0] if found else None


# -- tables


def markdown(head: list[str], lines: list[list[str]]) -> list[str]:
    rule = ["---", *["--:"] * (len(head) - 1)]
    return [f"| {' | '.join(cells)} |" for cells in (head, rule, *lines)]


def path_table(rows: list[Row]) -> list[str]:
    """The main rater at the paper's k, all figures."""
    some = pick(rows, study="alpaca", rater=FIRST, k=3000)
    head = ["rows", "coverage", "worst 1 %", "worst 5 %", "mean quality", "lowest 5 %", "lowest"]
    lines = [
        [
            name(row),
            f"{row['coverage']:.2%}",
            *(f"{row['worst'][p]:.3f}" for p in ("1", "5")),
            f"{row['quality_mean']:.3f}",
            f"{row['quality_tail']:.2g}",
            f"{row['quality_min']:.2g}",
        ]
        for row in some
    ]
    return markdown(head, lines)


def rater_table(rows: list[Row], k: int) -> list[str]:
    """Coverage and mean quality by all raters."""
    some = {rater: {name(r): r for r in pick(rows, study="alpaca", rater=rater, k=k)} for rater in RATERS}
    every = sorted((row for rater in some.values() for row in rater.values()), key=order)
    shared = [n for n in dict.fromkeys(map(name, every)) if sum(n in of for of in some.values()) > 1]
    head = ["rows", *(f"{shown}: {what}" for shown in RATERS.values() for what in ("coverage", "quality"))]
    lines = []
    for n in shared:
        cells = [some[rater].get(n) for rater in RATERS]
        texts = [
            ("-", "-") if r is None else (f"{r['coverage']:.2%}", f"{r['quality_mean']:.3f}") for r in cells
        ]
        lines.append([n, *(text for pair in texts for text in pair)])
    return markdown(head, lines)


def views(rows: list[Row]) -> list[tuple[str, list[Row]]]:
    """(title, rows) of each way to choose and to judge in the second study."""
    seen: dict[str, list[Row]] = {}
    for row in pick(rows, study="others"):
        what = row["what"]
        chosen = (what["embedding"], what["similarity"])
        title = f"{POOLS[chosen[0]]}, {chosen[1]}"
        if list(chosen) != what["judge"]:
            title += f"; judged by {POOLS[what['judge'][0]]}"
        seen.setdefault(title, []).append(row)
    return sorted(seen.items(), key=lambda item: ("judged" in item[0], "TF" in item[0].partition(";")[0]))


def others_table(rows: list[Row]) -> list[str]:
    every = views(rows)
    names = [name(row) for row in every[0][1]]
    head = ["coverage of", *(title for title, _ in every)]
    lines = []
    for n in names:
        cells = [next((r["coverage"] for r in some if name(r) == n), None) for _, some in every]
        lines.append([n, *("-" if c is None else f"{c:.2%}" for c in cells)])
    return markdown(head, lines)


# -- claims


def claims(rows: list[Row]) -> list[str]:
    cells = [(k, r) for k in (1000, 3000, 10_000) for r in RATERS]
    held = []
    for k, rater in cells:
        at = {"study": "alpaca", "k": k, "rater": rater}
        fl, top, drawn = (
            one(rows, **at, **more) for more in ({"alpha": 0.0}, {"alpha": 1.0}, {"method": "random"})
        )
        if fl and top and drawn:
            held.append((k, rater, fl, top, drawn, pick(rows, **at, method="qdit")))
    if not held:
        return []
    out = []
    won = [100 * (fl["coverage"] - drawn["coverage"]) for _, _, fl, _, drawn, _ in held]
    yes = sum(w > 0 for w in won)
    out.append(
        f"- *Facility location raises diversity over random*: {_verdict(yes, len(held))}, by {min(won):.1f} to "
        f"{max(won):.1f} points of coverage."
    )
    lost = [100 * (top["coverage"] - drawn["coverage"]) for _, _, _, top, drawn, _ in held]
    yes = sum(w < 0 for w in lost)
    not_ = [f"{RATERS[r]} at k = {k:,}" for (k, r, *_), w in zip(held, lost, strict=True) if w >= 0]
    text = f" Not by {', '.join(not_)}." if not_ else ""
    out.append(
        f"- *Quality alone lowers it*: {_verdict(yes, len(held))}; from {min(lost):+.1f} to {max(lost):+.1f} points "
        f"against random.{text}"
    )
    for scale, alpha in (("mean", 0.1), ("mean", 0.5), ("paper", 0.5), ("paper", 0.7), ("paper", 0.9)):
        found = [
            (row, top, drawn)
            for *_, top, drawn, path in held
            for row in path
            if row["what"]["scale"] == scale and row["what"]["alpha"] == alpha
        ]
        if not found:
            continue
        both = sum(
            row["coverage"] >= drawn["coverage"] and row["quality_mean"] >= NEAR * top["quality_mean"]
            for row, top, drawn in found
        )
        more = [100 * (row["coverage"] - drawn["coverage"]) for row, _, drawn in found]
        share = [row["quality_mean"] / top["quality_mean"] for row, top, _ in found]
        out.append(
            f"- *Mid alphas hold both*, alpha {alpha:g} by scale `{scale}`: {_verdict(both, len(found))} (coverage of "
            f"random or more, and {NEAR:.0%} of the best mean quality); {min(more):+.1f} to {max(more):+.1f} points of "
            f"coverage against random, {min(share):.1%} to {max(share):.1%} of the best quality."
        )
    main = pick(rows, study="alpaca", rater=FIRST, k=3000, method="qdit")
    main = [row for row in main if row["what"]["scale"] in ("any", "mean")]
    at = suggest([row["coverage"] for row in main], [row["quality_mean"] for row in main])
    out.append(
        f"- `alpha_path` suggests {main[at]['what']['alpha']:g} of this path (scale `mean`, {RATERS[FIRST]}, "
        f"k = 3,000): {main[at]['coverage']:.1%} coverage, mean quality {main[at]['quality_mean']:.2f}."
    )
    return out


def order_claims(rows: list[Row]) -> list[str]:
    """Whether facility location > random > quality only, and whether the order of all ways, stay."""
    every = views(rows)
    if not every:
        return []
    base = {name(row): row["coverage"] for row in every[0][1]}
    out = []
    for title, some in every:
        cover = {name(row): row["coverage"] for row in some}
        fl, top, drawn = (
            cover[n] for n in ("facility location (alpha 0)", "quality only (alpha 1)", "random, 5 seeds")
        )
        mid = cover["QDIT 0.1, mean"]
        points = [f"{100 * (c - drawn):+.1f}" for c in (fl, mid, top)]
        signs = "against random, facility location {}, QDIT 0.1 {}, quality only {} points".format(*points)
        both = [n for n in base if n in cover]
        rho = _spearman([base[n] for n in both], [cover[n] for n in both])
        out.append(
            f"- {title}: {signs}; order of the {len(both)} ways against the first: Spearman {rho:.2f}."
        )
    return out


def _spearman(a: list[float], b: list[float]) -> float:
    ranks = [np.argsort(np.argsort(values)) for values in (a, b)]
    return float(np.corrcoef(*ranks)[0, 1])


def _verdict(yes: int, of: int) -> str:
    return f"holds in all {of} cases" if yes == of else f"holds in {yes} of {of} cases"


def text(rows: list[Row]) -> str:
    last = max(rows, key=lambda row: row["time"])
    parts: list[str] = ["### What holds of the paper's claims", "", *claims(rows), ""]
    parts += [
        "### k = 3,000 of 52,002, rated by GPT-4o-mini",
        "",
        *path_table(rows),
        "",
        "![coverage against quality](img/quality_alpaca.png)",
        "",
    ]
    for k in (1000, 3000, 10_000):
        if pick(rows, study="alpaca", k=k):
            parts += [f"### k = {k:,}, three raters", "", *rater_table(rows, k), ""]
    if pick(rows, study="others"):
        first = pick(rows, study="others")[0]
        parts += [
            f"### Other similarities and embeddings: {first['rows']:,} of {first['n']:,} rows",
            "",
            *order_claims(rows),
            "",
            *others_table(rows),
            "",
            "![other similarities and embeddings](img/quality_others.png)",
            "",
        ]
    versions = ", ".join(f"{key} {value}" for key, value in sorted(last["versions"].items()) if value)
    parts.append(
        f"Measured on {last['device']}, {last['cores']} cores, {last['time'][:10]}, commit {last['commit']}"
        f"{' (with changes)' if last['dirty'] else ''}: {versions}. Rows: `bench/results/quality.jsonl`."
    )
    return "\n".join(parts) + "\n"


# -- pictures

COLOURS = {"qdit": "#c1121f", "threshold": "#1d3557", "cluster": "#2a9d8f", "random": "#8a8a8a"}
MARKERS = {"threshold": "s", "cluster": "^", "random": "o"}


def picture(panels: list[tuple[str, list[Row]]], path: Path) -> None:
    """Coverage against mean quality, one panel each: the path of alpha as a line, baselines as marks."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    wide = min(3, len(panels))
    tall = -(-len(panels) // wide)
    figure, axes = plt.subplots(
        tall, wide, figsize=(4.2 * wide, 3.7 * tall), squeeze=False, layout="constrained"
    )
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    for axis, (title, some) in zip(axes.flat, panels, strict=False):
        way = [row for row in sorted(some, key=order) if row["what"]["method"] == "qdit"]
        q, c = [row["quality_mean"] for row in way], [100 * row["coverage"] for row in way]
        axis.plot(q, c, "-o", color=COLOURS["qdit"], markersize=3.5, linewidth=1.4, label="QDIT")
        for row, x, y in zip(way, q, c, strict=True):
            alpha, scale = row["what"]["alpha"], row["what"]["scale"]
            if scale == "any" or (scale == "mean" and alpha in (0.02, 0.1, 0.5)):
                axis.annotate(f"{alpha:g}", (x, y), xytext=(4, 4), textcoords="offset points", fontsize=8)
        for row in some:
            method = row["what"]["method"]
            if method != "qdit":
                label = name(row)
                axis.plot(
                    row["quality_mean"],
                    100 * row["coverage"],
                    MARKERS[method],
                    color=COLOURS[method],
                    label=label,
                )
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("mean quality of the chosen rows")
        axis.grid(alpha=0.25, linewidth=0.6)
        axis.margins(0.1)
    for line in axes:
        line[0].set_ylabel("coverage of the pool, %")
    axes.flat[0].legend(fontsize=7.5, frameon=False, loc="lower left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path)
    parser.add_argument("--docs", type=Path, default=ROOT / "docs" / "quality.md")
    parser.add_argument("--images", type=Path, default=ROOT / "docs" / "img")
    given = parser.parse_args(argv)
    rows = read(given.results)
    panels = [(title, pick(rows, study="alpaca", rater=rater, k=3000)) for rater, title in RATERS.items()]
    picture([(f"{t}, k = 3,000", some) for t, some in panels if some], given.images / "quality_alpaca.png")
    picture(views(rows), given.images / "quality_others.png")
    print(text(rows))
    write_readme(given.docs, text(rows), MARKS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
