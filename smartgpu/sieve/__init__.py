"""Selection from a stream, one pass: sieve-streaming (docs/streaming.md).

values.py and remembered.py say what sets of rows are worth on a stream, and what the rows of a batch would add to many
sets at once, from the similarities of between.py; sieves.py holds the sets and their thresholds, sample.py the rows
that are represented; stream.py is what callers see.
"""

from __future__ import annotations

from smartgpu.sieve.stream import SieveStreaming, select_stream

__all__ = ["SieveStreaming", "select_stream"]
