"""The text of each row: which fields hold it by convention, and how their values become one string."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from smartgpu.io.read import Pool

# In this order: the first whose first name is a field is used, with those of its names that are there.
CONVENTIONS = (
    ("messages",),
    ("conversations",),
    ("instruction", "input"),
    ("prompt",),
    ("question",),
    ("inputs",),
    ("text",),
    ("content",),
)
USERS = ("user", "human", "prompter")  # OpenAI, ShareGPT, OpenAssistant
_OPTION = "name the field or fields with --text"


def text_fields(pool: Pool, fields: str | Sequence[str] | None = None) -> tuple[str, ...]:
    """The fields that `find_text` reads: those named, or by convention.

    raises  ValueError, listing the fields that are there, for an unknown field and where no convention fits
    """
    if fields is not None:
        names = (fields,) if isinstance(fields, str) else tuple(fields)
        if not names:
            raise ValueError(f"--text: expected at least one field, got none; {_held(pool)}")
        pool.check_fields(names, "--text")
        return names
    for names in CONVENTIONS:
        if names[0] in pool.fields:
            return tuple(name for name in names if name in pool.fields)
    usual = ", ".join("+".join(names) for names in CONVENTIONS)
    raise ValueError(f"no text field found in {pool.source}: {_held(pool)}. Known are {usual}; {_OPTION}")


def _held(pool: Pool) -> str:
    if pool.fields:
        return f"the fields are {', '.join(pool.fields)}"
    return f"a {pool.format} pool holds embeddings alone, no fields"


def find_text(pool: Pool, fields: str | Sequence[str] | None = None) -> list[str]:
    """One string per row, n of them: the prompt side, not the answer.

    fields   names to join by a newline, empty parts left out. Default, by the first convention that fits:
             messages or conversations (the user's turns), instruction + input, prompt, question, inputs,
             text, content. Null and missing values count as empty; in a list of turns the user's are taken,
             whatever the field is called; numbers are written out; lone surrogates, which no tokenizer takes,
             become U+FFFD
    raises   ValueError as `text_fields`; naming the row for a value that is no text; where all texts are
             empty
    """
    names = text_fields(pool, fields)
    columns = pool.columns(names)
    parts = [[_text(v, name, row, pool) for row, v in enumerate(columns[name])] for name in names]
    texts = (
        parts[0] if len(parts) == 1 else ["\n".join(filter(None, row)) for row in zip(*parts, strict=True)]
    )
    if not any(texts):
        raise ValueError(
            f"all {pool.n} texts of {pool.source} are empty, from {', '.join(names)}; "
            f"{_held(pool)}; {_OPTION}"
        )
    return texts


def row_texts(pool: Pool, rows: np.ndarray, names: Sequence[str]) -> list[Any]:
    """What to show of some rows (m,): as find_text joins these fields; where a value is no text, that value."""
    columns = pool.store.columns(names, rows)
    out: list[Any] = []
    for at, row in enumerate(rows.tolist()):
        try:
            parts = [_text(columns[name][at], name, row, pool) for name in names]
            out.append("\n".join(filter(None, parts)))
        except ValueError:
            out.append(columns[names[0]][at])
    return out


def _text(value: Any, name: str, row: int, pool: Pool) -> str:
    if isinstance(value, str):
        return (
            value if value.isascii() else value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        )
    if value is None:
        return ""
    if isinstance(value, bytes | bytearray | memoryview):
        raise ValueError(f"field {name!r} of {pool.source}: row {row} holds bytes, expected text")
    if isinstance(value, list | tuple):
        return _join(value, name, row, pool)
    if isinstance(value, dict):
        if (turns := as_turns(value)) is not None:
            return _join(turns, name, row, pool)
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value.item() if isinstance(value, np.generic) else value)


def as_turns(value: dict) -> list[dict] | None:
    """datasets stores a list of dicts as a dict of lists in an older feature type: back to turns."""
    for who, what in (("role", "content"), ("from", "value")):
        if isinstance(value.get(who), list) and isinstance(value.get(what), list):
            return [{who: a, what: b} for a, b in zip(value[who], value[what], strict=False)]
    return None


def _join(items: Sequence[Any], name: str, row: int, pool: Pool) -> str:
    """The user's turns of a conversation, or the strings of a list, joined by newlines."""
    taken = []
    for item in items:
        if isinstance(item, dict):
            who = item.get("role") or item.get("from")
            if who is None:
                raise ValueError(
                    f"field {name!r} of {pool.source}: row {row} has a turn without role (or from); its keys"
                    f" are {', '.join(map(str, item))}"
                )
            if who in USERS:
                content = item.get("content")  # null beside `value` where a file mixes both styles
                taken.append(_content(item.get("value") if content is None else content, name, row, pool))
        else:
            taken.append(_text(item, name, row, pool))
    return "\n".join(filter(None, taken))


def _content(value: Any, name: str, row: int, pool: Pool) -> str:
    """A turn's content: text, or a list of parts of which those with a `text` count."""
    if isinstance(value, list | tuple):
        texts = [part.get("text") if isinstance(part, dict) else part for part in value]
        return "\n".join(filter(None, (_text(text, name, row, pool) for text in texts)))
    return _text(value, name, row, pool)
