"""Exports: a mixture in the form that a trainer reads as it is, so that it takes exactly the chosen rows.

Every row becomes one conversation in a column `messages`. The rows of a task are one parquet file (types are stated
there; read from JSON, a task whose texts all look like dates would become timestamps), all rows together one JSON Lines
file, for the trainer that reads nothing else. They lie in a folder that is named by their content, because two trainers
keep prepared data by path. `TRAINERS` says what is written for each trainer beside them.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import secrets
import shlex
import shutil
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smartgpu.exports import trainers
from smartgpu.exports.messages import Layout, Turns, find_layout, to_messages
from smartgpu.exports.trainers import Data
from smartgpu.files import replacing
from smartgpu.io.names import safe_names
from smartgpu.similarity import choose

Row = Mapping[str, Any]
MERGED = "mixture.jsonl"
BATCH = 4096  # rows of a row group


@dataclass(frozen=True)
class Trainer:
    """A row of the table of trainers.

    name    as --export takes it           title  as its authors write it
    reads   the command that reads what is written, with {root} for the folder
    trap    what would change the rows, and what prevents it
    files   the names of its own files, beside the data
    write   their texts
    merged  whether it reads all rows from one file, instead of one file per task
    """

    name: str
    title: str
    reads: str
    trap: str
    files: tuple[str, ...]
    write: Callable[[Data], dict[str, str]]
    merged: bool = False


TRAINERS = {
    trainer.name: trainer
    for trainer in (
        Trainer(
            "trl",
            "TRL",
            "trl sft --config run.yaml, where run.yaml holds these lines",
            "A `fraction` is normalised, cannot ask for fewer rows in all, and takes the first: here are whole files.",
            ("trl.yaml",),
            trainers.trl,
        ),
        Trainer(
            "axolotl",
            "axolotl",
            "axolotl train run.yaml, where run.yaml holds these lines",
            "There are no weights: here are whole files. Rows longer than sequence_len are dropped, unless they are "
            "truncated as here. Prepared data are kept by path: another mixture has other paths.",
            ("axolotl.yaml",),
            trainers.axolotl,
        ),
        Trainer(
            "llama-factory",
            "LLaMA-Factory",
            "llamafactory-cli train run.yaml, where run.yaml holds these lines",
            "`num_samples` draws at random, `max_samples` cuts, interleaving stops early or repeats: here are whole "
            "files, concatenated. `packing: true` would drop rows longer than cutoff_len.",
            ("llama-factory.yaml", "dataset_info.json"),
            trainers.llama_factory,
        ),
        Trainer(
            "ms-swift",
            "ms-swift",
            'source {root}/ms-swift.sh && swift sft "${{mixture[@]}}" --model ...',
            "`path#N` draws at random: here are whole files. Rows that are too long or fail are dropped, or replaced "
            "by others: here they are truncated, and a failure stops. Some versions hold 1 % back: not here.",
            ("ms-swift.sh",),
            trainers.ms_swift,
        ),
        Trainer(
            "open-instruct",
            "open-instruct",
            'source {root}/open-instruct.sh && accelerate launch open_instruct/finetune.py "${{mixture[@]}}" ...',
            "A number without a point is a count, with one a share, and less than the whole is drawn at random: here "
            "is 1.0 of whole files. Prepared data are kept by path: another mixture has other paths.",
            ("open-instruct.sh",),
            trainers.open_instruct,
        ),
        Trainer(
            "megatron-lm",
            "Megatron-LM",
            'source {root}/megatron.sh && torchrun ... pretrain_gpt.py "${{mixture[@]}}" --tokenizer-type SFTTokenizer',
            "Weights are shares of the samples trained on, never counts, and --split holds rows back: here is one "
            "file without weights, all of it for training, of which --train-samples takes every row once, in order. "
            "Rows that do not fill a last global batch are left out.",
            ("megatron.sh",),
            trainers.megatron,
            merged=True,
        ),
    )
}


def export(
    names: str | Sequence[str],
    tasks: Mapping[str, Iterable[Row]],
    out: str | Path,
    *,
    merged: Iterable[Row] | None = None,
    ordered: bool = False,
    root: str | None = None,
    layout: Layout | None = None,
) -> dict[str, list[str]]:
    """Write a mixture for trainers.

    names    names of TRAINERS
    tasks    task -> its rows in order, dicts as read_pool(...).rows(...) gives them; every iterable is read once, and
             again where merged is None and a trainer wants all rows in one file. A task without rows is left out
    out      folder, made if it is not there. Files of earlier exports in it are replaced by those of the same name
    merged   all rows in the order of the mixture. Default: task after task
    ordered  True: trainers are told not to shuffle, as far as they can; False: to shuffle as they do
    root     the path of `out` where the trainer runs. Default: out, absolute
    layout   find_layout(fields, ...). Default: by the fields of the first row
    returns  name of trainer -> what was written for it, relative to out: its own files, then the data
    raises   ValueError for an unknown trainer, a root that cannot be read (see check_root), no rows, and a row that is
             no conversation, named by task and position
    One pass over the rows for each form; a batch of rows in memory.
    """
    chosen = [choose(name, TRAINERS, "trainer") for name in ([names] if isinstance(names, str) else names)]
    if not chosen:
        raise ValueError(f"names must hold one of {', '.join(TRAINERS)}, got none")
    out = Path(out).expanduser()
    root = str(out.resolve()) if root is None else root
    check_root(root)
    out.mkdir(parents=True, exist_ok=True)
    temporary = out / f".data-{secrets.token_hex(6)}.tmp"
    temporary.mkdir()
    try:
        digest = hashlib.sha256()
        files: dict[str, str] = {}
        counts = set()
        if any(not TRAINERS[name].merged for name in chosen):
            files, total = _write_tasks(temporary, tasks, layout, digest)
            counts.add(total)
        if any(TRAINERS[name].merged for name in chosen):
            rows = itertools.chain.from_iterable(tasks.values()) if merged is None else merged
            counts.add(_write_merged(temporary / MERGED, _talks("", rows, layout), digest))
        if len(counts) > 1:
            raise ValueError(
                f"merged must hold the rows of tasks, but one has {min(counts)} and one {max(counts)}"
            )
        if counts == {0}:
            raise ValueError("tasks must hold at least one row, got none")
        folder = f"data-{digest.hexdigest()[:12]}"
        if (out / folder).exists():  # the same content
            shutil.rmtree(out / folder)
        os.rename(temporary, out / folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    data = Data(root, folder, files, MERGED, counts.pop(), ordered)
    return {name: _write_manifest(out, TRAINERS[name], data) for name in chosen}


def check_root(root: str) -> None:
    """Refuse a path in which `datasets`, the trainers' loader, would see a pattern, a variable or a protocol."""
    odd = next((part for part in ("*", "?", "[", "]", "$", "::", "://", "\n") if part in root), None)
    if odd:
        raise ValueError(
            f"a trainer cannot read from {root!r}: it would take {odd!r} for a pattern; choose another folder"
        )


