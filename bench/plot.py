"""From rows to pictures, to the README's table, and to the figures that must be reached.

python bench/plot.py RESULTS... [--images DIR] [--readme FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.cases import ALPACA_ROWS, CASES, DEVICE_CASES, FL, ROOT, TRITON
from bench.musts import (
    DEVICE_MUSTS,
    FL10,
    MUSTS,
    OURS,
    OURS_1GB,
    TITLES,
    Row,
    Rows,
    is_judged,
    measured,
    title,
)

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
BEGIN_GPU, END_GPU = "<!-- bench-gpu:begin -->", "<!-- bench-gpu:end -->"
BEGIN_COMPAT, END_COMPAT = "<!-- bench-compat:begin -->", "<!-- bench-compat:end -->"
OTHERS = (
    "apricot-lazy",
    "apricot-naive",
    "submodlib",
    "numpy",
    "torch",
)  # those that do the same greedy selection
COLOURS = {
    OURS: "#c1121f",
    OURS_1GB: "#f4978e",
    "apricot-lazy": "#1d3557",
    "apricot-naive": "#7aa6c2",
    "submodlib": "#2a9d8f",
    "kmedoids": "#8d6a9f",
    "numpy": "#8a8a8a",
    "torch": "#e09f3e",
    "blas": "#000000",
}


def read(paths: Iterable[Path]) -> Rows:
    """The latest row of each (case, provider): no kernels, tests or rehearsals, and no GPU but the one of the bars."""
    rows: Rows = {}
    for path in paths:
        for line in Path(path).read_text(encoding="utf-8").splitlines():
            if line.strip():
                row = json.loads(line)
                if "case" in row and (is_judged(row) if "gpu" in row else not row.get("rehearsal")):
                    rows[row["case"], row["provider"]] = row
    return rows


# -- the README's table ------------------------------------------------------------------------------------------------

HEAD = (
    "| objective, pool | n | k | smartgpu | peak | f(S) | fastest other | times faster | one product |",
    "| --- | --: | --: | --: | --: | --: | --- | --: | --: |",
)


def table(rows: Rows) -> str:
    """Markdown: one line per case that passed its gate, in the order of bench/cases.py."""
    order = {case.name: at for at, case in enumerate(CASES)}
    mine = [
        r for (_, p), r in rows.items() if p in (OURS, OURS_1GB) and measured(rows, r["case"], p) is not None
    ]
    mine.sort(key=lambda r: (order.get(r["case"], len(order)), r["provider"]))
    lines = [_line(rows, row) for row in mine if row["provider"] == OURS or row["n"] >= ALPACA_ROWS]
    if not lines:
        return "No row has passed its gate yet.\n"
    last = max(mine, key=lambda row: row["time"])
    packages = {k: v for row in rows.values() for k, v in row["versions"].items() if v}
    notes = [
        "",
        "Time is the median, similarities counted for everybody; peak is memory beyond the input; `one product` is the"
        " time as a multiple of one float32 n x n x d matrix product by the same BLAS on the same cores.",
        *_local_search(rows),
        f"Measured on {last['device']}, {last['cores']} cores, {last['memory_gb']:.0f} GB, {last['blas']},"
        f" {last['time'][:10]}, commit {last['commit']}{' (with changes)' if last['dirty'] else ''}: "
        + ", ".join(f"{name} {version}" for name, version in sorted(packages.items()))
        + ". Rows: `bench/results/`.",
    ]
    return "\n".join([*HEAD, *lines, *notes]) + "\n"


GPU_HEAD = (
    "| selection on one H200 | must | measured | sweeps | peak, GB | host waits a pick | f(S) |",
    "| --- | --: | --: | --: | --: | --: | --: |",
)


def gpu_table(rows: Rows) -> str:
    """Markdown: one line per case with a bar, in the order of bench/cases.py; "not measured" where there is no row."""
    lines = [_gpu_line(rows, case) for case in DEVICE_CASES if case.must is not None]
    mine = [
        row
        for (_, provider), row in rows.items()
        if provider == TRITON and measured(rows, row["case"], TRITON)
    ]
    notes = [""]
    if mine:
        last = max(mine, key=lambda row: row["time"])
        versions = ", ".join(
            f"{name} {version}" for name, version in sorted(last["versions"].items()) if version
        )
        notes.append(
            f"Measured on {last['device']}, {last['time'][:10]}, commit {last['commit']}"
            f"{' (with changes)' if last['dirty'] else ''}: {versions}. Rows: `bench/results/`."
        )
    else:
        notes.append("No figure has been measured on a GPU yet: `python bench/gpu.py --out DIR` does.")
    return "\n".join([*GPU_HEAD, *lines, *notes]) + "\n"


COMPAT = "smartgpu.compat."  # and the peer: providers of the rows of bench/compat.py


def compat_table(rows: Rows) -> str:
    """Markdown: one line per function, peer by peer, in the order in which they were measured."""
    lines, ratios = [], []
    for (case, provider), row in sorted(rows.items(), key=lambda found: found[0][1], reverse=True):
        if not provider.startswith(COMPAT):
            continue
        peer = provider.removeprefix(COMPAT)
        other = rows.get((case, peer), {})
        ratios.append(row.get("times_faster"))
        cells = [
            f"{peer} {row['function'].replace('_', ' ')}",
            *(_took(other), _took(row), "-" if ratios[-1] is None else f"{ratios[-1]:.1f}"),
            *(f"{megabytes(r['peak_mb'])}" if "peak_mb" in r else "-" for r in (other, row)),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    known = sorted(ratio for ratio in ratios if ratio is not None)
    last = max(rows.values(), key=lambda row: row["time"])
    packages = {k: v for row in rows.values() for k, v in row["versions"].items() if v}
    notes = [
        "",
        f"n = {last['n']:,}, d = {last['d']}, k = {last['k']:,}, Alpaca, data as input; medians, peak beyond the input."
        f" {len(known)} functions: between {known[0]:.1f} and {known[-1]:.1f} times as fast,"
        f" median {statistics.median(known):.1f}."
        f" Measured on {last['device']}, {last['cores']} cores, {last['time'][:10]}, commit {last['commit']}: "
        + ", ".join(f"{name} {version}" for name, version in sorted(packages.items()))
        + ". `python bench/compat.py --peer submodlib|apricot` measures it.",
    ]
    head = (
        "| function | the peer | smartgpu.compat | times faster | peer's peak | peak |",
        "| --- | --: | --: | --: | --: | --: |",
    )
    return "\n".join([*head, *lines, *notes]) + "\n"


def _took(row: Row) -> str:
    return seconds(row["ms_p50"]) if "ms_p50" in row else row.get("stopped", "-").split(":")[0]


def _gpu_line(rows: Rows, case) -> str:
    row = rows.get((case.name, TRITON), {})
    ms = measured(rows, case.name, TRITON)
    cells = [title(case), f"{case.must:g} s"]
    if ms is None:
        reason = "not measured" if not row else "stopped" if "stopped" in row else "failed its gate"
        return "| " + " | ".join([*cells, reason, "-", "-", "-", "-"]) + " |"
    cells += [seconds(ms), f"{row['sweeps']:.2f}"]
    cells.append(f"{row['device_peak_mb'] / 1e3:.1f}" if "device_peak_mb" in row else "-")
    cells.append(f"{row['syncs_per_pick']:.3f}" if "syncs_per_pick" in row else "-")
    return "| " + " | ".join([*cells, f"{row['value']:,.1f}"]) + " |"


def _line(rows: Rows, row: Row) -> str:
    case = row["case"]
    who, theirs = fastest_other(rows, case)
    limited = ', `memory="1GB"`' if row["provider"] == OURS_1GB else ""
    size = "" if row["d"] == 384 else f", d = {row['d']}"
    cells = [
        f"{TITLES[row['objective']]}, {row['pool'].capitalize()}{size}{limited}",
        f"{row['n']:,}",
        f"{row['k']:,}",
        seconds(row["ms_p50"]),
        megabytes(row["peak_mb"]),
        f"{row['value']:,.1f}",
    ]
    if theirs is not None:
        off = theirs["value"] / row["value"] - 1
        same = "" if abs(off) < 5e-5 else f", f {off:+.2%}"
        cells += [f"{who} {seconds(theirs['ms_p50'])}{same}", f"{theirs['ms_p50'] / row['ms_p50']:,.1f}"]
    else:
        cells += [who, "-"]
    cells.append(f"{row['ratio_to_blas']:.2g}" if "ratio_to_blas" in row else "-")
    return "| " + " | ".join(cells) + " |"


def fastest_other(rows: Rows, case: str) -> tuple[str, Row | None]:
    """The fastest of the others with its row, or why none of them got there."""
    there = [p for p in OTHERS if (case, p) in rows]
    done = [p for p in there if measured(rows, case, p) is not None]
    if done:
        best = min(done, key=lambda p: rows[case, p]["ms_p50"])
        return best, rows[case, best]
    reasons = sorted({rows[case, p]["stopped"].split(":")[0] for p in there})
    return (f"all stopped by {' or '.join(reasons)}" if there else "-"), None


def _local_search(rows: Rows) -> list[str]:
    ours, theirs = rows.get((FL10, OURS)), rows.get((FL10, "kmedoids"))
    if measured(rows, FL10, OURS) is None or measured(rows, FL10, "kmedoids") is None:
        return []
    gain = theirs["value"] / ours["value"] - 1
    return [
        "FasterPAM (kmedoids), a local search of the same objective, n = 10,000, k = 1,000:"
        f" {seconds(theirs['ms_p50'])}, f(S) {gain:+.2%}."
    ]


def seconds(ms: float) -> str:
    return f"{ms:.0f} ms" if ms < 995 else f"{ms / 1e3:.3g} s" if ms < 99_500 else f"{ms / 1e3:.0f} s"


def megabytes(mb: float) -> str:
    return f"{mb:.0f} MB" if mb < 995 else f"{mb / 1e3:.2g} GB"


def write_readme(path: Path, text: str, marks: tuple[str, str] = (BEGIN, END)) -> bool:
    """Put the table between the markers; False (and nothing written) where they are not there."""
    old = path.read_text(encoding="utf-8")
    begin, end = marks
    if begin not in old or end not in old:
        return False
    head, rest = old.split(begin, 1)
    _, tail = rest.split(end, 1)
    path.write_text(f"{head}{begin}\n{text}{end}{tail}", encoding="utf-8")
    return True


# -- pictures ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Picture:
    """A line per provider over the FL rows on Alpaca that `take` accepts; log axes."""

    file: str
    title: str
    x: str
    y: str
    label: str
    scale: float
    take: Callable[[Row], bool]


def _tenth(row: Row) -> bool:
    return abs(row["k"] / row["n"] - 0.1) < 0.01


PICTURES = (
    Picture(
        "bench_time_n.png", "Facility location, k = n / 10: time", "n", "ms_p50", "seconds", 1e-3, _tenth
    ),
    Picture(
        "bench_time_k.png",
        "Facility location, n = 10,000 (lines) and 52,002 (dashed): time",
        "k",
        "ms_p50",
        "seconds",
        1e-3,
        lambda row: row["n"] in (10_000, ALPACA_ROWS),
    ),
    Picture(
        "bench_memory_n.png", "Facility location, k = n / 10: peak memory", "n", "peak_mb", "MB", 1.0, _tenth
    ),
)


def draw(rows: Rows, folder: Path) -> list[Path]:
    """One .png per picture, 8 x 4.5 inches at 150 dpi: legible at the width of a README."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for picture in PICTURES:
        figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
        for provider, colour in COLOURS.items():
            if provider == "blas" and picture.file != "bench_time_n.png":
                continue  # it does not depend on k, and its memory is a block
            _lines(axes, rows, picture, provider, colour)
        axes.set(xscale="log", yscale="log", xlabel=picture.x, ylabel=picture.label, title=picture.title)
        axes.grid(True, which="major", alpha=0.3)
        if axes.has_data():
            axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
        made.append(folder / picture.file)
        figure.savefig(made[-1], dpi=150)
        plt.close(figure)
    return made


