"""Exports, each read back by a reader written from its trainer's own rule: which rows it takes, in which order."""

import argparse
import json
import os
import re
import subprocess

import numpy as np
import pytest

pa = pytest.importorskip("pyarrow")
yaml = pytest.importorskip("yaml")
datasets = pytest.importorskip("datasets")  # what all six trainers load with

from smartgpu.exports import MERGED, TRAINERS, export
from smartgpu.exports.messages import find_layout, to_messages
from smartgpu.io.names import safe_names

# A task that looks like dates throughout, one of one row, names that are no file names, contents of every kind.
TASKS = {
    "t0/qa": [
        ("Größer, 'quoted' \"twice\"?", "yes\nno"),
        ("tab\there \\ back", "nul \x00 and \u2028"),
        ("c", "#1"),
    ],
    "dates": [("2020-01-01", "2020-01-02"), ("2021-01-01 10:00:00", "2021-01-02")],
    "Dates": [("one row", "1.0")],
    "": [('{"json": [1]}', "[]"), ("😀", "null"), ("same", "same"), ("same", "same")],
    "../../x": [("a" * 5000, "b")],
    "long " * 60: [("p", "q")],
    "con": [("$HOME `id`", "$(id)")],
}
# The mixture's own order: not task by task.
ORDER = np.random.default_rng(5).permutation(sum(map(len, TASKS.values())))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf cache")
    monkeypatch.setattr(datasets.config, "HF_MODULES_CACHE", str(tmp_path / "hf modules"))
    datasets.disable_progress_bars()


def rows_of(pairs):
    return [{"prompt": prompt, "response": response, "task": "x", "n": 1} for prompt, response in pairs]


def said(pair):
    return [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]


FLAT = [said(pair) for pairs in TASKS.values() for pair in pairs]
MIXED = [FLAT[i] for i in ORDER]


# ---- what each trainer does with what is written. They return (rows in the order of the trainer, how many a task)


def arguments(script):
    """The words of the bash array `mixture` that the script defines."""
    code = 'source "$0" && printf "%s\\0" "${mixture[@]}"'
    done = subprocess.run(["bash", "-euc", code, str(script)], capture_output=True, check=True, env={})
    return done.stdout.decode().split("\0")[:-1]


def plain(dataset):
    """The conversations; column types as written, not guessed."""
    kind = dataset.features["messages"]
    inner = getattr(kind, "feature", kind[0] if isinstance(kind, list) else None)
    assert {name: value.dtype for name, value in inner.items()} == {"role": "string", "content": "string"}
    return list(dataset["messages"])


def read_trl(out):
    """trl/scripts/utils.py: every entry is a DatasetConfig, loaded by load_dataset and concatenated in order."""
    config = yaml.safe_load((out / "trl.yaml").read_text())
    parts = []
    for entry in config["datasets"]:
        assert set(entry) <= {"path", "name", "data_dir", "data_files", "split", "columns"}
        columns = entry.pop("columns", None)
        part = datasets.load_dataset(**entry)
        parts.append(part.select_columns(columns) if columns else part)
    assert set(config) == {"datasets"}  # an unknown key stops the parser; no test_split_size, no streaming
    return plain(datasets.concatenate_datasets(parts)), [len(part) for part in parts]


def read_axolotl(out):
    """axolotl utils/data: a local file is loaded as ds_type; shards and split cut; merged, then shuffled if asked."""
    config = yaml.safe_load((out / "axolotl.yaml").read_text())
    parts = []
    for entry in config["datasets"]:
        assert os.path.isfile(entry["path"])
        assert entry["type"] == "chat_template" and entry["field_messages"] == "messages"
        assert not {"shards", "preprocess_shards", "name"} & set(entry)
        parts.append(datasets.load_dataset(entry["ds_type"], data_files=entry["path"], split=entry["split"]))
    merged = datasets.concatenate_datasets(parts)
    if config.get("shuffle_merged_datasets", True) and len(parts) > 1:
        merged = merged.shuffle(seed=42)
    assert not config["val_set_size"] and not config["dataset_exact_deduplication"]
    assert config.get("excess_length_strategy", "drop") == "truncate"
    return plain(merged), [len(part) for part in parts]


