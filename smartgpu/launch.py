"""The command line when torchrun (or srun) starts it in many processes: rank 0 reads and writes files, all select.

Rank 0 runs the command as ever. Where it selects, it hands the call, with what was read, to the other ranks, which wait
for nothing else. An array that lies in a file is not sent: they open the file. Nobody else needs the other files, and
nobody else writes.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import socket
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import numpy as np

from smartgpu.backends import gpu
from smartgpu.checkpoint import fingerprint
from smartgpu.ranks import WORLD, RankError, Ranks

T = TypeVar("T")
log = logging.getLogger("smartgpu")
OWN = ("report", "progress", "plan")  # arguments that rank 0 keeps to itself
GLANCE = 256  # rows of a file that ranks compare before they compare all of it
FOREVER = timedelta(days=30)  # waiting is ended by smartgpu.ranks, or by a process that ends
_crew: Ranks | None = None  # of this process, by which rank 0 hands out calls


def started() -> bool:
    """Whether this process is one of several that a launcher has started."""
    return int(os.environ.get("WORLD_SIZE") or 1) > 1 and "RANK" in os.environ and "MASTER_ADDR" in os.environ


def who() -> str:
    """For messages of a process that others were started with: "rank 1 (host): ", and nothing for rank 0."""
    rank = os.environ.get("RANK", "0") if started() else "0"
    return "" if rank == "0" else f"rank {rank} ({socket.gethostname()}): "


def begin(backend: str) -> int:
    """Join the other processes; this one's rank. backend: as the command was told, the same in all of them."""
    global _crew
    signal.signal(signal.SIGTERM, _stop)  # the launcher ends all when one has failed: keep the picks so far
    import torch
    import torch.distributed as dist

    on_gpu = backend in ("auto", "triton") and not gpu.interpreted() and torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=FOREVER)
    # waiting for rank 0 to read takes no GPU
    _crew = Ranks(dist.new_group(backend="gloo", timeout=FOREVER), float("inf"))
    return _crew.rank


def _stop(number: int, frame: Any) -> NoReturn:
    raise KeyboardInterrupt


def call(function: Callable[..., T], x: Any, *args: Any, **kwargs: Any) -> T:
    """function(x, ...), by all processes together where there are several."""
    if _crew is None:
        return function(x, *args, **kwargs)
    rest = {name: value for name, value in kwargs.items() if name not in OWN}
    _crew.share_all((function, args, rest))
    _hand_out(x)
    return function(x, *args, **kwargs, process_group=WORLD)


def follow() -> NoReturn:
    """What all but rank 0 do: the calls that it hands out, until it ends."""
    while True:
        try:
            message = _crew.share_all(None)[0]
            if isinstance(message, int):
                leave(message)
            function, args, kwargs = message
            function(_hand_out(None), *args, **kwargs, process_group=WORLD)
        except RankError as error:
            log.debug("%s", error)
            leave(1)
        except KeyboardInterrupt:
            leave(130)
        except Exception:  # rank 0 hears of it, and says it
            log.debug("where it came from:", exc_info=True)


def end(status: int, broken: bool = False) -> int:
    """The command has ended on rank 0, with this status; broken: perhaps in the middle of a call."""
    if _crew is None:
        return status
    if not broken:
        _crew.share_all(status)
    leave(status)


def leave(status: int) -> NoReturn:
    """At once: messages that nobody answers any more would keep the process."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _hand_out(x: Any) -> Any:
    """Rank 0's x on all ranks."""
    how, value = _crew.share_all(None if _crew.rank else _address(x))[0]
    if how == "file":
        return _same_file(x, *value)
    if how == "array":
        return _crew.copy(x, *value)
    return x if _crew.rank == 0 else pickle.loads(value)


def _address(x: Any) -> tuple[str, Any]:
    """How others get at x: from its file, number by number, or pickled."""
    if (
        type(x) is np.memmap and not isinstance(x.base, np.memmap) and x.flags.c_contiguous
    ):  # not a part of one
        return "file", (os.path.abspath(x.filename), x.dtype.str, x.shape, x.offset)
    if type(x) in (np.ndarray, np.memmap):
        return "array", (x.shape, x.dtype.str)
    return "pickled", pickle.dumps(x)


def _same_file(x: Any, path: str, dtype: str, shape: tuple[int, ...], offset: int) -> np.ndarray:
    """Rank 0's x, opened by all ranks. ValueError on all of them where one does not see that file, or sees another.

    Some rows are compared here, so that the message can name the file, and all of them by the call that follows.
    """
    problem = seen = None
    try:
        x = x if _crew.rank == 0 else np.memmap(path, dtype, "r", offset, shape)
        seen = fingerprint(x[:: -(-len(x) // GLANCE)])
    except (OSError, ValueError) as error:
        problem = f"cannot read {path} ({error})"
    found = _crew.share_all((problem, seen))
    for rank, (problem, seen) in enumerate(found):
        if problem is None and seen != found[0][1]:
            problem = f"finds another file than rank 0 as {path}"
        if problem is not None:
            raise ValueError(f"{_crew.name(rank)} {problem}: all processes must see the same folder")
    return x
