"""What each trainer's manifest says: one function per trainer, from the files of the data to the text of its own."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Data:
    """The files that an export refers to.

    root     the folder of the export, as the trainer will see it
    folder   the folder of the data in it
    tasks    safe name -> file in that folder: the rows of one task
    merged   file in that folder: all rows
    rows     how many they are
    ordered  whether the trainer is to take them in their order, as far as it can, or to shuffle
    """

    root: str
    folder: str
    tasks: Mapping[str, str]
    merged: str
    rows: int
    ordered: bool

    def path(self, file: str) -> str:
        return f"{self.root}/{self.folder}/{file}"

    @property
    def paths(self) -> list[str]:
        return [self.path(file) for file in self.tasks.values()]


def trl(data: Data) -> dict[str, str]:
    entry = {"path": "parquet", "split": "train", "columns": ["messages"]}
    return {"trl.yaml": _yaml({"datasets": [{**entry, "data_files": path} for path in data.paths]})}


def axolotl(data: Data) -> dict[str, str]:
    entry = {"ds_type": "parquet", "split": "train", "type": "chat_template", "field_messages": "messages"}
    config = {
        "datasets": [{"path": path, **entry} for path in data.paths],
        "shuffle_merged_datasets": not data.ordered,
        "curriculum_sampling": data.ordered,
        "val_set_size": 0,
        "dataset_exact_deduplication": False,
        "excess_length_strategy": "truncate",
    }
    return {"axolotl.yaml": _yaml(config)}


def llama_factory(data: Data) -> dict[str, str]:
    tags = {"role_tag": "role", "content_tag": "content"}
    tags |= {f"{role}_tag": role for role in ("user", "assistant", "system")}
    how = {"formatting": "sharegpt", "columns": {"messages": "messages"}, "tags": tags}
    # file_name is relative to dataset_dir
    info = {name: {"file_name": f"{data.folder}/{file}", **how} for name, file in data.tasks.items()}
    config = {
        "dataset_dir": data.root,
        "dataset": ",".join(info),
        "mix_strategy": "concat",
        "val_size": 0.0,
        "streaming": False,
        "disable_shuffling": data.ordered,
    }
    # in ASCII: the trainer opens it in the encoding of its locale
    return {"llama-factory.yaml": _yaml(config), "dataset_info.json": json.dumps(info, indent=1) + "\n"}


def ms_swift(data: Data) -> dict[str, str]:
    shuffle = "false" if data.ordered else "true"
    lines = [
        ["--dataset"],
        *([path] for path in data.paths),
        ["--split_dataset_ratio", "0"],
        ["--strict", "true"],
        ["--truncation_strategy", "right"],
        ["--dataset_shuffle", shuffle],
        ["--train_dataloader_shuffle", shuffle],
    ]
    return {"ms-swift.sh": _array(lines)}


def open_instruct(data: Data) -> dict[str, str]:
    pairs = [[path, "1.0"] for path in data.paths]
    return {
        "open-instruct.sh": _array(
            [["--dataset_mixer_list"], *pairs, ["--dataset_mixer_list_splits", "train"]]
        )
    }


def megatron(data: Data) -> dict[str, str]:
    lines = [
        ["--sft"],
        ["--train-data-path", data.path(data.merged)],
        ["--train-samples", str(data.rows)],
        ["--dataloader-type", "single"],
        ["--eval-iters", "0"],
    ]
    return {"megatron.sh": _array(lines)}


def _yaml(config: Mapping[str, Any]) -> str:
    import yaml

    return yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=10_000)


def _array(lines: Sequence[Sequence[str]]) -> str:
    """A bash array `mixture` of command line arguments: paths may hold anything, and there may be thousands."""
    body = "".join(f"  {' '.join(map(shlex.quote, words))}\n" for words in lines)
    return f"mixture=(\n{body})\n"
