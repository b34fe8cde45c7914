"""The sparse tail of one facility-location selection on the device: csrc/tail.cu over stored survivors.

What is picked is what resident.Excesses picks from the same survivors; here a launch makes thousands of picks, and the
host looks in between, where survivors may be compacted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from smartgpu.backends import cuda
from smartgpu.constraints import Found
from smartgpu.kernels import walk

if TYPE_CHECKING:
    from smartgpu.backends.resident import Excesses

# Of csrc/tail.cu's Tail.
FIELDS = tuple(
    "ptr rows q row_ptr cursor pairs level weights excess before after n k low scale weight until reached made log "
    "exchange".split()
)
THREADS = 1024
# Picks of one launch, about 30 ms at most: reports and checkpoints do not wait longer, and no list is walked that could
# have been compacted since picks were half as many.
LEAST, MOST = 256, 4096
PICKED = -(1 << 62)  # an excess of a candidate that may not be picked
# Predicted: pairs that a pick may walk on average. With more, evaluating a few hundred candidates is cheaper.
MOST_WALKED = 1 << 20


class Tail:
    """Picks of a loop from pairs (ptr, rows, q) by column, which are stored by row here as well.

    Takes 8 bytes a pair that still matters, 16 a row and 8 a candidate.
    """

    def __init__(self, loop: Excesses, pairs: tuple[torch.Tensor, ...], kernels: cuda.Kernels):
        self.loop, self.kernels, self.device = loop, kernels, loop.device
        ptr, rows, q = pairs
        r = len(loop.level)
        self.cursor = self._zeros(r)
        self.made, self.exchange = self._zeros(2), self._zeros(cuda.EXCHANGE // 8)
        self.log = torch.zeros((MOST, 2), dtype=torch.float64, device=self.device)
        self.reached = torch.zeros(1, dtype=torch.float64, device=self.device)
        self.values = dict.fromkeys(FIELDS) | {
            "ptr": ptr,
            "rows": rows,
            "q": q,
            "cursor": self.cursor,
            "level": loop.level,
            "weights": loop.weights,
            "before": loop.before,
            "after": loop.after,
            "n": loop.n,
            "low": loop.goal.low,
            "scale": float(loop.scale),
            "weight": float(loop.weight),
            "until": float(loop.goal.until),
            "reached": self.reached,
            "made": self.made,
            "log": self.log,
            "exchange": self.exchange,
        }
        self._launch("count_by_row")
        self.values["row_ptr"] = row_ptr = self._zeros(r + 1)
        torch.cumsum(self.cursor, 0, out=row_ptr[1:])
        self.cursor.copy_(row_ptr[:-1])
        self.values["pairs"] = torch.empty(int(row_ptr[-1]), dtype=torch.int64, device=self.device)
        self._launch("fill_by_row")
        excess = walk.sparse_excess(ptr, rows, q, loop.level, weights=loop.weights)
        excess[loop.search.key == -torch.inf] = PICKED
        self.values["excess"] = excess

    def _zeros(self, count: int) -> torch.Tensor:
        return torch.zeros(count, dtype=torch.int64, device=self.device)

    def _launch(self, name: str) -> None:
        self.kernels.launch(name, self.kernels.multiprocessors, THREADS, cuda.pack(FIELDS, self.values))

    def advance(self) -> tuple[Found, bool]:
        """The loop's next picks, and whether it is done. The levels rise, and what the loop's own steps go on from is
        kept up, so that they could."""
        loop, search = self.loop, self.loop.search
        t, k = loop.t, loop.goal.k
        self.values["k"] = min(k - t, MOST, max(t, LEAST))
        self.reached.copy_(search.real[:1])
        self.exchange.zero_()  # barriers and slots of a launch begin anew
        self._launch("sparse_tail")
        made, nothing = self.made.tolist()
        done = bool(nothing) or t + made >= k or float(self.reached) >= loop.goal.until
        search.key[self.log[:made, 0].long()] = -torch.inf
        search.log[t : t + made] = self.log[:made]
        search.real[:1] = self.reached
        search.head[:3] = torch.tensor([t + made, done, -1], device=self.device)
        log = self.log[:made].cpu().numpy()
        return Found(log[:, 0].astype(np.int64), log[:, 1].copy(), 0, made), done


def open_tail(loop: Excesses, survivors: Any) -> Tail | None:
    """The tail of a loop's survivors; None where Triton's steps go on: for goals that it does not know, where pairs are
    still so many that walking all is dearer, where memory is short, and without CUDA kernels."""
    goal, backend = loop.goal, loop.backend
    if not goal.counts or goal.rate is not None:
        return None
    pairs, r, n = len(survivors), len(loop.level), backend.n  # of all ranks' rows, where they were gathered
    if (pairs / r) * (pairs / n) > MOST_WALKED:
        return None
    needed = 8 * pairs + 24 * r + 16 * n + 24 * MOST + cuda.EXCHANGE
    if backend.held() + 8 * pairs + needed > backend.memory:
        return None
    kernels = cuda.kernels(loop.device)
    if kernels is None:
        return None
    found: list[Tail] = []
    three = (survivors.ptr, survivors.rows, survivors.q)
    return found[0] if cuda.started(loop.device, lambda: found.append(Tail(loop, three, kernels))) else None
