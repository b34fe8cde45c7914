"""Whatever the user holds -> a checked matrix: shape, type and finite values, before any long work."""

from __future__ import annotations

from typing import Any

import numpy as np

from smartgpu.features import power_of_two
from smartgpu.similarity import Matrix, Precomputed

EMBEDDING_COLUMNS = ("embeddings", "embedding", "vector")
TENSOR_DTYPES = "float16 bfloat16 float32 float64 int8 int16 int32 int64 uint8 bool".split()
TILE = 512  # rows and columns of a given matrix that are looked at together


def as_matrix(value: Any, name: str = "X", *, tensors: bool = False) -> np.ndarray:
    """A non-empty, finite (n, d) array of any real dtype and layout; no copy where numpy can view the input.

    Takes ndarrays and memmaps, torch and CuPy tensors (on a device: copied to the host) and other DLPack objects,
    pyarrow (fixed-size) list columns, HF datasets with an embedding column, and nested sequences.
    tensors: torch and CuPy tensors stay where they are, and come back as torch tensors.
    Raises TypeError for other things; ValueError for a wrong shape, ragged rows, NaN or infinity (count and first row).
    """
    if tensors and is_tensor(value):
        return as_tensor(value, name)
    out = _to_numpy(value, name)
    if out.dtype == object or out.dtype.kind not in "fiub":
        raise TypeError(f"{name} must hold real numbers, got dtype {out.dtype}")
    if out.ndim != 2:
        raise ValueError(f"{name} must be two-dimensional, (rows, features), got shape {out.shape}")
    if 0 in out.shape:
        raise ValueError(f"{name} is empty: expected at least one row and one feature, got shape {out.shape}")
    check_finite(out, name)
    return out


