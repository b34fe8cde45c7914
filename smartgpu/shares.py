"""How rows are dealt out among processes. No result depends on it: a pair has one value wherever it is computed."""

from __future__ import annotations

BLOCK = 1152  # rows that are dealt out together, whole tiles, where each process gets FEW such blocks
FEW = 4
MOST = 1024  # blocks where it does not: smaller ones


def _blocks(r: int, size: int) -> tuple[int, int]:
    """Rows of a block, and how many blocks there are."""
    block = BLOCK if r >= FEW * BLOCK * size else max(1, r // MOST)
    return block, -(-r // block)


def share(r: int, rank: int, size: int) -> slice:
    """The rows of one process: whole blocks, in order and as evenly as they go."""
    block, blocks = _blocks(r, size)
    return slice(min(blocks * rank // size * block, r), min(blocks * (rank + 1) // size * block, r))


def largest(r: int, size: int) -> int:
    """Rows of the largest share."""
    block, blocks = _blocks(r, size)
    return min(-(-blocks // size) * block, r)
