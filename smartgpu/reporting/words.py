"""A row's text as a page may show it: one line, cut, with nothing in it that hides or reorders what is there."""

from __future__ import annotations

import json
import unicodedata
from typing import Any

JOINERS = (
    "\u200c\u200d\u200e\u200f\u061c"  # Persian, Indic scripts and emoji need the first two; marks do no harm
)
ELLIPSIS = "…"


def shown(value: Any, limit: int) -> dict[str, Any]:
    """{"text": at most `limit` characters of value, "length": characters that it has}.

    Line breaks become ↵, tabs a space, other control characters and format characters that reorder or hide text their
    escape (\\x1b, \\u202e), and lone surrogates U+FFFD. A text costs O(limit), however long it is; what is no
    text is written as JSON.
    """
    text = value if isinstance(value, str) else _plain(value)
    head = text[: limit + 1]  # one more: whether there is more
    out = "".join(map(_visible, head[:limit].strip().replace("\r\n", "\n")))
    if len(head) > limit:
        out = out.rstrip("\u200d\ufe0f ") + ELLIPSIS
    return {"text": out, "length": len(text)}


def _plain(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bytes | bytearray | memoryview):
        return f"{len(bytes(value))} bytes"
    return json.dumps(value, ensure_ascii=False, default=str)


def _visible(c: str) -> str:
    if c.isprintable() or c in JOINERS:
        return c
    code, kind = ord(c), unicodedata.category(c)
    if c in "\n\r\u2028\u2029\x85":
        return " ↵ "
    if c == "\t" or kind == "Zs":
        return " "
    if kind == "Cs":
        return "\ufffd"
    if 0xE0020 <= code <= 0xE007F:  # flags of regions are spelled in these
        return c
    if kind in ("Co", "Cn"):
        return c
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
