"""Which files a path names, in which order and format; their content and fingerprint."""

from __future__ import annotations

import difflib
import glob
import gzip
import hashlib
import json
import re
import zlib
from pathlib import Path

SUFFIXES = {
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".parquet": "parquet",
    ".npy": "npy",
    ".npz": "npz",
    ".safetensors": "safetensors",
}
GZIPPED = ("json", "jsonl", "csv")  # readable with .gz behind the suffix
BARE = ("npy", "npz", "safetensors")  # embeddings alone, no fields
SUPPORTED = ".json .jsonl .csv (also .gz) .parquet .npy .npz .safetensors, a HF dataset folder"
PICKLES = (".pkl", ".pickle", ".pt", ".pth", ".bin", ".joblib")


def format_of(path: Path) -> str | None:
    """The format that the suffix of `path` names, or None; `.jsonl.gz` is "jsonl"."""
    suffixes = [s.lower() for s in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        inner = SUFFIXES.get(suffixes[-2]) if len(suffixes) > 1 else None
        return inner if inner in GZIPPED else None
    return SUFFIXES.get(suffixes[-1]) if suffixes else None


def natural_key(path: Path) -> tuple:
    """Sort key under which `part-2` comes before `part-10`, folder by folder."""
    return tuple(
        ([(0, int(t), "") if t.isdigit() else (1, 0, t) for t in re.findall(r"[0-9]+|[^0-9]+", part)], part)
        for part in path.parts
    )


def find_files(path: str | Path) -> tuple[tuple[Path, ...], str]:
    """The files that `path` names, in reading order, and their one format.

    path     a file, a folder of shards, a glob (`**` crosses folders), or a HF dataset folder
             (`save_to_disk`)
    returns  (files, format); hidden and `_`-prefixed files of a folder or glob are left out
    raises   FileNotFoundError where nothing is there (near names are listed); ValueError on an unsupported
             suffix, a folder without pool files, several formats, or a HF DatasetDict (its splits are listed)
    """
    root = Path(path).expanduser()
    if root.is_dir():
        if (root / "dataset_dict.json").is_file():
            raise ValueError(_splits_message(root))
        if (root / "state.json").is_file() and (root / "dataset_info.json").is_file():
            return _hf_files(root), "hf"
        return _one_format(
            sorted((p for p in root.iterdir() if p.is_file()), key=natural_key), str(path), root
        )
    if root.exists():
        fmt = format_of(root)
        if fmt is None:
            raise ValueError(_suffix_message(root))
        return (root,), fmt
    if glob.has_magic(str(root)):
        found = sorted(
            (Path(p) for p in glob.glob(str(root), recursive=True) if Path(p).is_file()), key=natural_key
        )
        if not found:
            raise FileNotFoundError(f"no file matches {str(path)!r}")
        return _one_format(found, str(path), None)
    raise FileNotFoundError(_missing_message(root, path))


def _one_format(candidates: list[Path], source: str, folder: Path | None) -> tuple[tuple[Path, ...], str]:
    visible = [p for p in candidates if p.name[0] not in "._"]
    by_format: dict[str, list[Path]] = {}
    for p in visible:
        if (fmt := format_of(p)) is not None:
            by_format.setdefault(fmt, []).append(p)
    if len(by_format) == 1:
        fmt, files = next(iter(by_format.items()))
        return tuple(files), fmt
    if by_format:
        shown = "; ".join(f"{fmt}: {_names(files)}" for fmt, files in by_format.items())
        raise ValueError(
            f"{source} mixes formats ({shown}); name one kind, for example '{source.rstrip('/')}/*.jsonl'"
            if folder
            else f"{source} matches several formats ({shown}); narrow the pattern"
        )
    held = f"it holds {_names(visible)}" if visible else "it holds no visible file"
    inner = ""
    if folder and any(format_of(p) for p in folder.glob("*/*")):
        inner = f"; files in folders below are read by a pattern such as '{source.rstrip('/')}/**/*.parquet'"
    raise ValueError(f"no pool file in {source}: {held}; supported: {SUPPORTED}{inner}")


def _names(files: list[Path]) -> str:
    return ", ".join(p.name for p in files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")


def _suffix_message(path: Path) -> str:
    extra = "; pickles are never loaded" if path.suffix.lower() in PICKLES else ""
    return f"{path}: unsupported suffix {''.join(path.suffixes[-2:])!r}, expected one of {SUPPORTED}{extra}"


def _missing_message(root: Path, given: str | Path) -> str:
    if not root.parent.is_dir():
        return f"no file or folder {str(given)!r}: the folder {str(root.parent)!r} does not exist"
    near = difflib.get_close_matches(root.name, [p.name for p in root.parent.iterdir()], n=3, cutoff=0.6)
    hint = f"; near names: {', '.join(near)}" if near else ""
    return f"no file or folder {str(given)!r}{hint}"


def _splits_message(root: Path) -> str:
    try:
        splits = json.loads((root / "dataset_dict.json").read_bytes())["splits"]
    except (ValueError, KeyError, TypeError):
        splits = sorted(p.name for p in root.iterdir() if p.is_dir())
    return (
        f"{root} is a HF DatasetDict of splits {', '.join(splits)}: name one, for example {root / splits[0]}"
    )


def _hf_files(root: Path) -> tuple[Path, ...]:
    try:
        state = json.loads((root / "state.json").read_bytes())
        names = [entry["filename"] for entry in state["_data_files"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{root / 'state.json'} is not the state of a HF dataset ({error!r})") from error
    if state.get("_indices_data_files"):
        raise ValueError(
            f"{root} was saved by datasets 1.x with an indices mapping; save it again with datasets >= 2"
        )
    return tuple(root / name for name in names)


def read_gzip(path: Path) -> bytes:
    """The decompressed content of `path`; ValueError names the file where it is truncated or no gzip."""
    try:
        with gzip.open(path) as handle:
            return handle.read()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: not a readable gzip file ({error})") from error


def is_gzip(path: Path) -> bool:
    return path.suffix.lower() == ".gz"


def fingerprint(files: tuple[Path, ...]) -> str:
    """sha256 over size and content of each file in reading order, as hex; names and times do not enter."""
    total = hashlib.sha256(b"smartgpu pool 1")
    for path in files:
        with open(path, "rb") as handle:
            digest = hashlib.file_digest(handle, "sha256").digest()
            total.update(handle.tell().to_bytes(8, "little") + digest)
    return total.hexdigest()
