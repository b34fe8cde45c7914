"""Where a report lies: two files in the output folder, replaced only where smartgpu wrote them."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from smartgpu.files import replacing

PAGE, NUMBERS = "report.html", "report.json"
MARK = '<meta name="generator" content="smartgpu'  # near the start of every page


def check_place(folder: Path) -> None:
    """ValueError where a file of a report's name is there that is none."""
    for name in (PAGE, NUMBERS):
        path = folder / name
        if (path.exists() or path.is_symlink()) and not _ours(path):
            raise ValueError(f"{path} exists and is not of smartgpu: move it, or choose another folder")


def write(folder: Path, page: str, numbers: dict[str, Any]) -> Path:
    """Both files, each whole or not at all; the path of the page. The numbers first: a page is never without them."""
    check_place(folder)
    with replacing(folder / NUMBERS, "w") as file:
        json.dump(numbers, file, indent=1, ensure_ascii=False, allow_nan=False)
        file.write("\n")
    with replacing(folder / PAGE, "w") as file:
        file.write(page)
    return folder / PAGE


def discard(folder: Path) -> None:
    """Remove a report of what the folder held before."""
    for path in (folder / PAGE, folder / NUMBERS):
        if path.is_file() and _ours(path):
            with contextlib.suppress(FileNotFoundError):
                path.unlink()


def _ours(path: Path) -> bool:
    if path.is_symlink() or not path.is_file():
        return False
    if path.name == PAGE:
        with open(path, encoding="utf-8", errors="replace") as file:
            return MARK in file.read(1000)
    try:
        return {"schema", "report", "headline"} <= json.loads(path.read_text(encoding="utf-8")).keys()
    except (ValueError, AttributeError):
        return False
