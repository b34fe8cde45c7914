"""The page: one template, plotly.js and the figures in it, so that it needs no network."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from smartgpu.reporting.figures import BARS, figures
from smartgpu.reporting.measuring import TEXT

SHOWN_TASKS = 500  # rows of the table of tasks
LISTED = 12  # values of a list in the run card


def render(numbers: dict[str, Any]) -> str:
    """The page of a report's numbers. Whatever comes from the data is escaped: by the template, and inside JSON.

    Only scripts that carry the nonce may run (see the policy at the top of the template); it is made from the content,
    so that the same numbers give the same page.
    """
    import jinja2
    from plotly.offline import get_plotlyjs

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("smartgpu.reporting", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    environment.filters |= {"percent": percent, "count": count, "figure": figure, "flat": flat}
    drawn = figures(numbers)
    nonce = hashlib.sha256(json.dumps([numbers, drawn]).encode()).hexdigest()
    limits = {"bars": BARS, "tasks": SHOWN_TASKS, "text": TEXT}
    return environment.get_template("template.html.j2").render(
        r=numbers, figures=drawn, plotlyjs=get_plotlyjs(), nonce=nonce, limits=limits
    )


def percent(share: float, digits: int = 1) -> str:
    """0.12345 -> '12.3%'; what is not all never reads 100%, what is not nothing never 0%."""
    text = f"{100 * share:.{digits}f}"
    edge = 10.0**-digits
    if share < 1 and float(text) >= 100:
        text = f"{100 - edge:.{digits}f}"
    elif share > 0 and float(text) == 0:
        return f"< {edge:.{digits}f}%"
    return f"{text}%"


def count(number: int) -> str:
    """52002 -> '52,002'."""
    return f"{number:,}"


def figure(number: float) -> str:
    """Three figures of a number."""
    return f"{number:.3g}" if abs(number) < 1000 else f"{number:,.0f}"


def flat(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """(name, value) of everything in nested dicts, for a table: {"a": {"b": 1}} -> [("a.b", "1")]."""
    if isinstance(value, dict):
        inner = [
            pair
            for key, item in value.items()
            for pair in flat(item, f"{prefix}.{key}" if prefix else str(key))
        ]
        return inner or [(prefix, "-")]
    if value is None or value == []:
        return [(prefix, "-")]
    if isinstance(value, list):
        shown = ", ".join(str(v) if not isinstance(v, dict) else json.dumps(v) for v in value[:LISTED])
        return [(prefix, shown + (f" and {len(value) - LISTED} more" if len(value) > LISTED else ""))]
    if isinstance(value, float):
        return [(prefix, f"{value:.6g}")]
    return [(prefix, "yes" if value is True else "no" if value is False else str(value))]
