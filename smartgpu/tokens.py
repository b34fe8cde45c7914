"""What rows of text cost: tokens of a tokenizer, or a plain rule by characters."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

CHARS = "chars"
CHARACTERS = 4  # of a token, by the plain rule: about what English takes
BATCH = 256  # rows whose tokens are held at a time
FILE = "tokenizer.json"
INSTALL = "pip install 'smartgpu[text]'"


def token_costs(texts: Iterable[str], tokenizer: str | Path | None = None) -> np.ndarray:
    """(n,) float64, the tokens of each text, at least 1: a cost= for select(..., budget=...).

    texts      n strings; any iterable, of which 256 are held at a time
    tokenizer  None: that of the default embedding model, all-MiniLM-L6-v2 (English, lower case); a tokenizer.json; the
               folder of a model that has one; a name in the local Hugging Face cache; or "chars": no tokenizer, but
               the characters of a text over 4, rounded up

    Tokens are counted whole: nothing is cut or padded, and special tokens of a model, which a trainer may add around a
    text, are left out. Nothing is downloaded. O(characters). Raises TypeError for what is no string, ValueError for a
    tokenizer that is not here or cannot be read, ImportError without the library tokenizers (the `text` extra).
    """
    if isinstance(texts, (str, bytes)):
        raise TypeError(f"texts must be strings, one per row, got one {type(texts).__name__}")
    return find_rule(tokenizer).costs((_checked(text, row),) for row, text in enumerate(texts))


@dataclass(frozen=True)
class Rule:
    """How a row's texts become its cost: `count` of each text, added up, over `per`, rounded up, at least 1."""

    said: dict[str, Any]  # what a manifest records
    count: Callable[[list[str]], Iterable[int]]
    per: int = 1

    def costs(self, rows: Iterable[Sequence[str]]) -> np.ndarray:
        """(n,) float64 of n rows, each of which is any number of texts."""
        rows, parts = iter(rows), [np.empty(0)]
        while part := list(islice(rows, BATCH)):
            parts.append(self._some(part))
        return np.concatenate(parts)

    def _some(self, rows: Sequence[Sequence[str]]) -> np.ndarray:
        of = np.repeat(np.arange(len(rows)), [len(texts) for texts in rows])
        counts = list(self.count([text for texts in rows for text in texts]))
        sums = np.bincount(of, counts, minlength=len(rows))
        return np.maximum(np.ceil(sums / self.per), 1)


def find_rule(tokenizer: str | Path | None) -> Rule:
    """The rule that token_costs() names so. Raises as it does."""
    if tokenizer == CHARS:
        return Rule({"rule": CHARS, "characters": CHARACTERS}, lambda texts: map(len, texts), CHARACTERS)
    path, name = _find(tokenizer)
    stat = path.stat()
    sha256, count = _read(path, stat.st_size, stat.st_mtime_ns)
    return Rule({"rule": "tokens", "tokenizer": name, "sha256": sha256}, count)


def _find(tokenizer: str | Path | None) -> tuple[Path, str]:
    """(its tokenizer.json, a name to print)."""
    from smartgpu import embed

    if tokenizer is None:
        return embed.find_model(None).folder / FILE, embed.DEFAULT_MODEL
    path = Path(tokenizer).expanduser()
    if path.is_file():
        return path, str(tokenizer)
    try:
        folder = path if path.is_dir() else embed.hub_folder(str(tokenizer))
    except ValueError as error:
        raise ValueError(f"tokenizer {tokenizer}: no such file, and {error}") from None
    if not (folder / FILE).is_file():
        raise ValueError(
            f"tokenizer {tokenizer} has no {FILE}: name a folder or a file that has one (transformers writes it: "
            "AutoTokenizer.from_pretrained(...).save_pretrained(folder))"
        )
    return folder / FILE, str(tokenizer)


@functools.lru_cache(maxsize=1)
def _read(path: Path, _size: int, _time: int) -> tuple[str, Callable[[list[str]], Iterator[int]]]:
    """(sha256 of the file, what counts tokens). A file that has changed is read again."""
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise ImportError(f"counting tokens needs tokenizers ({error}): {INSTALL}") from error
    raw = path.read_bytes()
    try:
        net = Tokenizer.from_str(raw.decode())
    except Exception as error:  # the library raises no narrower one
        raise ValueError(f"tokenizer {path} cannot be read: {error}") from error
    net.no_truncation()  # files carry the lengths that their model was trained with
    net.no_padding()
    encode = getattr(net, "encode_batch_fast", net.encode_batch)  # without the places of tokens in the text

    def count(texts: list[str]) -> Iterator[int]:
        # a lone surrogate, which no tokenizer takes, becomes "?"
        texts = [t if t.isascii() else t.encode("utf-8", "replace").decode() for t in texts]
        return (len(found.ids) for found in encode(texts, add_special_tokens=False))

    return hashlib.sha256(raw).hexdigest(), count


def _checked(text: Any, row: int) -> str:
    if not isinstance(text, str):
        raise TypeError(f"texts must be strings, got {type(text).__name__} at row {row}")
    return text
