"""The rows of a pool, as an export reads them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from smartgpu.exports.messages import Layout, to_messages
from smartgpu.io import Pool

BATCH = 16_384  # rows in memory


class Rows:
    """Rows of a pool as dicts of a few fields, read anew by every iteration, a batch in memory."""

    def __init__(self, pool: Pool, indices: np.ndarray, fields: tuple[str, ...]):
        self.pool, self.indices, self.fields = pool, indices, fields

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for low in range(0, len(self.indices), BATCH):
            columns = self.pool.store.columns(self.fields, self.indices[low : low + BATCH])
            values = (v.tolist() if isinstance(v, np.ndarray) else v for v in columns.values())
            yield from (dict(zip(columns, row, strict=True)) for row in zip(*values, strict=True))


def check_rows(pool: Pool, layout: Layout) -> None:
    """Raise ValueError, with their number and the first of them, where rows of the pool cannot become conversations."""
    bad: list[tuple[int, str]] = []
    for row, values in enumerate(Rows(pool, np.arange(pool.n), layout.fields)):
        try:
            to_messages(values, layout)
        except ValueError as error:
            bad.append((row, str(error)))
    if bad:
        shown = "; ".join(f"row {row}: {why}" for row, why in bad[:3])
        more = f"; and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise ValueError(
            f"--export: {len(bad)} of the {pool.n} rows of {pool.source} cannot be exported ({shown}{more}): "
            "take them out of the pool"
        )
