"""From the rows of bench/outcome.py to the tables of docs/outcome.md and docs/img/outcome_*.png.

python bench/outcome_plot.py RESULTS... [--page FILE] [--images DIR]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.cases import ROOT
from bench.outcome import FL, FULL, GC, LD, OBJECTIVES, Condition
from bench.outcome_figures import seeds_interval

Row = dict[str, Any]
NAMES = {GC: "graph cut", FL: "facility location", LD: "log-determinant", "random": "chance"}
# (tasks, budgets, rows) -> (title, colour, dashes); tasks "none": the whole pool
SMART = (GC, "smart", FL)
MIXTURES = {
    SMART: ("SMART", "#c1121f", "-"),
    (GC, "proportional", FL): ("proportional", "#1d3557", "-"),
    (GC, "equal", FL): ("equal", "#2a9d8f", "-"),
    ("random", "equal", FL): ("random tasks", "#e09f3e", "-"),
    ("random", "equal", "random"): ("random tasks and rows", "#e09f3e", ":"),
    ("none", "none", FL): ("pool, facility location", "#000000", "-"),
    ("none", "none", "random"): ("pool, random rows", "#000000", ":"),
}
RANDOM_ROWS = {
    (GC, "smart", "random"): "SMART, rows at random",
    (GC, "proportional", "random"): "proportional, rows at random",
    (GC, "equal", "random"): "equal, rows at random",
}
TITLES = {how: title for how, (title, _, _) in MIXTURES.items()} | RANDOM_ROWS
METRICS = {"rouge1": "ROUGE-1", "exact": "exact match", "coverage": "coverage"}
GROUPS = {"seen": "seen tasks", "new": "new tasks"}
DAMAGES = {"responses": "responses swapped", "garbage": "garbage rows", "copies": "copies added"}


class Rows:
    """The rows of one table, by condition, and figures over their seeds."""

    def __init__(self, rows: Iterable[Row]):
        names = [f.name for f in dataclasses.fields(Condition)]
        self.by = {Condition(*(row[name] for name in names)): row for row in rows}
        self.seeds = sorted({c.seed for c in self.by})

    def of(self, how: tuple[str, str, str], m: int | None, n: int | None, *damage: Any) -> list[Row]:
        """One for each seed; none unless all seeds have been measured."""
        got = [self.by.get(Condition(seed, *how, m, n, *damage)) for seed in self.seeds]
        return [] if None in got else got

    def values(self, rows: list[Row], group: str, metric: str, part: str | None = None) -> list[float]:
        return [(row[group][part] if part else row[group])[metric]["value"] for row in rows]

    def mean(self, rows: list[Row], group: str, metric: str) -> float | None:
        return statistics.fmean(self.values(rows, group, metric)) if rows else None

    def behind(self, rows: list[Row], group: str, metric: str, part: str = "minus_smart") -> tuple | None:
        """(mean, low, high) of the paired differences, over seeds."""
        if not rows or part not in rows[0][group]:
            return None
        return seeds_interval(self.values(rows, group, metric, part))


def read(paths: Iterable[Path]) -> Rows:
    """Of rows of several tables (a quick run's among them) those of the largest."""
    lines = (line for path in paths for line in Path(path).read_text(encoding="utf-8").splitlines())
    rows = [json.loads(line) for line in lines if line.strip()]
    if not rows:
        raise ValueError(f"no rows in {', '.join(map(str, paths))}")
    largest = max(rows, key=lambda row: row["pool_rows"] * (row["damage"] == "none"))["data"]
    return Rows(row for row in rows if row["data"] == largest)


# -- tables ------------------------------------------------------------------------------------------------------------


def markdown(head: list[str], lines: list[list[str]]) -> str:
    marks = ["---"] + ["--:"] * (len(head) - 1)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, marks, *lines)) + "\n"


def many(m: int | None) -> str:
    return "all" if m is None else str(m)


def signed(found: tuple[float, float, float] | None, digits: int = 3) -> str:
    """A difference with its interval."""
    if found is None:
        return "-"
    mean, low, high = (f"{round(v, digits) + 0.0:+.{digits}f}".replace("-", "−") for v in found)
    return f"{mean} [{low}, {high}]"


def sign(found: tuple[float, float, float] | None) -> int:
    """1 where an interval lies above 0, -1 where below, 0 where it holds 0."""
    return 0 if found is None else (found[1] > 0) - (found[2] < 0)


