"""Processes that select together: ranks of a torch.distributed group, of which each holds a share of the rows.

One primitive carries all numbers: a sum over the ranks of exact integers, so that every rank gets the same ones, and
decides alike; another brings features to where they are worked on. The group is the user's own, NCCL or gloo. Who
failed, and why, goes by the store that the group was made with, which outlives a rank.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import socket
import time
import uuid
import zlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np

from smartgpu.shares import share

T = TypeVar("T")

WORLD = "world"  # process_group: the group that init_process_group() made
MOST = 1024  # ranks
TAG = (1 << 20) - 1  # of what a sum is of, sent with it: the sum of MOST of them fits 32 bits
CHUNK = 1 << 26  # bytes of an array sent at once
# Seconds: between two looks at a message, and for how long so short; between two at the store; for the roll call,
# and where several do not answer, who may be at work.
NAP, SPIN = 20e-6, 0.002
LOOK, GRACE, BUSY = 0.5, 3.0, 30.0


class RankError(RuntimeError):
    """Another rank ended the run: the message says which, on which host, and why."""


def need_group(process_group: Any) -> Any:
    """The group, or the default one for "world". Raises ValueError, TypeError for none, ImportError without torch."""
    try:
        import torch
        import torch.distributed as dist
    except ImportError as error:
        raise ImportError(
            f"process_group needs torch ({error}); install it with: pip install torch"
        ) from error
    if not dist.is_available():
        raise ValueError("process_group needs a torch with torch.distributed; this one was built without")
    if not dist.is_initialized():
        raise ValueError(
            "process_group is not initialised: call torch.distributed.init_process_group() first, or start the command "
            "with torchrun"
        )
    if isinstance(process_group, str) and process_group == WORLD:
        process_group = dist.group.WORLD
    if not isinstance(process_group, dist.ProcessGroup):
        raise TypeError(
            f"process_group must be a torch.distributed.ProcessGroup or {WORLD!r}, got {process_group!r}"
        )
    if dist.get_rank(process_group) < 0:
        raise ValueError("process_group must be one that this process belongs to")
    if "nccl" in dist.get_backend(process_group) and not torch.cuda.is_available():
        raise ValueError("process_group is of NCCL, which needs GPUs, and torch sees none here: use gloo")
    return process_group


class Ranks:
    """This process among those of a group, for one call. Every method is called by all ranks, in the same order.

    rank, size   this one's number, and how many there are
    hosts        of all ranks
    messages, bytes   sums over the ranks and arrays sent to all, so far, and what this rank gave or got by them

    timeout: seconds that a rank may keep the others waiting before they end the run.
    """

    def __init__(self, process_group: Any, timeout: float):
        import torch
        import torch.distributed as dist

        self._torch, self._dist, self._group = torch, dist, need_group(process_group)
        self.rank, self.size, self.timeout = dist.get_rank(self._group), self._group.size(), timeout
        # NCCL carries what is on a GPU, gloo what is on the host
        nccl = "nccl" in dist.get_backend(self._group)
        self._device = torch.device("cuda", torch.cuda.current_device()) if nccl else None
        self.hosts = [socket.gethostname()] * self.size
        self.messages = self.bytes = 0
        self._step, self._store = 0, dist.distributed_c10d._get_default_store()
        self._prefix = f"smartgpu/{self._first_name()}/"  # of this call's keys in the store
        found = self.share_all((socket.gethostname(), self._gpu()))
        self.hosts = [host for host, _ in found]
        self._check_gpus([gpu for _, gpu in found])

    def _first_name(self) -> str:
        """One name for all ranks, which no other call has."""
        self._prefix = "smartgpu/"
        return self.share_all(uuid.uuid4().hex)[0]

    def _gpu(self) -> str | None:
        if self._device is None:
            return None
        return str(self._torch.cuda.get_device_properties(self._device).uuid)

    def _check_gpus(self, gpus: list[str | None]) -> None:
        for rank, gpu in enumerate(gpus):
            if gpu is not None and gpus.index(gpu) != rank:
                raise ValueError(
                    f"{self.name(gpus.index(gpu))} and {self.name(rank)} use the same GPU: call "
                    "torch.cuda.set_device(int(os.environ['LOCAL_RANK'])) first"
                )

    def name(self, rank: int) -> str:
        return f"rank {rank} ({self.hosts[rank]})"

    @property
    def beside(self) -> int:
        """Ranks on this host, this one included."""
        return self.hosts.count(self.hosts[self.rank])

    def share(self, r: int) -> slice:
        """The rows of this rank, of r."""
        return share(r, self.rank, self.size)

    # -- numbers ---------------------------------------------------------------------------------------------------

    def sum(self, values: np.ndarray, what: str) -> np.ndarray:
        """Sums over all ranks, of (m,) int64 or int32; `what` is the same on all ranks, or they are out of step."""
        tag = zlib.crc32(f"{self._step} {what} {len(values)}".encode()) & TAG
        self._step += 1
        packed = np.empty(len(values) + 1, values.dtype)
        packed[0], packed[1:] = tag, values
        out = self._reduce(packed)
        if out[0] != tag * self.size:
            raise self._out_of_step(f"the sum of {what}")
        return out[1:]

    def _out_of_step(self, what: str) -> RuntimeError:
        return RuntimeError(
            f"the ranks are out of step: {self.name(self.rank)} asks for {what}, and another for something else. Are "
            "they of one kind, with the same versions and libraries?"
        )

    def _reduce(self, values: np.ndarray) -> np.ndarray:
        there = self._torch.from_numpy(values)
        there = there if self._device is None else there.to(self._device)
        self._wait(lambda: self._dist.all_reduce(there, group=self._group, async_op=True))
        self.messages, self.bytes = self.messages + 1, self.bytes + values.nbytes
        return values if self._device is None else there.cpu().numpy()

    def _bring(self, values: np.ndarray, owner: int) -> Callable[[], None]:
        """Start to bring the owner's numbers to all ranks, in place; what is returned waits until they are there."""
        there = self._torch.from_numpy(values)
        there = there if self._device is None else there.to(self._device)
        source = self._dist.get_global_rank(self._group, owner)
        try:
            work = self._dist.broadcast(there, source, group=self._group, async_op=True)
        except RuntimeError as error:
            self._lost(error)
        self.messages, self.bytes = self.messages + 1, self.bytes + values.nbytes

        def arrive() -> None:
            self._wait(lambda: work)
            if self._device is not None and self.rank != owner:
                values[:] = there.cpu().numpy()

        return arrive

    def send(self, values: np.ndarray, owner: int, what: str) -> Callable[[], None]:
        """Start to bring the owner's (m + 1,) int32 to all ranks, in place; what is returned waits until it is there.

        The last number is for a tag. One message: nothing else is asked of the others meanwhile.
        """
        tag = zlib.crc32(f"{self._step} {what} {len(values)}".encode()) & TAG
        self._step += 1
        if self.rank == owner:
            values[-1] = tag
        coming = self._bring(values, owner)

        def arrive() -> None:
            coming()
            if values[-1] != tag:
                raise self._out_of_step(what)

        return arrive

    def number(self, value: int, what: str) -> int:
        """The sum of one integer of each rank."""
        return int(self.sum(np.array([value], np.int64), what)[0])

    def each(self, value: int, what: str) -> np.ndarray:
        """(size,) int64: the integer of each rank."""
        values = np.zeros(self.size, np.int64)
        values[self.rank] = value
        return self.sum(values, what)

    def join(self, values: np.ndarray, rows: slice, r: int, what: str) -> np.ndarray:
        """(r,) of all ranks, each of which has those of its rows."""
        out = np.zeros(r, values.dtype)
        out[rows] = values
        return self.sum(out, what)

    def gather(self, values: np.ndarray, what: str) -> list[np.ndarray]:
        """The arrays of all ranks in order, one-dimensional, of any lengths and one dtype."""
        out = []
        for q, length in enumerate(self.each(len(values), what).tolist()):
            out.append(np.ascontiguousarray(values) if q == self.rank else np.empty(length, values.dtype))
            numbers = out[-1].view(np.uint8)
            for i in range(0, len(numbers), CHUNK):
                self._bring(numbers[i : i + CHUNK], q)()
        return out

    # -- the run ---------------------------------------------------------------------------------------------------

    def all_of(self, work: Callable[[], T]) -> T:
        """work(), which every rank does by itself. Where it fails on one, it fails on all: there with its own error."""
        result, error = None, None
        try:
            result = work()
        except Exception as found:  # noqa: BLE001 - whatever it is, the others must know
            error = found
        found = self.share_all(None if error is None else _cause(error))
        if error is not None:
            raise error
        for rank, cause in enumerate(found):
            if cause is not None:
                raise RankError(f"{self.name(rank)} ended the run: {cause}")
        return result

    def first(self, work: Callable[[], T]) -> T:
        """What work() gives on rank 0, on all ranks; the others do not do it."""
        result = self.all_of(lambda: work() if self.rank == 0 else None)
        return self.share_all(result)[0]

    def share_all(self, value: T) -> list[T]:
        """What each rank has, in order: any objects, pickled."""
        text = np.frombuffer(pickle.dumps(value), np.uint8)
        ends = np.cumsum(self.each(len(text), "lengths"))
        every = np.zeros(int(ends[-1]), np.uint8)
        every[ends[self.rank] - len(text) : ends[self.rank]] = text
        every = self._reduce(every)
        return [pickle.loads(part.tobytes()) for part in np.split(every, ends[:-1])]

    def copy(self, x: np.ndarray | None, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        """Rank 0's array, of this shape and dtype, on all ranks."""
        out = np.zeros(shape, dtype) if x is None else np.ascontiguousarray(x)
        numbers = out.reshape(-1).view(np.uint8)
        for i in range(0, len(numbers), CHUNK):
            part = numbers[i : i + CHUNK]
            found = self._reduce(part.copy())
            if x is None:
                part[:] = found
        return out

    def agree(
        self, record: Callable[[], dict[str, Any]], differences: Callable[[dict, dict], list[str]]
    ) -> None:
        """ValueError, on all ranks, where one was given something else than rank 0: naming it, with what differs."""
        text = self.all_of(lambda: json.dumps(record(), sort_keys=True, default=str))
        records = self.share_all(text)
        for rank, text in enumerate(records):
            if text != records[0]:
                lines = differences(json.loads(records[0]), json.loads(text))
                raise ValueError(
                    f"{self.name(rank)} was given other data, options or versions than rank 0; with those of rank 0 "
                    f"as 'there', its own as 'now': {'; '.join(lines)}"
                )

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Inside, an error of this rank is told to the others, whose next wait ends with a RankError."""
        try:
            yield
        except RankError:
            raise
        except BaseException as error:
            self._fail(self.rank, _cause(error))
            raise

    def said(self) -> dict[str, int]:
        """For a result."""
        return {"processes": self.size, "messages": self.messages, "bytes": self.bytes}

    def _wait(self, start: Callable[[], Any]) -> None:
        """Start a collective and wait for it: no longer than `timeout`, and only while nobody has failed."""
        begin = time.perf_counter()
        try:
            work = start()
            while not self._done(work):
                self._raise_failed()
                if time.perf_counter() - begin > self.timeout:
                    self._lost(None)
        except RankError:
            raise
        except RuntimeError as error:
            self._lost(error)

    def _done(self, work: Any) -> bool:
        """Wait for it until it is time to look at the store; whether it is done.

        Asked again and again: a thread that sleeps in gloo's own wait is woken up later than one that naps, and a wait
        for NCCL that runs out would end the group.
        """
        begin = time.perf_counter()
        while not work.is_completed():
            waited = time.perf_counter() - begin
            if waited > LOOK:
                return False
            time.sleep(NAP if waited < SPIN else 25 * NAP)
        return work.wait()

    # -- failures --------------------------------------------------------------------------------------------------

    def _fail(self, rank: int, cause: str) -> None:
        """Write down who failed and why, unless somebody has."""
        text = json.dumps([rank, cause])
        with contextlib.suppress(RuntimeError):  # without the store, others find out by themselves
            self._store.compare_set(self._prefix + "failed", "", text)

    def _raise_failed(self) -> None:
        if self._store.check([self._prefix + "roll"]):  # somebody is missed: not this one
            self._store.set(f"{self._prefix}here/{self.rank}", "")
        if self._store.check([self._prefix + "failed"]):
            rank, cause = json.loads(self._store.get(self._prefix + "failed"))
            raise RankError(f"{self.name(rank)} ended the run: {cause}")

    def _lost(self, error: RuntimeError | None) -> None:
        """Raise RankError for the rank that another told of, or else for those that do not answer a roll call."""
        why = f"within {self.timeout:g} seconds" if error is None else "any more"
        try:
            self._store.set(self._prefix + "roll", "")
            begin, missing = time.perf_counter(), []
            while time.perf_counter() - begin < min(BUSY if len(missing) > 1 else GRACE, self.timeout):
                self._raise_failed()
                missing = [q for q in range(self.size) if not self._store.check([f"{self._prefix}here/{q}"])]
                if not missing:
                    break
                time.sleep(0.05)
            self._raise_failed()
            if missing:
                self._fail(missing[0], f"it does not answer {why}: its process died, or hangs")
                self._raise_failed()
        except RankError as found:
            raise found from error
        except RuntimeError as gone:
            raise RankError(
                f"the store of the process group does not answer: the process that holds it has ended, on "
                f"{os.environ.get('MASTER_ADDR', self.hosts[0])} ({gone})"
            ) from error
        raise RankError(
            f"the ranks lost each other: all answer, but a message among them failed ({error or 'they wait for'}"
            f"{'' if error else ' different sums'})"
        ) from error


class Alone:
    """One process by itself, where no group is given: nothing to agree on."""

    rank, size, beside = 0, 1, 1

    def all_of(self, work: Callable[[], T]) -> T:
        return work()

    def agree(self, record: Callable[[], dict[str, Any]], differences: Any) -> None:
        pass

    def running(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


def join(options: Any) -> Ranks | Alone:
    """The processes that smartgpu.Options name."""
    return Alone() if options.process_group is None else Ranks(options.process_group, options.timeout)


def _cause(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
