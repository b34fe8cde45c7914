"""Ray Data: embeddings of a dataset, and the rows of it that are chosen.

The selection itself runs in the calling process, or in those of a torch.distributed group: Ray moves data here, and no
collective. Its blocks are read one after the other; embeddings and chosen rows are all that stays.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from smartgpu.adapters.hf import check_rows, columns
from smartgpu.api import select
from smartgpu.selection import Selection

if TYPE_CHECKING:
    import ray.data

BATCH = 4096  # rows read at a time


def read_embeddings(dataset: ray.data.Dataset, column: str = "embedding") -> np.ndarray:
    """(n, d) of a column of lists of numbers or of tensors, in the order of the dataset. ValueError for none."""
    names = dataset.schema().names
    if column not in names:
        raise ValueError(f"column must be one of the dataset's, {', '.join(names)}: got {column!r}")
    parts = []
    for batch in _in_order(dataset.select_columns([column])).iter_batches(
        batch_size=BATCH, batch_format="numpy"
    ):
        values = batch[column]
        parts.append(np.stack(list(values)) if values.dtype == object else values)
    return np.concatenate(parts)


def chosen(dataset: ray.data.Dataset, selection: Selection) -> ray.data.Dataset:
    """The rows of a selection, in pick order, with smartgpu_rank and smartgpu_gain. One pass over the dataset."""
    import pyarrow as pa
    import ray

    check_rows(dataset.count(), selection)
    order = np.argsort(selection.indices)
    rows, parts, start = selection.indices[order], [], 0
    for batch in _in_order(dataset).iter_batches(batch_size=BATCH, batch_format="pyarrow"):
        first, last = np.searchsorted(rows, (start, start + len(batch)))
        parts.append(batch.take(pa.array(rows[first:last] - start)))
        start += len(batch)
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    table = pa.concat_tables(parts).take(pa.array(rank))
    for name, values in columns(selection).items():
        table = table.append_column(name, pa.array(values))
    return ray.data.from_arrow(table)


def select_rows(
    dataset: ray.data.Dataset, k: int | float, *, column: str = "embedding", **arguments: Any
) -> ray.data.Dataset:
    """The k best rows of a dataset by the embeddings in `column`. arguments: as for smartgpu.select()."""
    return chosen(dataset, select(read_embeddings(dataset, column), k, **arguments))


def _in_order(dataset: ray.data.Dataset) -> ray.data.Dataset:
    """Row numbers are places in the dataset: blocks must come as they are listed."""
    dataset.context.execution_options.preserve_order = True
    return dataset
