"""File names for labels that may be anything: readable, safe on every file system, one for each label."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable

LENGTH = 80  # of a name: with any suffix far below the 255 bytes that file systems allow
_SAFE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
# Names of devices on Windows, with any suffix.
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)


def safe_names(labels: Iterable[str]) -> dict[str, str]:
    """A file name without suffix for every label, none equal to another even where case does not count.

    labels   distinct strings: any characters, any length, also empty
    returns  label -> name of letters, digits, ".", "_" and "-" that starts with none of ".-" and ends with no ".".
             A label that is such a name of at most 80 characters, and that no other label equals but for case, is
             its own name. Any other keeps what is readable of it, followed by "-" and the start of the sha256 of the
             label. The names depend on the set of labels, not on their order; names that came from here stay
    """
    labels = sorted(labels)
    lowered = Counter(label.lower() for label in labels)
    names = {label: label for label in labels if _is_safe(label) and lowered[label.lower()] == 1}
    taken = {name.lower() for name in names.values()}
    for label in labels:
        if label not in names:
            digest = hashlib.sha256(label.encode("utf-8", "surrogatepass")).hexdigest()
            readable = re.sub(r"[^A-Za-z0-9._]+", "-", label)[: LENGTH - 9].strip(".-") or "unnamed"
            if _RESERVED.fullmatch(readable):
                readable = readable.replace(".", "-")
            # eight digits, and more where a label is spelt like the name of another
            sizes = (size for size in range(8, 65) if f"{readable}-{digest[:size]}".lower() not in taken)
            names[label] = f"{readable}-{digest[: next(sizes)]}"
            taken.add(names[label].lower())
    return names


def _is_safe(label: str) -> bool:
    fits = len(label) <= LENGTH and _SAFE.fullmatch(label) and not label.endswith(".")
    return bool(fits) and not _RESERVED.fullmatch(label)
