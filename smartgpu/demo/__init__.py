"""The instruction pool that `smartgpu demo` writes: tasks of uneven size, exact and near duplicates, some poor answers.

Every row is made by the code and the tables of this package, from a stream of random numbers that is the same on
every machine, so that one seed means the same bytes everywhere.
"""

from __future__ import annotations

import json
import os
import re
import zlib
from pathlib import Path
from typing import Any

from . import coding, facts, language, maths, office  # noqa: F401  (importing them registers their tasks)
from .registry import TASKS, Dice, Task

EXACT, NEAR = 100, 250
POOR_PERCENT = 6
CURT = ("It depends.", "Yes.", "No idea.", "See above.", "I cannot help with that.", "Look it up.", "Maybe.")
SWAPS = {
    "Calculate": "Compute",
    "Classify": "Categorise",
    "Convert": "Change",
    "Correct": "Repair",
    "Describe": "Outline",
    "Explain": "Clarify",
    "Extract": "Pull out",
    "Find": "Determine",
    "Fix": "Correct",
    "Give": "Provide",
    "List": "Enumerate",
    "Name": "State",
    "Order": "Arrange",
    "Put": "Place",
    "Rewrite": "Rephrase",
    "Show": "Display",
    "Solve": "Work out",
    "Sort": "Arrange",
    "State": "Give",
    "Summarise": "Sum up",
    "Translate": "Render",
    "Turn": "Change",
    "Write": "Compose",
}
TYPOS = {
    "answer": "anwser",
    "before": "befroe",
    "capital": "captial",
    "each": "eahc",
    "following": "folowing",
    "from": "form",
    "many": "mnay",
    "message": "mesage",
    "number": "nubmer",
    "probability": "probabilty",
    "sentence": "sentance",
    "that": "taht",
    "the": "teh",
    "their": "thier",
    "this": "thsi",
    "what": "waht",
    "which": "wich",
    "with": "wiht",
    "word": "wrod",
    "words": "wrods",
}
GREETINGS = ("Please help: ", "Hi! ", "Quick question: ", "Hello, ", "One more: ", "Could you do this? ")
THANKS = (" Thanks!", " Thank you.", " Thanks in advance.", " Please be brief.", " Please.")


def _distinct(task: Task, seed: int) -> list[dict[str, Any]]:
    """The rows of one task: no question twice, and no answer twice to the same input."""
    dice, rows, seen = Dice(seed, task.name), [], set()
    for _ in range(400 * task.rows):
        template, instruction, text, output = task.make(dice)
        keys = {("q", instruction, text), ("a", text, output)}
        if seen & keys:
            continue
        seen |= keys
        rows.append(
            {
                "task": task.name,
                "template": template,
                "instruction": instruction,
                "input": text,
                "output": output,
                "score": 0.0,
                "source": task.source,
            }
        )
        if len(rows) == task.rows:
            return rows
    raise AssertionError(f"task {task.name!r} ran out of distinct rows at {len(rows)} of {task.rows}")


def _score(row: dict[str, Any]) -> float:
    """3.0 to 5.0: more for working or a reason, for a full sentence and for a sufficient length."""
    out = row["output"]
    reasons = any(sign in out for sign in (" because ", "Because ", " = ", ": ", "; ", "\n"))
    points = (
        30 + 6 * reasons + 4 * out.endswith((".", "!", ";")) + 4 * (len(out) >= 40) + 2 * bool(row["input"])
    )
    return (points + zlib.crc32((row["instruction"] + row["input"]).encode()) % 5) / 10


def _spoil(row: dict[str, Any], others: list[dict[str, Any]], dice: Dice) -> None:
    """Make the answer curt, cut off or off the topic, and say so by the score."""
    words, style = row["output"].split(" "), dice.int(0, 2)
    if style == 0 and len(words) >= 6:
        row["output"], row["score"] = " ".join(words[: dice.int(2, len(words) // 2)]), dice.int(10, 22) / 10
    elif style == 1:
        row["output"], row["score"] = (
            dice.pick([r for r in others if r["task"] != row["task"]])["output"],
            dice.int(0, 9) / 10,
        )
    else:
        row["output"], row["score"] = dice.pick(CURT), dice.int(4, 15) / 10


def _nearly(text: str, dice: Dice) -> str:
    """The instruction with a greeting, thanks, other punctuation or case, one typo or one word changed.

    Nothing inside quotation marks is touched, so that the answer stays right.
    """
    parts = text.split('"')
    style = dice.int(0, 5)
    if style < 2:
        words = SWAPS if style == 0 else TYPOS
        spots = [m for m in re.finditer(r"[A-Za-z]+", parts[0]) if m.group() in words]
        if spots:
            spot = dice.pick(spots)
            parts[0] = parts[0][: spot.start()] + words[spot.group()] + parts[0][spot.end() :]
        return '"'.join(parts)
    if style == 2:
        return dice.pick(GREETINGS) + text
    if style == 3:
        return text + dice.pick(THANKS)
    if style == 4:
        return text[:-1] if text[-1] in ".?" else text
    return text[0].lower() + text[1:]


def demo_rows(seed: int = 0) -> list[dict[str, Any]]:
    """The pool: distinct rows, `EXACT` exact copies and `NEAR` near copies, in random order.

    Each row has id, task, template (the name of its wording, or None), instruction, input, output, score (0 to 5) and
    source.
    """
    dice = Dice(seed, "pool")
    rows = [row for task in TASKS.values() for row in _distinct(task, seed)]
    clean = [dict(row) for row in rows]
    for row in rows:
        row["score"] = _score(row)
        if dice.chance(POOR_PERCENT):
            _spoil(row, clean, dice)
    originals = dice.sample(rows, EXACT + NEAR)
    copies, seen = (
        [dict(row) for row in originals[:EXACT]],
        {(row["instruction"], row["input"]) for row in rows},
    )
    for row in originals[EXACT:]:
        text = row["instruction"]
        while (text, row["input"]) in seen:
            text = _nearly(row["instruction"], dice)
        seen.add((text, row["input"]))
        copies.append(
            row | {"instruction": text, "score": max(0.0, round(10 * row["score"] - dice.int(0, 2)) / 10)}
        )
    return [{"id": i} | row for i, row in enumerate(dice.shuffled(rows + copies))]


def write_demo(path: str | os.PathLike[str], seed: int = 0) -> Path:
    """Write the pool as JSON lines; a reader never sees a half-written file."""
    path = Path(path)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in demo_rows(seed))
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(text.encode())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path