def values(rows: Rows, group: str, metric: str) -> str:
    """A line for each (m, n), a column for each mixture. Bold: better than SMART, the interval without 0."""
    lines = []
    for m in FULL.m:
        for n in FULL.n:
            here = {how: rows.of(how, m, n) for how in MIXTURES}
            if not here[SMART]:
                continue
            given = round(statistics.fmean(row["n_rows"] for row in here[SMART]))
            cells = [f"{many(m)}, {n:,}" + (f" ({given:,})" if given < n else "")]
            for got in here.values():
                mean = rows.mean(got, group, metric)
                better = sign(rows.behind(got, group, metric)) > 0
                text = "-" if mean is None else f"{mean:.3f}"
                cells.append(f"**{text}**" if better else text)
            lines.append(cells)
    return markdown(["tasks, rows", *(title for title, _, _ in MIXTURES.values())], lines)


def exclude(row: Row, group: str, metric: str) -> int:
    """The sign of one seed's paired difference from SMART, where the interval over tasks is without 0."""
    found = row[group]["minus_smart"][metric]
    return sign((found["value"], *found["tasks"]))


def tally(rows: Rows) -> str:
    """How often SMART wins and loses, over the cells in which it gives all the rows that were asked for."""
    lines = []
    cells = [(m, n) for m in FULL.m for n in FULL.n]
    for how, title in TITLES.items():
        if how == SMART:
            continue
        line = [title]
        for group in GROUPS:
            for metric in METRICS:
                wins = losses = count = sure_wins = sure_losses = 0
                for m, n in cells:
                    got, smart = rows.of(how, m, n), rows.of(SMART, m, n)
                    if not got or any(row["n_rows"] < n for row in (*got, *smart)):
                        continue
                    count += 1
                    side = sign(rows.behind(got, group, metric))
                    wins, losses = wins + (side < 0), losses + (side > 0)
                    sides = [exclude(row, group, metric) for row in got]
                    sure_wins += side < 0 and sides.count(-1) > len(sides) / 2
                    sure_losses += side > 0 and sides.count(1) > len(sides) / 2
                line.append(f"{wins} ({sure_wins}) : {losses} ({sure_losses}) of {count}")
        lines.append(line)
    head = [f"{METRICS[metric]}, {title}" for title in GROUPS.values() for metric in METRICS]
    return markdown(["SMART against", *head], lines)


def differences(rows: Rows, group: str, metric: str, tasks: tuple[int | None, ...] = FULL.m[-2:]) -> str:
    """SMART less each other mixture, with intervals over seeds."""
    cells = [(m, n) for m in tasks for n in FULL.n if rows.of(SMART, m, n)]
    cells = [(m, n) for m, n in cells if all(row["n_rows"] == n for row in rows.of(SMART, m, n))]
    lines = []
    for how, title in TITLES.items():
        if how == SMART:
            continue
        line = [title]
        for m, n in cells:
            got = rows.of(how, m, n)
            found = (
                rows.behind(got, group, metric) if got and all(row["n_rows"] == n for row in got) else None
            )
            line.append(signed(found and (-found[0], -found[2], -found[1])))
        lines.append(line)
    return markdown(["SMART less", *(f"{many(m)}, {n:,}" for m, n in cells)], lines)


def worst(rows: Rows) -> str:
    lines = []
    for n in FULL.n:
        for how, (title, _, _) in MIXTURES.items():
            got = rows.of(how, None, n)
            if got:
                line = [f"{n:,}, {title}"]
                for group in GROUPS:
                    for name in ("mean", "p10", "p5", "p1"):
                        line.append(f"{statistics.fmean(row[group]['similarity'][name] for row in got):.3f}")
                lines.append(line)
    head = [f"{name}, {title}" for title in GROUPS.values() for name in ("mean", "10 %", "5 %", "1 %")]
    return markdown(["rows, mixture of all tasks", *head], lines)


def grid(rows: Rows) -> str:
    lines = []
    for tasks in OBJECTIVES:
        for how in OBJECTIVES:
            line = [f"{NAMES[tasks]}, {NAMES[how]}"]
            for m, n in FULL.grid:
                got = rows.of((tasks, "smart", how), m, n)
                for group in GROUPS:
                    for metric in ("rouge1", "coverage"):
                        mean = rows.mean(got, group, metric)
                        better = sign(rows.behind(got, group, metric)) > 0
                        text = "-" if mean is None else f"{mean:.3f}"
                        line.append(f"**{text}**" if better else text)
            lines.append(line)
    head = [
        f"{m}, {n:,}: {METRICS[metric]}, {title}"
        for m, n in FULL.grid
        for title in GROUPS.values()
        for metric in ("rouge1", "coverage")
    ]
    return markdown(["tasks by, rows by", *head], lines)


def budgets(rows: Rows) -> str:
    m, more = FULL.budgets
    columns = [(metric, how) for metric in ("rouge1", "coverage") for how in (*OBJECTIVES, "random")]
    lines = []
    for n in sorted({*FULL.n, *more}):
        means = [rows.mean(rows.of((GC, "smart", how), m, n), "seen", metric) for metric, how in columns]
        lines.append([f"{n:,}", *("-" if mean is None else f"{mean:.3f}" for mean in means)])
    head = [f"{METRICS[metric]}, rows by {NAMES[how]}" for metric, how in columns]
    return markdown([f"rows of {m} tasks", *head], lines)