def _write_tasks(
    folder: Path, tasks: Mapping[str, Iterable[Row]], layout: Layout | None, digest: Any
) -> tuple[dict[str, str], int]:
    """One parquet file per task that has rows: safe name -> file, and the number of rows."""
    files, total = {}, 0
    for task, name in _named(tasks).items():
        talks = _talks(f"task {task!r}, ", tasks[task], layout)
        count = _write_parquet(folder / f"{name}.parquet", talks, digest)
        if count:
            files[name] = f"{name}.parquet"
            digest.update(f"{name} {count}\n".encode())
        total += count
    return files, total


def _named(tasks: Iterable[str]) -> dict[str, str]:
    """Safe names in the order of the tasks."""
    tasks = list(tasks)
    names = safe_names(tasks)
    return {task: names[task] for task in tasks}


def _talks(where: str, rows: Iterable[Row], layout: Layout | None) -> Iterator[Turns]:
    for at, row in enumerate(rows):
        layout = layout or find_layout(list(row))
        try:
            yield to_messages(row, layout)
        except ValueError as error:
            raise ValueError(f"{where}row {at} of the mixture cannot be exported: {error}") from error


def _write_parquet(path: Path, talks: Iterator[Turns], digest: Any) -> int:
    """Returns the number of rows; writes no file for none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    turn = pa.struct([("role", pa.string()), ("content", pa.string())])
    schema, total, writer = pa.schema([("messages", pa.list_(turn))]), 0, None
    try:
        while batch := list(itertools.islice(talks, BATCH)):
            writer = writer or pq.ParquetWriter(path, schema, compression="zstd")
            writer.write_table(pa.table({"messages": batch}, schema), row_group_size=BATCH)
            digest.update(json.dumps(batch).encode())
            total += len(batch)
    finally:
        if writer is not None:
            writer.close()
    return total


def _write_merged(path: Path, talks: Iterator[Turns], digest: Any) -> int:
    total = 0
    with open(path, "wb") as file:
        for turns in talks:
            line = json.dumps({"messages": turns}, ensure_ascii=False).encode() + b"\n"
            digest.update(line)
            file.write(line)
            total += 1
    return total


def _write_manifest(out: Path, trainer: Trainer, data: Data) -> list[str]:
    """The trainer's own files, each with what reads it and what it prevents at its head."""
    command = trainer.reads.format(root=shlex.quote(data.root))
    lines = [f"{data.rows} rows for {trainer.title}, written by smartgpu.", f"Read by: {command}"]
    head = "".join(f"# {line}\n" for line in [*lines, *textwrap.wrap(trainer.trap, 100)])
    written = trainer.write(data)
    for name, text in written.items():
        with replacing(out / name, "w") as file:
            file.write(text if name.endswith(".json") else head + text)
    held = [data.merged] if trainer.merged else data.tasks.values()
    return [*written, *(f"{data.folder}/{file}" for file in held)]