def check_finite(x: np.ndarray, name: str) -> None:
    """ValueError with the number of NaN and infinite values and the first row that holds one."""
    if x.dtype.kind != "f":
        return
    count, first, block = 0, -1, max(1, (1 << 20) // max(x.shape[1], 1))
    wide = x.dtype.itemsize >= 4
    for i in range(0, len(x), block):
        part = x[i : i + block]
        if (
            wide and np.isfinite(part.min()) and np.isfinite(part.max())
        ):  # NaN passes through both; a third of the time
            continue
        bad = np.isfinite(part)
        np.logical_not(bad, out=bad)
        if bad.any():
            count += int(bad.sum())
            if first < 0:
                first = i + int(np.flatnonzero(bad.reshape(len(bad), -1).any(axis=1))[0])
    if count:
        raise ValueError(
            f"{name} must be finite, got {count} NaN or infinite values, the first in row {first}"
        )


def is_tensor(value: Any) -> bool:
    """Whether it is a torch tensor, or an array on a CUDA device (CuPy's, Numba's)."""
    package = type(value).__module__.partition(".")[0]
    return package in ("torch", "cupy") or (package != "numpy" and hasattr(value, "__cuda_array_interface__"))


def on_gpu(value: Any) -> bool:
    """Whether it is an array on a CUDA device."""
    return is_tensor(value) and hasattr(value, "__cuda_array_interface__")


def as_tensor(value: Any, name: str) -> Any:
    """A checked torch tensor (n, d) that shares the value's memory, as as_matrix() checks arrays. Raises likewise."""
    import torch

    if not isinstance(value, torch.Tensor):
        strides = getattr(value, "strides", None) or ()
        if any(step % value.dtype.itemsize for step in strides):
            raise ValueError(
                f"{name} must have strides that are multiples of its element size, {value.dtype.itemsize} bytes, "
                f"got strides {tuple(strides)}"
            )
        value = (
            torch.from_dlpack(value)
            if hasattr(value, "__dlpack__")
            else torch.as_tensor(value, device="cuda")
        )
    out = value.detach()
    dtype = str(out.dtype).removeprefix("torch.")
    if dtype not in TENSOR_DTYPES:
        raise TypeError(f"{name} must hold real numbers ({', '.join(TENSOR_DTYPES)}), got dtype {dtype}")
    if out.layout != torch.strided or out.device.type not in ("cpu", "cuda"):
        raise ValueError(
            f"{name} must be a dense tensor on a CUDA device or on the host, got {out.layout} on {out.device}"
        )
    if out.ndim != 2:
        raise ValueError(f"{name} must be two-dimensional, (rows, features), got shape {tuple(out.shape)}")
    if 0 in out.shape:
        raise ValueError(
            f"{name} is empty: expected at least one row and one feature, got shape {tuple(out.shape)}"
        )
    count, first, block = 0, -1, max(1, (1 << 22) // out.shape[1])
    for i in range(0, len(out) if out.is_floating_point() else 0, block):
        bad = (~out[i : i + block].isfinite()).sum(dim=1)
        found = int(bad.sum())
        if found and first < 0:
            first = i + int((bad > 0).nonzero()[0])
        count += found
    if count:
        raise ValueError(
            f"{name} must be finite, got {count} NaN or infinite values, the first in row {first}"
        )
    return out


def on_host(value: Any) -> np.ndarray:
    """The array itself, or a host copy of a tensor; bfloat16 becomes float32, which holds all its values."""
    return value if isinstance(value, np.ndarray) else _to_numpy(value, "X")


def _to_numpy(value: Any, name: str) -> np.ndarray:
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array: fill or drop the masked values first")
    if isinstance(value, np.ndarray):
        return value if type(value) in (np.ndarray, np.memmap) else np.asarray(value)
    package = type(value).__module__.partition(".")[0]
    if package == "torch":
        host = value.detach().cpu()
        return (host.float() if str(host.dtype) == "torch.bfloat16" else host).numpy()
    if package == "cupy":
        return value.get()
    if package == "datasets":
        return _from_dataset(value, name)
    if package == "pyarrow":
        return _from_arrow(value, name)
    if hasattr(value, "indptr"):
        raise TypeError(
            f"{name} is a sparse matrix: pass similarity='precomputed', or a dense array of features"
        )
    if hasattr(value, "__dlpack__"):
        return np.from_dlpack(value)
    try:
        out = np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{name} must be two-dimensional with rows of one length: {error}") from None
    if out.dtype == object or out.dtype.kind in "USO":
        raise TypeError(f"{name} must be an array of numbers, got {type(value).__name__}")
    return out


def _from_dataset(dataset: Any, name: str) -> np.ndarray:
    if type(dataset).__name__ == "Column":  # ds["embeddings"]
        return _from_arrow(dataset.source.select_columns([dataset.column_name]).with_format("arrow")[:], name)
    names = list(getattr(dataset, "column_names", []))
    if not hasattr(dataset, "num_rows") or isinstance(dataset, dict) or isinstance(names, dict):
        raise TypeError(
            f"{name} must be one split of a dataset, got {type(dataset).__name__}; choose a split first"
        )
    found = next((c for c in EMBEDDING_COLUMNS if c in names), None)
    if found is None:
        raise ValueError(
            f"{name} has no embedding column ({', '.join(EMBEDDING_COLUMNS)}); its columns: {', '.join(names)}"
        )
    return _from_arrow(dataset.select_columns([found]).with_format("arrow")[:].column(found), name)


def _from_arrow(column: Any, name: str) -> np.ndarray:
    import pyarrow as pa

    if isinstance(column, pa.Table):
        found = next((c for c in EMBEDDING_COLUMNS if c in column.column_names), None)
        if found is None:
            raise ValueError(f"{name} has no embedding column; its columns: {', '.join(column.column_names)}")
        column = column.column(found)
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    kind = column.type
    if not (pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        raise TypeError(f"{name} must be a column of lists of numbers, got {kind}")
    if column.null_count:
        raise ValueError(f"{name} has {column.null_count} empty rows (nulls)")
    parts = []
    for chunk in chunks:
        if pa.types.is_fixed_size_list(kind):
            width = kind.list_size
        else:
            lengths = np.diff(chunk.offsets.to_numpy())
            width = int(lengths[0]) if len(lengths) else 0
            if not len(lengths):
                continue
            if (lengths != width).any() or (parts and width != parts[0].shape[1]):
                raise ValueError(
                    f"{name} must have rows of one length, got lists of {lengths.min()} to {lengths.max()}"
                )
        flat = chunk.flatten()
        if flat.null_count:
            raise ValueError(f"{name} has {flat.null_count} missing numbers (nulls inside a row)")
        if len(chunk):
            parts.append(flat.to_numpy(zero_copy_only=False).reshape(len(chunk), width))
    if not parts:
        return np.empty((0, 0), np.float32)
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def as_similarity_matrix(value: Any, name: str = "X", *, tensors: bool = False) -> Matrix:
    """A precomputed similarity, represented x candidates: a dense matrix, or scipy CSR/CSC/COO (by duck type).

    tensors: as for as_matrix().

    Entries that a sparse matrix does not store are 0. Repeated entries of one place are added up, as scipy does.
    """
    kind = Precomputed()
    if hasattr(value, "tocsr") and hasattr(value, "tocsc"):
        if 0 in value.shape:
            raise ValueError(f"{name} is empty, got shape {value.shape}")
        if value.dtype.kind not in "fiub":
            raise TypeError(f"{name} must hold real numbers, got dtype {value.dtype}")
        columns = value.tocsc(copy=True)
        columns.sum_duplicates()
        columns.sort_indices()
        data = np.asarray(columns.data, np.float64)
        bad = np.flatnonzero(~np.isfinite(data))
        if len(bad):
            first = int(columns.indices[bad].min())
            raise ValueError(
                f"{name} must be finite, got {len(bad)} NaN or infinite values, the first in row {first}"
            )
        asymmetry = np.inf
        if value.shape[0] == value.shape[1]:
            asymmetry, across = 0.0, columns.T.tocsc()
            for j in range(0, value.shape[1], TILE):
                gap = abs(columns[:, j : j + TILE] - across[:, j : j + TILE])
                asymmetry = max(asymmetry, float(gap.max()) if gap.nnz else 0.0)
            del across
        csc = columns.indptr.astype(np.int64), columns.indices.astype(np.int64), data
        full = columns.nnz == value.shape[0] * value.shape[1]
        lowest = float(data.min(initial=np.inf if full else 0.0))
        unit = power_of_two(float(np.abs(data).max(initial=0.0)))
        return Matrix(kind, tuple(value.shape), None, csc, unit, asymmetry, lowest)
    dense = as_matrix(value, name, tensors=tensors)
    square = dense.shape[0] == dense.shape[1]
    asymmetry, lowest, highest = (0.0 if square else np.inf), np.inf, -np.inf
    for i in range(0, dense.shape[0], TILE):
        for j in range(0, dense.shape[1], TILE):
            tile = np.asarray(on_host(dense[i : i + TILE, j : j + TILE]), np.float64)
            lowest, highest = min(lowest, float(tile.min())), max(highest, float(tile.max()))
            if square and j >= i:
                gap = tile - on_host(dense[j : j + TILE, i : i + TILE]).T
                asymmetry = max(asymmetry, float(np.abs(gap, out=gap).max()))
    return Matrix(
        kind, tuple(dense.shape), dense, None, power_of_two(max(-lowest, highest)), asymmetry, lowest
    )


def as_rows(value: Any, n: int, name: str) -> np.ndarray:
    """Row numbers, (m,) int64 in [0, n), from integers or a boolean mask (n,). Repeated rows count once."""
    if value is None:
        return np.empty(0, np.int64)
    try:
        rows = np.asarray(value if not hasattr(value, "cpu") else value.cpu())
    except ValueError as error:
        raise ValueError(f"{name} must be row numbers or a boolean mask: {error}") from None
    if rows.size == 0:
        return np.empty(0, np.int64)
    if rows.ndim != 1:
        raise ValueError(f"{name} must be one-dimensional, got shape {rows.shape}")
    if rows.dtype == bool:
        if len(rows) != n:
            raise ValueError(f"{name} as a mask must have shape ({n},), got {rows.shape}")
        return np.flatnonzero(rows)
    if rows.dtype.kind not in "iu":
        raise TypeError(f"{name} must be row numbers (integers) or a boolean mask, got dtype {rows.dtype}")
    if rows.min() < 0 or rows.max() >= n:
        bad = rows[(rows < 0) | (rows >= n)][0]
        raise ValueError(f"{name} must be rows in [0, {n}), got {bad}")
    _, first = np.unique(rows, return_index=True)
    return rows[np.sort(first)].astype(np.int64)


def as_count(k: Any, n: int, name: str = "k") -> int:
    """A number of rows: an int counts, a float in (0, 1] is a share of n (rounded to nearest, 1 at least)."""
    if isinstance(k, (bool, np.bool_)) or not isinstance(k, (int, float, np.integer, np.floating)):
        raise TypeError(
            f"{name} must be a number of rows (int) or a share of them (float in (0, 1]), got {k!r}"
        )
    if isinstance(k, (float, np.floating)):
        if not 0 < k <= 1:
            raise ValueError(
                f"{name} as a share must lie in (0, 1], got {k}; write a number of rows as an int"
            )
        return max(1, int(np.floor(k * n + 0.5)))
    if k <= 0:
        raise ValueError(f"{name} must be at least 1, got {k}")
    if k > n:
        raise ValueError(f"{name} must be at most the number of rows to choose from, {n}, got {k}")
    return int(k)
