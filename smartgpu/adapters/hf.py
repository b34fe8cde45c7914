"""Hugging Face datasets: chosen rows as a dataset, in pick order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from smartgpu.selection import Selection

if TYPE_CHECKING:
    import datasets

RANK, GAIN = "smartgpu_rank", "smartgpu_gain"


def chosen(dataset: datasets.Dataset, selection: Selection) -> datasets.Dataset:
    """The rows of a selection, with the columns smartgpu_rank (int64) and smartgpu_gain (float64).

    dataset is the one that was selected from: smartgpu.select(dataset, k) takes one with a column "embeddings",
    "embedding" or "vector". Raises ValueError for another number of rows.
    """
    check_rows(len(dataset), selection)
    rows = dataset.select(selection.indices)
    for name, values in columns(selection).items():
        rows = rows.add_column(name, values)
    return rows


def check_rows(n: int, selection: Selection) -> None:
    if n != selection.n:
        raise ValueError(f"dataset must have the {selection.n} rows that were selected from, got {n}")


def columns(selection: Selection) -> dict[str, list[Any]]:
    return {RANK: list(range(selection.k)), GAIN: selection.gains.tolist()}
