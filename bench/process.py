"""The parent's end of a worker process: start it, ask it, and stop it when it takes too long."""

from __future__ import annotations

import dataclasses
import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from bench.cases import ROOT, Case

WORKER = Path(__file__).with_name("worker.py")


class Stopped(Exception):
    """A provider did not finish; the text is the reason."""


class Process:
    """Runs tasks, each a provider on a case. Everything it prints is kept in `folder`/log.

    On the CPU it has one task; on the device, where pool is None, begin() gives it the next one.
    """

    def __init__(self, provider: str, case: Case, pool: Path | None, limit: float | None, folder: Path):
        folder.mkdir()
        self.log = folder / "log"
        with self.log.open("w") as log:
            self.child = subprocess.Popen(
                [sys.executable, str(WORKER)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=ROOT,
                bufsize=0,
            )
        self.buffer = b""
        self.begin(provider, case, pool, limit, folder)

    def begin(self, provider: str, case: Case, pool: Path | None, limit: float | None, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self._send(
            {
                "provider": provider,
                "case": dataclasses.asdict(case),
                "pool": None if pool is None else str(pool),
                "limit": limit,
                "dir": str(folder),
            }
        )

    def ready(self, seconds: float) -> dict[str, Any]:
        """The answer after the warm-up."""
        return self._answer(seconds, "its warm-up")

    def run(self, number: int, seconds: float) -> dict[str, Any]:
        """One timed run: {"seconds", "peak", "indices", "gains", "notes"}."""
        self._send({"run": number})
        return self._answer(seconds, "one run")

    def ask(self, seconds: float, **message: Any) -> dict[str, Any]:
        """Another question of worker.py's."""
        self._send(message)
        return self._answer(seconds, f"to {next(iter(message))}")

    def close(self) -> None:
        self.child.stdin.close()
        try:
            self.child.wait(2)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()
        self.child.stdout.close()

    def _send(self, message: dict[str, Any]) -> None:
        try:
            self.child.stdin.write((json.dumps(message) + "\n").encode())
        except BrokenPipeError:
            raise Stopped(self._death()) from None

    def _answer(self, seconds: float, what: str) -> dict[str, Any]:
        until = time.monotonic() + seconds
        while b"\n" not in self.buffer:
            left = until - time.monotonic()
            if left <= 0 or not select.select([self.child.stdout], [], [], left)[0]:
                self.child.kill()
                raise Stopped(f"time: more than {seconds:.0f} s for {what}")
            piece = os.read(self.child.stdout.fileno(), 1 << 16)
            if not piece:
                raise Stopped(self._death())
            self.buffer += piece
        line, self.buffer = self.buffer.split(b"\n", 1)
        got = json.loads(line)
        if "stopped" in got:
            raise Stopped(got["stopped"])
        if "picks" in got:
            with np.load(got["picks"]) as file:
                got["indices"], got["gains"] = file["indices"], file["gains"]
        return got

    def _death(self) -> str:
        code = self.child.wait()
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        why = f"killed by signal {-code}" if code < 0 else f"exit status {code}"
        return f"error: {why}" + (f", {lines[-1].strip()[:200]}" if lines else "")