def read_llama_factory(out):
    """llamafactory data/{parser,loader,converter}.py: names by comma, files relative to dataset_dir, sharegpt."""
    config = yaml.safe_load((out / "llama-factory.yaml").read_text())
    with open(os.path.join(config["dataset_dir"], "dataset_info.json"), encoding="ascii") as file:
        info = json.load(file)
    taken, counts = [], []
    for name in [part.strip() for part in config["dataset"].split(",")]:
        entry = info[name]
        assert "num_samples" not in entry and entry["formatting"] == "sharegpt"
        path = os.path.join(config["dataset_dir"], entry["file_name"])
        assert os.path.isfile(path)
        kind = {"json": "json", "jsonl": "json", "parquet": "parquet"}[os.path.splitext(path)[1][1:]]
        part = datasets.load_dataset(kind, data_files=[path], split=entry.get("split", "train"))
        kept = 0
        for messages in part[entry["columns"]["messages"]]:
            tags = entry["tags"]
            turns = [(m[tags["role_tag"]], m[tags["content_tag"]]) for m in messages]
            turns = turns[1:] if turns[0][0] == tags["system_tag"] else turns
            right = (tags["user_tag"], tags["assistant_tag"])
            if len(turns) % 2 or any(role != right[at % 2] for at, (role, _) in enumerate(turns)):
                continue  # "Skipping this abnormal example"
            taken.append(messages)
            kept += 1
        counts.append(kept)
    assert "max_samples" not in config and not config["streaming"] and config["val_size"] <= 1e-6
    assert config["mix_strategy"] == "concat"
    return taken, counts


