"""The numbers of a report as plotly figures: plain dicts of traces and layouts, with colours by name.

A colour such as "var(--chosen)" is a custom property of style.css; the page's script puts its value in, for the theme
that is on, whenever that changes. Names from the data are put into figures by that script too (`labels`), escaped.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

BARS = 24  # tasks drawn as bars
CHOSEN, RANDOM, BOUND, POOL = "var(--chosen)", "var(--random)", "var(--bound)", "var(--pool)"
INK, CARD = "var(--ink)", "var(--card)"
LEGEND = {"orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom"}


def figures(numbers: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Name of its place in the page -> {"data", "layout"} and, where it has them, "labels" and "tips"."""
    out = {"standing": _standing(numbers["headline"]), "curve": _curve(numbers)}
    if numbers["quality"]:
        out["quality"] = _quality(numbers["quality"])
        out["ratings"] = _ratings(numbers["quality"]["histogram"])
    if numbers["map"]:
        out["map"] = _map(numbers["map"])
    if numbers["tasks"] and numbers["tasks"]["tasks"]:
        out["tasks"] = _tasks(numbers["tasks"])
    if numbers["sweep"]:
        out["sweep"] = _sweep(numbers["sweep"])
    out["distance"] = _distance(numbers["distance"])
    return out


def _scatter(
    mode: str, name: str, x: list[Any], y: list[Any], hover: str = "", **more: Any
) -> dict[str, Any]:
    told = {"hovertemplate": f"{hover}<extra></extra>"} if hover else {"hoverinfo": "skip"}
    return {"type": "scatter", "mode": mode, "name": name, "x": x, "y": y, **told, **more}


def _line(where: dict[str, Any], dash: str) -> dict[str, Any]:
    return {
        "type": "line",
        **where,
        "layer": "below",
        "line": {"color": "var(--grid)", "width": 1, "dash": dash},
    }


def _standing(head: dict[str, Any]) -> dict[str, Any]:
    """One line: random draws, these rows, the bound."""
    same = head["random_of_same_budgets"]
    parts = [
        ("random rows", head["random"]["values"], RANDOM, "line-ns-open", 22),
        *([("random rows, same tasks", same["values"], INK, "line-ns-open", 22)] if same else []),
        ("these rows", [head["coverage"]], CHOSEN, "diamond", 17),
        ("upper bound", [head["bound"]["coverage"]], BOUND, "triangle-left", 15),
    ]
    traces = []
    for name, values, colour, symbol, size in parts:
        edge = {"width": 2, "color": colour} if symbol.endswith("open") else {"width": 1, "color": CARD}
        marker = {"color": colour, "symbol": symbol, "size": size, "line": edge}
        traces.append(
            _scatter("markers", name, values, [0] * len(values), f"{name}: %{{x:.2%}}", marker=marker)
        )
    at = [value for trace in traces for value in trace["x"]]
    room = 0.12 * (max(at) - min(at)) or 0.05
    axis = {"tickformat": ".1~%", "range": [min(at) - room, max(at) + room], "nticks": 6, "zeroline": False}
    layout = {
        "height": 150,
        "margin": {"l": 14, "r": 14, "t": 44, "b": 34},
        "legend": {**LEGEND, "y": 1.1},
        "xaxis": axis,
        "yaxis": {"visible": False, "range": [-1, 1], "fixedrange": True},
        "shapes": [_line({"x0": 0, "x1": 1, "xref": "paper", "y0": 0, "y1": 0}, "solid")],
    }
    return {"data": traces, "layout": layout}


