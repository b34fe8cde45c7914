"""Costs of text: tokens counted by hand, the plain rule, what the command line counts and records."""

import importlib.util
import json
import sys
from importlib import metadata

import numpy as np
import pytest

pytest.importorskip("pyarrow")

import smartgpu
from smartgpu import embed, token_costs, tokens

try:
    metadata.distribution(embed.DEFAULT_PACKAGE)
    HAS_MODEL = importlib.util.find_spec("tokenizers") is not None
except metadata.PackageNotFoundError:
    HAS_MODEL = False
needs_model = pytest.mark.skipif(not HAS_MODEL, reason="needs the text extra: pip install 'smartgpu[text]'")

# text -> the pieces of all-MiniLM-L6-v2's vocabulary, lower case and without accents
PIECES = {
    "hello world": "hello world",
    "Hello, World!": "hello , world !",
    "tokenization": "token ##ization",
    "unaffable": "una ##ffa ##ble",
    "naïve café": "naive cafe",
    "a1b2": "a1 ##b ##2",
    "[CLS]": "[CLS]",
    "日本": "日 本",
}


@pytest.fixture
def words(tmp_path):
    """A tokenizer of words and signs that cuts at two tokens and pads to five, as its file says."""
    lib = pytest.importorskip("tokenizers", reason="needs the text extra: pip install 'smartgpu[text]'")
    net = lib.Tokenizer(lib.models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    net.pre_tokenizer = lib.pre_tokenizers.Whitespace()
    special = [("[UNK]", 0)]
    net.post_processor = lib.processors.TemplateProcessing(single="[UNK] $A [UNK]", special_tokens=special)
    net.enable_truncation(2)
    net.enable_padding(length=5)
    path = tmp_path / "words" / "tokenizer.json"
    path.parent.mkdir()
    net.save(str(path))
    return path


@needs_model
def test_the_default_tokenizer_by_hand():
    counts = token_costs(list(PIECES))
    assert counts.dtype == np.float64
    assert dict(zip(PIECES, counts.tolist(), strict=True)) == {
        text: len(pieces.split()) for text, pieces in PIECES.items()
    }
    assert token_costs(["", "word " * 1000]).tolist() == [1, 1000], "nothing is cut; a row costs something"


def test_a_file_or_its_folder(words):
    texts = ["a b c d e f g", "", "a, b!", "one\ud800two"]
    assert token_costs(texts, words).tolist() == [7, 1, 4, 3], "a lone surrogate is a sign"
    assert token_costs(iter(texts), words.parent).tolist() == [7, 1, 4, 3]
    assert token_costs([], words).shape == (0,)


def test_characters():
    assert token_costs(["", "a", "abcd", "abcde", "größer" * 2], "chars").tolist() == [1, 1, 1, 2, 3]


def test_texts_are_read_a_batch_at_a_time(monkeypatch):
    monkeypatch.setattr(tokens, "BATCH", 3)
    read, most = 0, []

    def texts():
        nonlocal read
        for i in range(10):
            read += 1
            yield "x" * 4 * (i + 1)

    def count(batch):
        most.append((len(batch), read))
        return map(len, batch)

    monkeypatch.setattr(tokens, "find_rule", lambda _: tokens.Rule({}, count, 4))
    assert token_costs(texts()).tolist() == list(range(1, 11))
    assert most == [(3, 3), (3, 6), (3, 9), (1, 10)]


def test_refusals(tmp_path, monkeypatch):
    with pytest.raises(TypeError, match="strings, one per row, got one str"):
        token_costs("a text", "chars")
    with pytest.raises(TypeError, match="got NoneType at row 1"):
        token_costs(["a", None], "chars")
    with pytest.raises(ValueError, match=r"has no tokenizer\.json: name a folder"):
        token_costs(["a"], tmp_path)
    with pytest.raises(
        ValueError, match=r"tokenizer nowhere/here: no such file, and model 'nowhere/here' is"
    ):
        token_costs(["a"], "nowhere/here")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ImportError, match=r"pip install 'smartgpu\[text\]'"):
        token_costs(["a"], tmp_path)


