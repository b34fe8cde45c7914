"""NeMo-Curator: a stage of a pipeline that lets the chosen documents through."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
from nemo_curator.stages.base import ProcessingStage
from nemo_curator.tasks import DocumentBatch

from smartgpu.adapters.hf import GAIN, RANK
from smartgpu.api import select
from smartgpu.io.matrices import from_column


class SmartSelect(ProcessingStage[DocumentBatch, DocumentBatch]):
    """The best k documents of a task, in pick order, by the vectors in a column, with smartgpu_rank and _gain.

    k is a number, or a share of the documents. with_(batch_size=m) chooses from those of up to m tasks together, as
    many as the executor hands over at once; a task keeps those of its own, and ends where it has none.
    arguments: as for smartgpu.select(), objective, similarity, memory, ... Threads are the stage's resources.cpus, 1
    unless said; a GPU is used where with_(resources=Resources(gpus=1)) asks for one.
    """

    name = "smartgpu"

    def __init__(self, k: int | float, embedding: str = "embeddings", **arguments: Any):
        self.k, self.embedding, self.arguments = k, embedding, arguments

    def inputs(self) -> tuple[list[str], list[str]]:
        return ["data"], [self.embedding]

    def outputs(self) -> tuple[list[str], list[str]]:
        return ["data"], [RANK, GAIN]

    def process(self, task: DocumentBatch) -> DocumentBatch | None:
        return self.process_batch([task])[0]

    def process_batch(self, tasks: list[DocumentBatch]) -> list[DocumentBatch | None]:
        for task in tasks:
            if self.embedding not in (held := task.get_columns()):
                where = f"task {task.task_id!r} of {task.dataset_name!r}"
                raise ValueError(f"{where} has no column {self.embedding!r}, only {', '.join(held)}")
        frames, out, start = [task.to_pandas() for task in tasks], [], 0
        vectors = [pa.array(frame[self.embedding]) for frame in frames if len(frame)]
        if not vectors:
            return [None] * len(tasks)
        x = from_column(pa.chunked_array(vectors), f"column {self.embedding!r}")
        chosen = select(x, self.k, **{"threads": max(1, int(self.resources.cpus)), **self.arguments})
        for task, frame in zip(tasks, frames, strict=True):
            rank = np.flatnonzero((chosen.indices >= start) & (chosen.indices < start + len(frame)))
            rows = frame.take(chosen.indices[rank] - start).reset_index(drop=True)
            data = rows.assign(**{RANK: rank, GAIN: chosen.gains[rank]})
            out.append(replace(task, data=data) if len(rank) else None)
            start += len(frame)
        return out
