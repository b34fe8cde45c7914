"""What the task modules share: a portable die, the register of tasks, and small formatting helpers."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

Row = tuple[str | None, str, str, str]
"""template, instruction, input, output"""

NAMES = (
    "Amina Bruno Carmen Devi Elif Farid Grace Hugo Ines Jonas Keiko Liam Maya Nadia Oscar Priya Quentin Rosa Samir Tara "
    "Umar Vera Wanjiru Yusuf Zoe Anders Bianca Chen Dalia Emil"
).split()
SURNAMES = "Adeyemi Berg Costa Dubois Eriksen Farah Gupta Hoffmann Ito Jansen Kowalski Lopez Moreau Novak Okafor".split()
CITIES = "Lisbon Oslo Nairobi Lima Toronto Vienna Seoul Austin Dublin Prague Hanoi Accra Naples Porto Geneva".split()


class Dice:
    """Choices drawn from the raw PCG64 stream, which numpy keeps the same across versions and platforms."""

    def __init__(self, seed: int, name: str) -> None:
        self._raw = np.random.PCG64(np.random.SeedSequence([seed, zlib.crc32(name.encode())])).random_raw

    def int(self, low: int, high: int, step: int = 1) -> int:
        """An integer of low, low + step, ..., at most high."""
        return low + step * (int(self._raw()) % ((high - low) // step + 1))

    def pick(self, items: Sequence[Any]) -> Any:
        """One of the items."""
        return items[int(self._raw()) % len(items)]

    def sample(self, items: Sequence[Any], count: int) -> list[Any]:
        """`count` different positions of the items, in random order."""
        rest = list(items)
        return [rest.pop(int(self._raw()) % len(rest)) for _ in range(count)]

    def shuffled(self, items: Sequence[Any]) -> list[Any]:
        """All items in random order."""
        return self.sample(items, len(items))

    def chance(self, percent: int) -> bool:
        """True in `percent` of a hundred calls."""
        return int(self._raw()) % 100 < percent


@dataclass(frozen=True)
class Task:
    """A registered task: its function makes one row from a die."""

    name: str
    source: str
    rows: int
    make: Callable[[Dice], Row]


TASKS: dict[str, Task] = {}


def task(name: str, source: str, rows: int) -> Callable[[Callable[[Dice], Row]], Callable[[Dice], Row]]:
    """Register the decorated function as the maker of `rows` distinct rows of the task `name`."""

    def register(make: Callable[[Dice], Row]) -> Callable[[Dice], Row]:
        assert name not in TASKS, name
        TASKS[name] = Task(name, source, rows, make)
        return make

    return register


def table(text: str) -> list[list[str]]:
    """Rows of a table written as lines of fields separated by bars."""
    return [[field.strip() for field in line.split("|")] for line in text.strip().splitlines()]


def show(value: Fraction | int, places: int = 2) -> str:
    """The number rounded half up, with thousands separators and without trailing zeros."""
    scaled = Fraction(value) * 10**places
    whole = int(abs(scaled) + Fraction(1, 2))
    head, tail = divmod(whole, 10**places)
    text = f"{head:,}" + (f".{tail:0{places}d}".rstrip("0").rstrip(".") if places else "")
    return f"-{text}" if scaled < 0 and whole else text


def equals(value: Fraction | int) -> str:
    """ "= 2.5" where two decimals are enough, "is about 1.67" where they are not."""
    return f"{'=' if (value * 100).denominator == 1 else 'is about'} {show(value)}"


def money(cents: int) -> str:
    """Dollars with two decimals."""
    return f"${cents // 100:,}.{cents % 100:02d}"


def article(noun: str) -> str:
    """The noun with its indefinite article (nouns here have regular initial sounds)."""
    return ("an " if noun[0].lower() in "aeiou" else "a ") + noun


def listed(words: Sequence[str], last: str = "and") -> str:
    """a, b and c"""
    return f"{', '.join(words[:-1])} {last} {words[-1]}" if len(words) > 1 else words[0]


def plural(count: int | str, noun: str) -> str:
    """The count and the regular noun in the right number."""
    return f"{count} {noun}" if str(count) == "1" else f"{count} {noun}s"


SHORT = (
    "Answer the question below with the result alone.",
    "State only the result.",
    "Just the final answer, please, without working.",
)


def ask(dice: Dice, leads: Sequence[str], question: str, steps: str, answer: str) -> Row:
    """A question with working, worded in one of three ways: alone, after a lead, or for the answer only."""
    style = dice.int(0, 9)
    if style < 4:
        return "question", question, "", f"{steps} The answer is {answer}."
    if style < 8:
        return "show_working", dice.pick(leads), question, f"{steps} Answer: {answer}."
    return "answer_only", dice.pick(SHORT), question, answer