def read_ms_swift(out):
    """swift/dataset: path#N unless the whole is a path; rows that fail are dropped unless strict; then shuffled."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--dataset", nargs="+")
    for name in ("strict", "dataset_shuffle", "train_dataloader_shuffle"):
        parser.add_argument(f"--{name}", type={"true": True, "false": False}.__getitem__)
    parser.add_argument("--split_dataset_ratio", type=float, default=0.01)
    parser.add_argument("--truncation_strategy", default="delete")
    args = parser.parse_args(arguments(out / "ms-swift.sh"))
    assert args.strict and args.truncation_strategy != "delete" and not args.split_dataset_ratio
    taken, counts = [], []
    for path in args.dataset:
        assert os.path.isfile(path)  # else it is taken apart at "::", "#" and ":"
        kind = os.path.splitext(path)[1].lstrip(".")
        part = datasets.load_dataset({"jsonl": "json"}.get(kind, kind), data_files=path, split="train")
        assert "messages" in part.column_names
        for messages in part["messages"]:
            assert messages and all(m["role"] in ("system", "user", "assistant") for m in messages)
            assert all(m["content"] is not None for m in messages)
        taken += list(part["messages"])
        counts.append(len(part))
    if args.dataset_shuffle:
        taken = [taken[i] for i in np.random.RandomState(42).permutation(len(taken))]
    return taken, counts


def read_open_instruct(out):
    """dataset_transformation.py: pairs; a point in the number makes a share; what is over whole repeats is drawn."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--dataset_mixer_list", nargs="+")
    parser.add_argument("--dataset_mixer_list_splits", nargs="+")
    args = parser.parse_args(arguments(out / "open-instruct.sh"))
    assert len(args.dataset_mixer_list) % 2 == 0 and args.dataset_mixer_list_splits == ["train"]
    taken, counts = [], []
    for path, amount in zip(args.dataset_mixer_list[::2], args.dataset_mixer_list[1::2], strict=True):
        assert os.path.exists(path)
        kind = {".jsonl": "json", ".parquet": "parquet"}[os.path.splitext(path)[1]]
        part = datasets.load_dataset(kind, data_files=path, split="train")
        share = float(amount) if "." in amount else int(amount)
        target = int(share) if share > 1.0 else int(share * len(part))
        rows = [*range(len(part))] * (target // len(part))
        rows += np.random.RandomState(42).choice(len(part), target % len(part), replace=False).tolist()
        taken += list(part.select(rows)["messages"])
        counts.append(len(rows))
    return taken, counts


def read_megatron(out, batch=1):
    """megatron: a list of odd length has no weights; one prefix of train is whole; sample i is row i mod n."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--sft", action="store_true")
    parser.add_argument("--train-data-path", nargs="*")
    for name in ("train-samples", "eval-iters"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--dataloader-type")
    args = parser.parse_args(arguments(out / "megatron.sh"))
    assert args.sft and len(args.train_data_path) == 1 and args.eval_iters == 0
    low = datasets.load_dataset("json", data_files=args.train_data_path[0], split="all")
    for messages in low["messages"]:  # the tokenizer: no empty answer, and a user before each
        for at, turn in enumerate(messages):
            assert turn["role"] != "assistant" or (turn["content"] and messages[at - 1]["role"] == "user")
    rows = plain(low)
    assert args.dataloader_type == "single"  # in order; the rest of a last batch is dropped
    samples = args.train_samples // batch * batch
    return [rows[i % len(rows)] for i in range(samples)], None


READERS = {
    "trl": read_trl,
    "axolotl": read_axolotl,
    "llama-factory": read_llama_factory,
    "ms-swift": read_ms_swift,
    "open-instruct": read_open_instruct,
    "megatron-lm": read_megatron,
}


def as_set(rows):
    return sorted(json.dumps(row, sort_keys=True) for row in rows)


@pytest.mark.parametrize("ordered", [True, False], ids=["ordered", "shuffled"])
@pytest.mark.parametrize("name", list(TRAINERS))
def test_the_trainer_takes_exactly_the_rows(tmp_path, name, ordered):
    out = tmp_path / "a folder; it's #1"
    tasks = {task: rows_of(pairs) for task, pairs in TASKS.items()}
    merged = [row for rows in tasks.values() for row in rows]
    written = export(name, {**tasks, "none": []}, out, merged=[merged[i] for i in ORDER], ordered=ordered)
    assert list(written) == [name]
    assert {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()} == set(written[name])
    taken, counts = READERS[name](out)
    if name == "megatron-lm":
        assert taken == MIXED
        return
    assert counts == [len(pairs) for pairs in TASKS.values()]
    assert as_set(taken) == as_set(FLAT)
    keeps = ordered or name in (
        "trl",
        "llama-factory",
        "open-instruct",
    )  # these merge in order, whatever comes later
    assert (taken == FLAT) == keeps


def test_a_last_part_of_a_batch_is_all_that_megatron_leaves(tmp_path):
    export("megatron-lm", {task: rows_of(pairs) for task, pairs in TASKS.items()}, tmp_path)
    assert read_megatron(tmp_path)[0] == FLAT
    assert read_megatron(tmp_path, batch=4)[0] == FLAT[: len(FLAT) // 4 * 4]


def test_a_table_of_dates_stays_text(tmp_path):
    """What JSON would do: the reason for parquet."""
    path = tmp_path / "dates.jsonl"
    path.write_text("".join(json.dumps({"messages": said(pair)}) + "\n" for pair in TASKS["dates"]))
    guessed = datasets.load_dataset("json", data_files=str(path), split="train")
    assert not isinstance(guessed[0]["messages"][0]["content"], str)


def test_all_at_once_share_their_data(tmp_path):
    tasks = {task: rows_of(pairs) for task, pairs in TASKS.items()}
    written = export(list(TRAINERS), tasks, tmp_path / "out")
    folders = {file.split("/")[0] for files in written.values() for file in files if "/" in file}
    assert len(folders) == 1
    assert len(list((tmp_path / "out").glob("data-*/*"))) == len(TASKS) + 1
    for name in TRAINERS:
        assert as_set(READERS[name](tmp_path / "out")[0]) == as_set(FLAT)


def test_the_folder_of_the_data_is_named_by_content(tmp_path):
    """axolotl and open-instruct keep prepared data by path: other rows must have another path."""
    tasks = {"a": rows_of([("p", "q"), ("r", "s")])}
    first = export("axolotl", tasks, tmp_path / "1")["axolotl"]
    assert export("axolotl", tasks, tmp_path / "2")["axolotl"] == first
    tasks["a"].reverse()
    assert export("axolotl", tasks, tmp_path / "3")["axolotl"] != first


def test_root_is_where_the_trainer_looks(tmp_path):
    export(list(TRAINERS), {"a": rows_of([("p", "q")])}, tmp_path, root="/data/mix it")
    entry = yaml.safe_load((tmp_path / "trl.yaml").read_text())["datasets"][0]["data_files"]
    assert entry.startswith("/data/mix it/data-")
    assert arguments(tmp_path / "open-instruct.sh")[1] == entry
    assert yaml.safe_load((tmp_path / "llama-factory.yaml").read_text())["dataset_dir"] == "/data/mix it"
    info = json.loads((tmp_path / "dataset_info.json").read_text())
    assert os.path.isfile(tmp_path / info["a"]["file_name"])  # relative: the folder may move
    assert "source '/data/mix it'/ms-swift.sh" in (tmp_path / "ms-swift.sh").read_text()


def test_refusals(tmp_path):
    rows = rows_of([("p", "q")])
    with pytest.raises(
        ValueError, match=r"unknown trainer 'tlr': expected one of trl, axolotl.*did you mean 'trl'"
    ):
        export("tlr", {"a": rows}, tmp_path)
    with pytest.raises(ValueError, match="names must hold one of trl"):
        export([], {"a": rows}, tmp_path)
    with pytest.raises(ValueError, match="at least one row"):
        export("trl", {"a": []}, tmp_path)
    with pytest.raises(ValueError, match="one has 1 and one 2"):
        export(["trl", "megatron-lm"], {"a": rows}, tmp_path, merged=rows * 2)
    with pytest.raises(
        ValueError, match="task 'b', row 1 of the mixture cannot be exported: the response is empty"
    ):
        export("trl", {"a": rows, "b": [*rows, {"prompt": "p", "response": " "}]}, tmp_path)
    for name in ("a*", "a[0]", "$HOME", "a::b"):
        with pytest.raises(ValueError, match=r"a trainer cannot read from .*choose another folder"):
            export("trl", {"a": rows}, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


# ---- rows to conversations


@pytest.mark.parametrize(
    "row, want",
    [
        (
            {"instruction": "do", "input": "this", "output": "done"},
            [("user", "do\nthis"), ("assistant", "done")],
        ),
        ({"instruction": "do", "input": "", "output": "done"}, [("user", "do"), ("assistant", "done")]),
        ({"instruction": "do", "input": None, "output": 7}, [("user", "do"), ("assistant", "7")]),
        ({"question": "q", "answer": "a", "text": "t"}, [("user", "q"), ("assistant", "a")]),
        ({"inputs": "i", "targets": "t"}, [("user", "i"), ("assistant", "t")]),
        ({"prompt": "p", "answers": ["one"]}, [("user", "p"), ("assistant", "one")]),
        (
            {"system": "s", "prompt": "p", "response": "r"},
            [("system", "s"), ("user", "p"), ("assistant", "r")],
        ),
        ({"prompt": "\ud800x", "response": "y"}, [("user", "\ufffdx"), ("assistant", "y")]),
        (
            {
                "prompt": [{"role": "user", "content": "p"}],
                "completion": [{"role": "assistant", "content": "c"}],
            },
            [("user", "p"), ("assistant", "c")],
        ),
        (
            {"conversations": [{"from": "human", "value": "h"}, {"from": "gpt", "value": "g"}], "id": 3},
            [("user", "h"), ("assistant", "g")],
        ),
        (
            {"messages": {"role": ["user", "assistant"], "content": ["h", "g"]}},
            [("user", "h"), ("assistant", "g")],
        ),
        (
            {"conversations": '[{"from": "human", "value": "h"}, {"from": "gpt", "value": "g"}]'},
            [("user", "h"), ("assistant", "g")],
        ),
        (
            {
                "messages": [
                    {"role": "system", "content": "s", "id": 1},
                    {
                        "role": "user",
                        "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
                    },
                    {"role": "assistant", "content": "c", "tool_calls": None},
                ],
                "output": "not this",
            },
            [("system", "s"), ("user", "a\nb"), ("assistant", "c")],
        ),
    ],
)
def test_rows_become_conversations(row, want):
    turns = to_messages(row, find_layout(list(row)))
    assert [(turn["role"], turn["content"]) for turn in turns] == want


def talk(*turns):
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


@pytest.mark.parametrize(
    "row, message",
    [
        (talk(("user", "u")), "does not end with the assistant"),
        (talk(("assistant", "a")), "turn 1 is of assistant, expected user"),
        (talk(("user", "u"), ("user", "u"), ("assistant", "a")), "turn 2 is of user, expected assistant"),
        (talk(("user", "u"), ("system", "s"), ("assistant", "a")), "turn 2 is of system"),
        (talk(("user", "u"), ("tool", "t")), "the role 'tool', known are system, user"),
        (talk(("user", "u"), ("assistant", "")), "the response is empty"),
        (talk(("user", None), ("assistant", "a")), "holds nothing, expected text"),
        (talk(("user", [{"type": "image"}]), ("assistant", "a")), "parts that are not text"),
        ({"messages": [{"role": "assistant", "content": "", "tool_calls": [1]}]}, "has 'tool_calls'"),
        ({"messages": []}, "does not end with the assistant"),
        ({"messages": None}, "messages is nothing, expected a list of turns"),
        ({"messages": "hello"}, "messages is text"),
        ({"messages": ["hello"]}, "holds str, expected a turn"),
        ({"prompt": "p", "response": None}, "the response is empty"),
        ({"prompt": "p", "response": {"a": 1}}, "'response' holds dict, expected text"),
        ({"prompt": "p", "response": ["a", "b"]}, None),
    ],
)
def test_rows_that_are_no_conversations(row, message):
    if message is None:
        assert to_messages(row, find_layout(list(row)))[1]["content"] == "a\nb"
        return
    with pytest.raises(ValueError, match=message):
        to_messages(row, find_layout(list(row)))


def test_fields_by_name():
    row = {"q": "ask", "why": "because", "text": "t", "messages": "none"}
    assert find_layout(list(row), ["q"]).talk == "messages"  # the whole, whatever was embedded
    layout = find_layout(list(row), ["q"], "why")
    assert to_messages(row, layout) == said(("ask", "because"))
    with pytest.raises(ValueError, match="no field 'whi'; the fields are q, why, text, messages"):
        find_layout(list(row), ["q"], "whi")
    with pytest.raises(
        ValueError, match=r"no field of the response is known: name it with --response-field; .*text"
    ):
        find_layout(["text", "id"])
    with pytest.raises(ValueError, match=r"no field of the prompt is known: name it with --text; .*output"):
        find_layout(["output", "id"])


# ---- file names


def test_names_that_are_safe_stay():
    assert safe_names(["a", "B-2", "x.y_z", "0"]) == {"a": "a", "B-2": "B-2", "x.y_z": "x.y_z", "0": "0"}


def test_names_are_safe_and_apart():
    labels = [
        "../x",
        "",
        "a" * 300,
        "a" * 299 + "b",
        "Task",
        "task",
        "TASK",
        "t0/x",
        "t0-x",
        ".",
        "..",
        "/etc/passwd",
    ]
    labels += [
        "con",
        "NUL.txt",
        "a b",
        "a\nb",
        "größe",
        "日本",
        "\x00",
        "-rf",
        "x.",
        "\ud800",
        MERGED,
        "ſ",
        "K",
        "k",
    ]
    labels += [
        safe_names(labels)["a b"],
        safe_names(labels)["../x"].upper(),
    ]  # spelt like the name of another
    names = safe_names(labels)
    assert len({name.lower() for name in names.values()}) == len(labels) == len(set(labels))
    for name in names.values():
        assert (
            os.path.basename(name) == name and 0 < len(name) <= 160 and name.isascii() and name[0] not in ".-"
        )
        assert not name.endswith(".") and set(name) <= set("-._") | set(map(chr, range(48, 123)))
        assert name.partition(".")[0].lower() not in ("con", "nul")
    assert safe_names(reversed(labels)) == names
    assert names["t0/x"].startswith("t0-x-") and names["Task"].startswith("Task-") and names["t0-x"] == "t0-x"


def test_any_labels_have_names_that_stay():
    hypothesis = pytest.importorskip("hypothesis")
    st = pytest.importorskip("hypothesis.strategies")
    odd = (
        st.text(st.sampled_from("aAbB.-_/ \\\0é"), max_size=5)
        | st.text(max_size=100)
        | st.sampled_from(["con", "CON"])
    )

    @hypothesis.given(st.sets(odd, min_size=1, max_size=12))
    def check(labels):
        names = safe_names(labels)
        assert set(names) == labels
        assert len({name.lower() for name in names.values()}) == len(labels)
        assert all(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,79}", name) for name in names.values())
        assert safe_names(names.values()) == {name: name for name in names.values()}

    check()