def _curve(numbers: dict[str, Any]) -> dict[str, Any]:
    """Coverage above, gains below, over the number of rows; suggested budgets as vertical lines through both."""
    curve, budgets = numbers["curve"], numbers["budgets"]
    k, random, gains = curve["k"], curve["random"], curve["gain"]
    edge = {"line": {"width": 0}, "showlegend": False}
    band = {"fill": "tonexty", "fillcolor": "var(--random-band)", **edge}
    dotted = {"color": RANDOM, "width": 2, "dash": "dot"}
    ring = {"color": CARD, "size": 9, "line": {"color": CHOSEN, "width": 2}}
    label = {"textposition": "top center", "textfont": {"color": INK}, "cliponaxis": False}
    at = "%{x:,} rows: %{y:.2%}"
    traces = [
        _scatter("lines", "", k, random["low"], **edge),
        _scatter("lines", "", k, random["high"], **band),
        _scatter("lines", "random rows, mean and range", k, random["mean"], f"random, {at}", line=dotted),
        _scatter(
            "lines", "these rows", k, curve["coverage"], f"these, {at}", line={"color": CHOSEN, "width": 2.5}
        ),
        _scatter(
            "markers+text",
            "suggested budgets",
            [budget["k"] for budget in budgets],
            [budget["coverage"] for budget in budgets],
            f"%{{text}}, {at}",
            text=[budget["name"] for budget in budgets],
            marker=ring,
            **label,
        ),
    ]
    top = max(*curve["coverage"], *random["high"], 1e-9)
    layout = {
        "height": 380,
        "legend": LEGEND,
        "margin": {"l": 58, "r": 16, "t": 64, "b": 48},
        "xaxis": {"title": {"text": "rows chosen"}, "rangemode": "tozero", "tickformat": "~s"},
        "yaxis": {"title": {"text": "coverage"}, "tickformat": ".0%", "range": [0, 1.1 * top]},
        "shapes": [
            _line({"x0": b["k"], "x1": b["k"], "y0": 0, "y1": 1, "yref": "paper"}, "dot") for b in budgets
        ],
    }
    if gains:
        thin = {"line": {"color": CHOSEN, "width": 1.5}, "yaxis": "y2", "showlegend": False}
        traces.append(_scatter("lines", "gain", k[1:], gains[1:], "row %{x:,}: gain %{y:.5g}", **thin))
        scale = {"type": "log", "dtick": 1} if min(gains[1:]) > 0 else {"type": "linear"}
        layout["yaxis2"] = {
            "title": {"text": "gain"},
            "domain": [0, 0.32],
            "tickformat": "~g",
            **scale,
        }
        layout["xaxis"]["anchor"], layout["yaxis"]["domain"], layout["height"] = "y2", [0.4, 1], 520
    return {"data": traces, "layout": layout}


def _quality(quality: dict[str, Any]) -> dict[str, Any]:
    """Mean quality over coverage: these rows, random ones, the best rated, and the path of alpha."""
    traces, path = [], quality["path"]
    at = "coverage %{x:.2%}, mean quality %{y:.4g}"
    if path:
        points = path["points"]
        names = [f"{point['alpha']:g}" for point in points]
        x, y = ([point[key] for point in points] for key in ("coverage", "quality_mean"))
        ring = [INK if point["alpha"] == path["suggested"] else POOL for point in points]
        how = {
            "line": {"color": POOL, "width": 1.5},
            "marker": {"color": CARD, "size": 9, "line": {"color": ring, "width": 2}},
            "textposition": "top right",
            "textfont": {"color": INK},
            "cliponaxis": False,
        }
        hover = f"alpha %{{text}}: {at}"
        traces.append(_scatter("lines+markers+text", "QDIT by alpha", x, y, hover, text=names, **how))
    random, sets = quality["random"], (quality["chosen"], quality["best"])
    parts = [
        ("random rows", random["coverage"], random["mean"], RANDOM, "circle-open", 9),
        *(
            (name, [each["coverage"]], [each["mean"]], colour, symbol, 15)
            for name, each, colour, symbol in zip(
                ("these rows", "highest quality"),
                sets,
                (CHOSEN, BOUND),
                ("diamond", "triangle-up"),
                strict=True,
            )
        ),
    ]
    for name, x, y, colour, symbol, size in parts:
        marker = {"color": colour, "symbol": symbol, "size": size}
        traces.append(_scatter("markers", name, x, y, f"{name}: {at}", marker=marker))
    layout = {
        "height": 380,
        "legend": LEGEND,
        "margin": {"l": 58, "r": 24, "t": 64, "b": 48},
        "xaxis": {"title": {"text": "coverage"}, "tickformat": ".1~%", "zeroline": False},
        "yaxis": {"title": {"text": "mean quality"}, "tickformat": "~g", "zeroline": False},
    }
    return {"data": traces, "layout": layout}


def _ratings(histogram: dict[str, Any]) -> dict[str, Any]:
    traces = []
    for name, key, colour in (("the pool", "pool", POOL), ("these rows", "chosen", CHOSEN)):
        traces.append(
            {
                "type": "bar",
                "name": name,
                "x": histogram["at"],
                "y": histogram[key],
                "marker": {"color": colour},
                "hovertemplate": f"{name}, quality %{{x:.4g}}: %{{y:.1%}}<extra></extra>",
            }
        )
    layout = {
        "height": 280,
        "legend": LEGEND,
        "bargap": 0.25,
        "margin": {"l": 58, "r": 16, "t": 44, "b": 46},
        "xaxis": {"title": {"text": "quality"}, "tickformat": "~g"},
        "yaxis": {"title": {"text": "share of rows"}, "tickformat": ".0%"},
    }
    return {"data": traces, "layout": layout}