def every_m() -> list[int | None]:
    return [*sorted({*(m for m in FULL.m if m is not None), *FULL.tasks[0]}), None]


CHOICES = {how: MIXTURES[how] for how in (SMART, (GC, "equal", FL), ("random", "equal", FL))}


def by_tasks(rows: Rows, n: int) -> str:
    lines = []
    for m in every_m():
        line = [many(m)]
        for how in CHOICES:
            got = rows.of(how, m, n)
            line.append(f"{statistics.fmean(row['n_rows'] for row in got):,.0f}" if got else "-")
            shown = (("seen", "rouge1"), ("new", "rouge1"), ("seen", "coverage"))
            means = [rows.mean(got, group, metric) for group, metric in shown]
            line += ["-" if mean is None else f"{mean:.3f}" for mean in means]
        lines.append(line)
    parts = ("rows", "ROUGE-1", "ROUGE-1, new tasks", "coverage")
    return markdown(["tasks", *(f"{c[0]}: {part}" for c in CHOICES.values() for part in parts)], lines)


def spoiled(rows: Rows) -> str:
    """Per kind and share: the share of chosen rows that are spoiled (or repeat another), and what transfer loses."""
    m, n = FULL.damaged
    hows = [*((GC, "smart", rows_by) for rows_by in (*OBJECTIVES, "random")), ("random", "equal", "random")]
    lines = []
    for kind, share in FULL.damages:
        line = [f"{DAMAGES[kind]}, {share:.0%}"]
        for how in hows:
            got = rows.of(how, m, n, kind, share)
            name = "repeated" if kind == "copies" else "marked"
            line.append(f"{statistics.fmean(row[name] for row in got):.1%}" if got else "-")
            line.append(signed(rows.behind(got, "seen", "rouge1", "minus_clean")))
        lines.append(line)
    titles = [f"rows by {NAMES[how[2]]}" if how[0] != "random" else "random tasks and rows" for how in hows]
    return markdown(["pool", *(text for t in titles for text in (t, "change"))], lines)


def whole_pool(rows: Rows) -> str:
    got = rows.of(("none", "none", "all"), None, None)
    last = max(rows.by.values(), key=lambda row: row["time"])
    versions = ", ".join(f"{name} {version}" for name, version in sorted(last["versions"].items()) if version)
    parts = [
        f"{title}: {rows.mean(got, group, 'rouge1'):.3f} and {rows.mean(got, group, 'exact'):.3f}"
        f" ({statistics.fmean(row[group]['prompts'] for row in got):,.0f} prompts of"
        f" {statistics.fmean(row[group]['tasks'] for row in got):.0f} tasks)"
        for group, title in GROUPS.items()
        if got
    ]
    pool = (
        f"{got[0]['pool_rows']:,} rows of {got[0]['pool_tasks']} tasks (seed {rows.seeds[0]})" if got else "-"
    )
    return (
        f"{len(rows.by):,} mixtures, {len(rows.seeds)} seeds; the pool of a seed: {pool}. ROUGE-1 and exact match with"
        f" *every* row of the pool chosen: {'; '.join(parts)}. Measured on {last['device']}, {last['cores']} cores,"
        f" {last['time'][:10]}, commit {last['commit']}{' (with changes)' if last['dirty'] else ''}: {versions}.\n"
    )


TABLES: dict[str, Callable[[Rows], str]] = {
    "measured": whole_pool,
    "tally": tally,
    "rouge1-seen": lambda rows: values(rows, "seen", "rouge1"),
    "rouge1-new": lambda rows: values(rows, "new", "rouge1"),
    "exact-seen": lambda rows: values(rows, "seen", "exact"),
    "rouge1-tasks": lambda rows: values(rows, "seen", "rouge1_tasks"),
    "coverage-seen": lambda rows: values(rows, "seen", "coverage"),
    "coverage-new": lambda rows: values(rows, "new", "coverage"),
    "differences-seen": lambda rows: differences(rows, "seen", "rouge1"),
    "differences-new": lambda rows: differences(rows, "new", "rouge1", FULL.m[:2]),
    "worst": worst,
    "grid": grid,
    "budgets": budgets,
    **{f"tasks-{n}": lambda rows, n=n: by_tasks(rows, n) for n in FULL.tasks[1]},
    "damage": spoiled,
}


def write_page(page: str, rows: Rows) -> str:
    """The page with the tables put between their markers. ValueError where a marker is missing."""
    for name, table in TABLES.items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        if page.count(begin) != 1 or page.count(end) != 1:
            raise ValueError(f"the page must hold {begin} and {end} once each")
        head, rest = page.split(begin)
        page = f"{head}{begin}\n{table(rows)}{end}{rest.split(end)[1]}"
    return page


