"""datatrove: a step of a pipeline that lets the chosen documents through."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from smartgpu.adapters.hf import GAIN, RANK
from smartgpu.api import select


class SmartSelect(PipelineStep):
    """The best k documents of those that a task reads, in pick order, by the vectors in `metadata[embedding]`.

    k is a number, or a share of the documents: with several tasks each chooses from its own shard, so that a share of
    more than is wanted, and then one task on the union, is what partition greedy does. All documents of a task are held
    until the last one is there. metadata gets smartgpu_rank and smartgpu_gain.
    arguments: as for smartgpu.select(), objective, similarity, memory, ...
    """

    name = "smartgpu: choose"
    type = "Filters"

    def __init__(self, k: int | float, embedding: str = "embedding", **arguments: Any):
        super().__init__()
        self.k, self.embedding, self.arguments = k, embedding, arguments

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        documents, vectors = [], []
        for document in data or ():
            if self.embedding not in document.metadata:
                raise ValueError(
                    f"document {document.id!r} has no metadata {self.embedding!r}, the vector to choose by"
                )
            self.stat_update("total")
            documents.append(document)
            vectors.append(np.asarray(document.metadata[self.embedding], np.float32))
        if not documents:
            return
        with self.track_time():
            selection = select(np.stack(vectors), self.k, **self.arguments)
        for place, (j, gain) in enumerate(
            zip(selection.indices.tolist(), selection.gains.tolist(), strict=True)
        ):
            documents[j].metadata |= {RANK: place, GAIN: gain}
            self.stat_update("forwarded")
            yield documents[j]
        self.stat_update("dropped", value=len(documents) - selection.k)