def _map(plane: dict[str, Any]) -> dict[str, Any]:
    points, count = plane["points"], plane["pool"]["shown"]
    names = [name for name in ("row", "rank", "task", "text") if points[name] is not None]
    traces, tips = [], []
    for name, part, colour, size, opacity in (
        ("pool", slice(0, count), POOL, 5, 0.55),
        ("chosen", slice(count, None), CHOSEN, 7, 0.9),
    ):
        marker = {"color": colour, "size": size, "opacity": opacity, "line": {"width": 0}}
        x, y = points["x"][part], points["y"][part]
        traces.append(_scatter("markers", name, x, y, hoverinfo="none", marker=marker))
        columns = [points[name][part] for name in names]
        tips.append([dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)])
    titles = ["UMAP 1", "UMAP 2"]
    if plane["explained"]:
        titles = [f"component {i + 1}, {v:.0%} of the variance" for i, v in enumerate(plane["explained"])]
    axis = {"showticklabels": False, "showgrid": False, "zeroline": False}
    layout = {
        "height": 560,
        "legend": LEGEND,
        "margin": {"l": 34, "r": 10, "t": 40, "b": 34},
        "dragmode": "pan",
        "hovermode": "closest",
        "xaxis": {**axis, "title": {"text": titles[0], "standoff": 6}},
        "yaxis": {**axis, "title": {"text": titles[1], "standoff": 6}, "scaleanchor": "x"},
    }
    return {"data": traces, "tips": tips, "layout": layout}


def _tasks(tasks: dict[str, Any]) -> dict[str, Any]:
    """Bars of the tasks that give most rows, the first at the top."""
    rows = sorted(tasks["tasks"], key=lambda row: -row["chosen"])[:BARS][::-1]
    at = list(range(len(rows)))
    hatch = ["/" if row.get("capped") else "" for row in rows]
    traces = []
    for name, key, colour, shape in (
        ("share of the pool", "pool_share", POOL, ""),
        ("share of these rows", "share", CHOSEN, hatch),
    ):
        traces.append(
            {
                "type": "bar",
                "orientation": "h",
                "name": name,
                "x": [row[key] for row in rows],
                "y": at,
                "marker": {"color": colour, "pattern": {"shape": shape, "fgcolor": CARD, "size": 6}},
                "hovertemplate": f"{name}: %{{x:.2%}}<extra></extra>",
            }
        )
    if any("budget" in row for row in rows):
        whole = sum(row["chosen"] for row in tasks["tasks"]) + tasks["others"]["chosen"]
        marker = {"symbol": "line-ns-open", "size": 12, "color": INK, "line": {"width": 2}}
        budgets = [row["budget"] / whole for row in rows]
        hover = "budget before caps: %{x:.2%}"
        traces.append(_scatter("markers", "budget before caps", budgets, at, hover, marker=marker))
    layout = {
        "height": 110 + 30 * len(rows),
        "barmode": "group",
        "bargap": 0.25,
        "legend": {**LEGEND, "traceorder": "normal"},
        "margin": {"l": 10, "r": 16, "t": 70, "b": 40},
        "xaxis": {"tickformat": ".1~%", "rangemode": "tozero", "nticks": 6},
        "yaxis": {"automargin": True, "range": [-0.6, len(rows) - 0.4]},
    }
    labels = {"axis": "yaxis", "at": at, "text": [row["task"] for row in rows]}
    return {"data": traces, "labels": labels, "layout": layout}


def _sweep(rows: list[dict[str, Any]]) -> dict[str, Any]:
    rows = sorted(rows, key=lambda row: row["n_tasks"])
    sizes, traces = [row["n_tasks"] for row in rows], []
    for name, key, colour in (
        ("all prompts", "coverage", CHOSEN),
        ("prompts of left-out tasks", "coverage_left_out", RANDOM),
    ):
        how = {"line": {"color": colour, "width": 2}, "marker": {"color": colour, "size": 8}}
        shares = [row[key] for row in rows]
        traces.append(
            _scatter("lines+markers", name, sizes, shares, f"%{{x}} tasks, {name}: %{{y:.2%}}", **how)
        )
    layout = {
        "height": 320,
        "legend": LEGEND,
        "margin": {"l": 58, "r": 16, "t": 44, "b": 46},
        "xaxis": {"title": {"text": "tasks"}, "rangemode": "tozero"},
        "yaxis": {"title": {"text": "coverage"}, "tickformat": ".0%"},
    }
    return {"data": traces, "layout": layout}


def _distance(histogram: dict[str, Any]) -> dict[str, Any]:
    edges = histogram["edges"]
    pairs = list(pairwise(edges))
    bars = {
        "type": "bar",
        "x": [(low + high) / 2 for low, high in pairs],
        "y": histogram["counts"],
        "width": [high - low for low, high in pairs],
        "customdata": [list(pair) for pair in pairs],
        "marker": {"color": CHOSEN, "line": {"color": CARD, "width": 1}},
        "hovertemplate": "%{y:,} rows at %{customdata[0]:.3f} to %{customdata[1]:.3f}<extra></extra>",
    }
    layout = {
        "height": 300,
        "margin": {"l": 58, "r": 16, "t": 16, "b": 46},
        "xaxis": {"title": {"text": "distance to the nearest chosen row"}, "range": [edges[0], edges[-1]]},
        "yaxis": {"title": {"text": "rows"}, "tickformat": "~s"},
    }
    return {"data": [bars], "layout": layout}