# -- pictures ----------------------------------------------------------------------------------------------------------


def curve(
    axes, rows: Rows, points: Iterable[tuple[float, list[Row]]], group: str, metric: str, **style
) -> None:
    """Means over seeds, with intervals."""
    found = [(x, *seeds_interval(rows.values(got, group, metric))) for x, got in points if got]
    if found:
        x, mean, low, high = zip(*found, strict=True)
        axes.fill_between(x, low, high, color=style["color"], alpha=0.15, linewidth=0)
        axes.plot(x, mean, marker="o", markersize=3.5, linewidth=1.4, **style)


def draw_rows(plt, rows: Rows, metric: str):
    figure, panels = plt.subplots(
        2, len(FULL.m), figsize=(12, 6), sharex=True, sharey="row", layout="constrained"
    )
    for line, group in zip(panels, GROUPS, strict=True):
        for axes, m in zip(line, FULL.m, strict=True):
            for how, (title, colour, dashes) in MIXTURES.items():
                points = [(n, rows.of(how, m, n)) for n in FULL.n]
                curve(axes, rows, points, group, metric, color=colour, linestyle=dashes, label=title)
            axes.set(xscale="log", title=f"{many(m)} tasks, on {GROUPS[group]}")
        line[0].set_ylabel(METRICS[metric])
    for axes in panels[1]:
        axes.set_xlabel("rows asked for")
    figure.legend(
        *panels[0][-1].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False
    )
    return figure


def draw_tasks(plt, rows: Rows):
    figure, panels = plt.subplots(2, 2, figsize=(9, 6), sharex=True, layout="constrained")
    at = {m: i for i, m in enumerate(every_m())}
    for line, metric in zip(panels, ("rouge1", "coverage"), strict=True):
        for axes, group in zip(line, GROUPS, strict=True):
            for how, (title, colour, _) in CHOICES.items():
                for n, dashes in zip(FULL.tasks[1], ("-", "--"), strict=True):
                    points = [(i, rows.of(how, m, n)) for m, i in at.items()]
                    style = {"color": colour, "linestyle": dashes, "label": f"{title}, {n:,} rows"}
                    curve(axes, rows, points, group, metric, **style)
            axes.set(
                title=f"{METRICS[metric]}, {GROUPS[group]}", xticks=range(len(at)), xticklabels=map(many, at)
            )
    for axes in panels[1]:
        axes.set_xlabel("tasks")
    figure.legend(
        *panels[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False
    )
    return figure


def draw_budgets(plt, rows: Rows):
    """Against rows at random, which the same tasks give as many of."""
    m, more = FULL.budgets
    colours = {GC: "#c1121f", FL: "#1d3557", LD: "#2a9d8f"}
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    for axes, metric in zip(panels, ("rouge1", "coverage"), strict=True):
        for how, colour in colours.items():
            found = []
            for n in sorted({*FULL.n, *more}):
                got, base = rows.of((GC, "smart", how), m, n), rows.of((GC, "smart", "random"), m, n)
                if got and base:
                    pairs = zip(*(rows.values(some, "seen", metric) for some in (got, base)), strict=True)
                    found.append((n, *seeds_interval([a - b for a, b in pairs])))
            if found:
                x, mean, low, high = zip(*found, strict=True)
                axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
                axes.plot(x, mean, marker="o", markersize=3.5, color=colour, label=NAMES[how])
        axes.axhline(0, color="#8a8a8a", linewidth=0.8)
        title = f"{METRICS[metric]}, less that of random rows"
        axes.set(xscale="log", xlabel=f"rows of {m} tasks", title=title)
    panels[0].legend(frameon=False)
    return figure


PICTURES = {
    "outcome_transfer.png": lambda plt, rows: draw_rows(plt, rows, "rouge1"),
    "outcome_coverage.png": lambda plt, rows: draw_rows(plt, rows, "coverage"),
    "outcome_tasks.png": draw_tasks,
    "outcome_budgets.png": draw_budgets,
}


def draw(rows: Rows, folder: Path) -> list[Path]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for name, picture in PICTURES.items():
        figure = picture(plt, rows)
        figure.savefig(folder / name, dpi=120)
        plt.close(figure)
        made.append(folder / name)
    return made


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "results", nargs="+", type=Path, help=".jsonl files; of rows for a mixture the last counts"
    )
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "outcome.md")
    parser.add_argument("--images", type=Path, default=ROOT / "docs" / "img")
    given = parser.parse_args(arguments)
    rows = read(given.results)
    given.page.write_text(write_page(given.page.read_text(encoding="utf-8"), rows), encoding="utf-8")
    print(f"wrote {given.page}")
    for path in draw(rows, given.images):
        print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
