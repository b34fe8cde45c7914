"""What every launcher refuses before a kernel runs: wrong types, shapes, devices and layouts. Kernels trust."""

import torch

from .launch import INTERPRETED


def tensor(name, value, shape, dtypes, like=None):
    """Refuse all but a contiguous tensor of this shape (None: any length) and of one of these dtypes.

    like  (name, tensor) that it must share a device with; None: it is itself what others are compared with
    """
    if not isinstance(value, torch.Tensor):
        raise ValueError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    fits = value.ndim == len(shape) and all(
        s is None or s == t for s, t in zip(shape, value.shape, strict=True)
    )
    if not fits:
        want = ", ".join("*" if s is None else str(s) for s in shape) + ("," if len(shape) == 1 else "")
        raise ValueError(f"{name} must have shape ({want}), got {tuple(value.shape)}")
    if value.dtype not in dtypes:
        raise ValueError(f"{name} must have dtype {' or '.join(map(str, dtypes))}, got {value.dtype}")
    if not value.is_contiguous():
        raise ValueError(f"{name} must be contiguous, got strides {value.stride()}")
    device(name, value, like)


def rows(name, value, dtypes):
    """Refuse all but a matrix whose rows are contiguous; their distance is free."""
    if not isinstance(value, torch.Tensor):
        raise ValueError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    if value.ndim != 2:
        raise ValueError(f"{name} must have 2 dimensions, got shape {tuple(value.shape)}")
    if value.dtype not in dtypes:
        raise ValueError(f"{name} must have dtype {' or '.join(map(str, dtypes))}, got {value.dtype}")
    if value.shape[1] > 1 and value.stride(1) != 1:
        raise ValueError(
            f"{name} must have a contiguous last dimension (stride 1), got stride {value.stride(1)}"
        )
    device(name, value)


def device(name, value, like=None):
    """Refuse a tensor that is not where kernels run, or not where the others are."""
    if like is not None:
        if value.device != like[1].device:
            raise ValueError(f"{name} must be on {like[0]}'s device {like[1].device}, got {value.device}")
    elif not INTERPRETED and value.device.type != "cuda":
        raise ValueError(
            f"{name} must be on a CUDA device, got {value.device} (without a GPU, TRITON_INTERPRET=1 in the "
            "environment before triton is imported runs the kernels on the CPU, slowly)"
        )


def columns(cols, n, like):
    """Refuse indices that are not int64; returns how many columns are meant, all n where cols is None."""
    if cols is None:
        return n
    tensor("cols", cols, (None,), (torch.int64,), like)
    return cols.shape[0]