def _lines(axes, rows: Rows, picture: Picture, provider: str, colour: str) -> None:
    mine = [
        row
        for (case, p), row in rows.items()
        if p == provider and (row["objective"], row["pool"]) == (FL, "alpaca") and row["d"] == 384
    ]
    if provider == "blas":  # measured once for each n, whatever k
        wanted = list({row["n"]: row for row in mine if "ms_p50" in row}.values())
    else:
        wanted = [row for row in mine if picture.take(row)]
    label = "one product (BLAS)" if provider == "blas" else provider
    groups = sorted({row["n"] for row in wanted}) if picture.x == "k" else [None]
    for n in groups:
        group = [r for r in wanted if n is None or r["n"] == n]
        points = sorted(
            (row[picture.x], row[picture.y] * picture.scale)
            for row in group
            if measured(rows, row["case"], provider, picture.y) is not None
        )
        if not points:
            continue
        style = "--" if n == ALPACA_ROWS else ":" if provider == "blas" else "-"
        axes.plot(*zip(*points, strict=True), style, marker="o", ms=4, color=colour, label=label)
        label = "_nolegend_"
        stopped = [row for row in group if "stopped" in row and row[picture.x] > points[-1][0]]
        if stopped and n is None:
            reason = stopped[0]["stopped"].split(":")[0]
            axes.annotate(
                f"{reason} ✕", points[-1], (4, 4), textcoords="offset points", fontsize=8, color=colour
            )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "results", nargs="+", type=Path, help=".jsonl files; of rows for the same case the last counts"
    )
    parser.add_argument("--images", type=Path, default=ROOT / "docs" / "img")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    given = parser.parse_args(arguments)
    rows = read(given.results)
    on_gpu = {key: row for key, row in rows.items() if "gpu" in row}
    compat = {key: row for key, row in rows.items() if "function" in row}
    on_cpu = {key: row for key, row in rows.items() if key not in on_gpu and key not in compat}
    missing = []
    # A table without rows stays as it is.
    for found, musts, text, marks in (
        (on_cpu, MUSTS, table, (BEGIN, END)),
        (on_gpu, DEVICE_MUSTS, gpu_table, (BEGIN_GPU, END_GPU)),
        (compat, (), compat_table, (BEGIN_COMPAT, END_COMPAT)),
    ):
        for must in musts:
            print(must.judge(found))
        if not found:
            continue
        print(text(found))
        if write_readme(given.readme, text(found), marks):
            print(f"wrote the table into {given.readme}")
        else:
            missing.append(marks)
    if on_cpu:
        for path in draw(on_cpu, given.images):
            print(f"wrote {path}")
    for begin, end in missing:
        print(f"{given.readme} has no {begin} ... {end}: table not written", file=sys.stderr)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
