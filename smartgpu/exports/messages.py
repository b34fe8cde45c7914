"""One row of a pool as a conversation: turns of role and content, the form that every trainer here reads."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from smartgpu.io.text import CONVENTIONS, as_turns

Turns = list[dict[str, str]]

TALKS = ("messages", "conversations")  # fields that hold a whole conversation
RESPONSES = ("response", "completion", "output", "outputs", "answer", "answers", "target", "targets")
SYSTEMS = ("system", "system_prompt")
ROLES = {
    "system": "system",
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "bot", "model", "chatgpt"), "assistant"),
}
# What a turn says beside its text; leaving it out would change what is learnt.
MEANT = ("tool_calls", "function_call", "tool_call_id")


@dataclass(frozen=True)
class Layout:
    """Which fields of a row make the conversation: `talk` alone, or prompt and response, and perhaps a system text."""

    talk: str | None
    prompt: tuple[str, ...]
    response: str | None
    system: str | None

    @property
    def fields(self) -> tuple[str, ...]:
        return tuple(
            name for name in (self.talk, *self.prompt, self.response, self.system) if name is not None
        )


def find_layout(
    fields: Sequence[str], prompt: Sequence[str] | None = None, response: str | None = None
) -> Layout:
    """The layout of rows with these fields.

    prompt    the field or fields of the prompt, joined by a newline. Default: by convention (smartgpu.io.text)
    response  the field of the answer. Default: messages or conversations, which hold the whole; else the first of
              response, completion, output, outputs, answer, answers, target, targets
    raises    ValueError, listing the fields, for an unknown field and where there is no prompt or no response
    """
    held = f"the fields are {', '.join(fields) or 'none'}"
    for name in [*(prompt or ()), *([response] if response is not None else [])]:
        if name not in fields:
            raise ValueError(f"no field {name!r}; {held}")
    if response is None:
        talk = next((name for name in TALKS if name in fields), None)
        if talk is not None:
            return Layout(talk, (), None, next((name for name in SYSTEMS if name in fields), None))
        response = next((name for name in RESPONSES if name in fields and name not in (prompt or ())), None)
    if prompt is None:
        known = (names for names in CONVENTIONS if names[0] in fields and names[0] not in TALKS)
        prompt = [name for name in next(known, ()) if name in fields and name != response]
    if response is None or not prompt:
        what, flag = ("response", "--response-field") if response is None else ("prompt", "--text")
        raise ValueError(f"no field of the {what} is known: name it with {flag}; {held}")
    return Layout(None, tuple(prompt), response, next((name for name in SYSTEMS if name in fields), None))


def to_messages(row: Mapping[str, Any], layout: Layout) -> Turns:
    """The row's conversation: perhaps a system turn, then user and assistant in turn, the assistant last.

    Other orders, roles of tools, and turns without text are refused with ValueError: one trainer or another drops
    such a row, or stops at it. What else a turn carries (ids, times) is left out.
    """
    if layout.talk is not None:
        turns = _conversation(row.get(layout.talk), layout.talk)
    else:
        turns = [
            *_side(layout.prompt, [row.get(name) for name in layout.prompt], "user"),
            *_side((layout.response,), [row.get(layout.response)], "assistant"),
        ]
    system = row.get(layout.system) if layout.system else None
    if isinstance(system, str) and system and turns and turns[0]["role"] != "system":
        turns.insert(0, {"role": "system", "content": _clean(system)})
    _check(turns)
    return turns


def _conversation(value: Any, name: str) -> Turns:
    if isinstance(value, str):  # a list that was stored as text, as csv does
        try:
            value = json.loads(value)
        except ValueError:
            raise ValueError(f"{name} is text, expected a list of turns") from None
    if isinstance(value, dict):
        value = as_turns(value) or value
    if not isinstance(value, list | tuple):
        raise ValueError(f"{name} is {_kind(value)}, expected a list of turns")
    return [_turn(turn, name) for turn in value]


def _turn(turn: Any, name: str) -> dict[str, str]:
    if not isinstance(turn, dict):
        raise ValueError(f"{name} holds {_kind(turn)}, expected a turn with role and content")
    meant = next((key for key in MEANT if turn.get(key)), None)
    if meant:
        raise ValueError(f"a turn has {meant!r}, which messages of plain text cannot say")
    who = turn.get("role") or turn.get("from")
    if who not in ROLES:
        raise ValueError(f"a turn has the role {who!r}, known are {', '.join(ROLES)}")
    content = turn.get("content")
    return {"role": ROLES[who], "content": _text(turn.get("value") if content is None else content, "a turn")}


def _side(names: tuple[str, ...], values: list[Any], role: str) -> Turns:
    """The turns of the prompt's fields, or of the response's: texts, joined by a newline, or a list of turns."""
    if len(values) == 1 and isinstance(values[0], list) and values[0] and isinstance(values[0][0], dict):
        return _conversation(values[0], names[0])
    if (
        len(values) == 1 and isinstance(values[0], list) and len(values[0]) == 1
    ):  # one answer in a list of answers
        values = values[0]
    parts = [_text(v, repr(n)) for n, v in zip(names, values, strict=True) if v is not None]
    return [{"role": role, "content": "\n".join(filter(None, parts))}]


def _text(value: Any, what: str) -> str:
    """The text of a turn or field: a string, a number, or a list of parts that all are text."""
    if isinstance(value, list):
        parts = [part.get("text") if isinstance(part, dict) else part for part in value]
        if not parts or not all(isinstance(part, str) for part in parts):
            raise ValueError(f"{what} holds parts that are not text")
        value = "\n".join(parts)
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise ValueError(f"{what} holds {_kind(value)}, expected text")
    return _clean(value)


def _clean(text: str) -> str:
    """Lone surrogates, which neither UTF-8 nor a tokenizer takes, become U+FFFD."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _check(turns: Turns) -> None:
    said = turns[1:] if turns and turns[0]["role"] == "system" else turns
    for at, turn in enumerate(said):
        expected = ("user", "assistant")[at % 2]
        if turn["role"] != expected:
            raise ValueError(f"turn {at + 1} is of {turn['role']}, expected {expected}: they must alternate")
        if turn["role"] == "assistant" and not turn["content"].strip():
            raise ValueError("the response is empty: there is nothing to learn from it")
    if not said or said[-1]["role"] != "assistant":
        raise ValueError("the conversation does not end with the assistant")


def _kind(value: Any) -> str:
    return "nothing" if value is None else type(value).__name__