def test_a_broken_file(tmp_path):
    pytest.importorskip("tokenizers", reason="needs the text extra: pip install 'smartgpu[text]'")
    (tmp_path / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(ValueError, match=r"tokenizer\.json cannot be read"):
        token_costs(["a"], tmp_path)


# ---- the command line

TURNS = [{"role": "user", "content": "a b c"}, {"role": "assistant", "content": "d e"}]


@pytest.fixture
def pool(smart, rng):
    """(runs select, X, rows) with a conversation, text, numbers and a missing value in the rows."""
    x = rng.normal(size=(30, 6)).astype(np.float32)
    np.save("x.npy", x)
    rows = [
        {"n": 7, "say": "a " * (i % 5 + 1), "turns": TURNS, "deep": {"why": ["a", "b c"]}} for i in range(30)
    ]
    rows[4]["say"] = rows[5]["turns"] = None
    with open("pool.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)

    def run(*arguments):
        call = ("select", "pool.jsonl", "--embeddings", "x.npy", "--out", "out", "-q", "--backend", "numpy")
        return smart(*call, *arguments)

    return run, x, rows


def held():
    with open("out/selection.json", encoding="utf-8") as file:
        return json.load(file)


def test_tokens_of_all_text_in_a_row(pool, words):
    run, x, rows = pool
    cost = [len((row["say"] or "").split()) + 5 * (row["turns"] is not None) + 3 for row in rows]
    assert run("--budget", 60, "--cost", "tokens", "--tokenizer", words)[0] == 0
    want = smartgpu.select(x, budget=60, cost=cost, backend="numpy")
    assert smartgpu.Selection.load("out/selection.npz").indices.tolist() == want.indices.tolist()
    assert held()["limits"] == want.limits
    said = held()["costs"]
    assert said == {
        "rule": "tokens",
        "tokenizer": str(words),
        "sha256": said["sha256"],
        "text": ["n", "say", "turns", "deep"],
    }
    again = words.parent.rename(words.parent.with_name("moved"))
    status, out, _ = run("--budget", 60, "--cost", "tokens", "--tokenizer", again)
    assert status == 0 and "holds this selection already" in out, "the same tokenizer in another place"
    file = again / "tokenizer.json"
    file.write_text(file.read_text() + "\n")
    status, _, err = run("--budget", 60, "--cost", "tokens", "--tokenizer", again)
    assert status == 2 and "other options or data" in err and "sha256" in err


def test_characters_and_named_fields(pool):
    run, x, rows = pool
    cost = [max(1, -(-(len(row["say"] or "") + 8 * (row["turns"] is not None)) // 4)) for row in rows]
    assert run("--budget", 20, "--cost", "chars", "--cost-text", "turns", "say")[0] == 0
    want = smartgpu.select(x, budget=20, cost=cost, backend="numpy")
    assert smartgpu.Selection.load("out/selection.npz").indices.tolist() == want.indices.tolist()
    assert held()["costs"] == {"rule": "chars", "characters": 4, "text": ["turns", "say"]}


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--cost", "token"], "did you mean 'tokens'"),
        (["--cost", "chars", "--tokenizer", "t"], "--tokenizer is what --cost tokens counts by"),
        (["--cost", "tokens", "--tokenizer", "not/here"], "tokenizer not/here: no such file"),
        (["--cost", "chars", "--cost-text", "nowhere"], "--cost-text: no field 'nowhere'"),
        (["--cost-field", "n", "--cost-text", "say"], "--cost-text names the fields that --cost counts"),
    ],
)
def test_bad_options(pool, arguments, text, tmp_path):
    status, _, err = pool[0]("--budget", 9, *arguments)
    assert status == 2 and text in err and not (tmp_path / "out").exists()
