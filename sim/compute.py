"""The simulated arm of ``ports.Compute``: work runs inline, then virtual time passes by a cost model.

Invariants: no thread; passes run alone on their devices, in order of arrival; a pass that has begun is shielded from
cancellation for as long as it takes, as on a real device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import trio

from p2pllm.types import Cost

T = TypeVar("T")

CostModel = Callable[[Cost, str], float]
"""Seconds that a cost takes on a device."""


def flat_cost(seconds: float = 0.001) -> CostModel:
    """Every pass takes the same time: enough where only the order of things matters."""

    def model(cost: Cost, device: str) -> float:
        return seconds

    return model


class SimCompute:
    """Compute in virtual time; any device name exists."""

    def __init__(self, model: CostModel | None = None) -> None:
        self.slower = 1.0
        """How many times as long passes take from now on: a throttled chip, a neighbour's load."""
        self._model = model or flat_cost()
        self._free: dict[str, trio.StrictFIFOLock] = {}

    async def run(self, work: Callable[[], T], cost: Cost, devices: Sequence[str] = ("cpu",)) -> tuple[T, float]:
        """See ``ports.Compute.run``."""
        names = sorted(set(devices))
        if not names:
            raise ValueError("a pass needs a device")
        held: list[trio.StrictFIFOLock] = []
        try:
            for name in names:
                lock = self._free.setdefault(name, trio.StrictFIFOLock())
                try:
                    lock.acquire_nowait()
                except trio.WouldBlock:
                    await lock.acquire()
                held.append(lock)
            await trio.lowlevel.checkpoint_if_cancelled()
            result = work()
            seconds = self.slower * max(self._model(cost, name) for name in names)
            if seconds > 0:
                with trio.CancelScope(shield=True):
                    await trio.sleep(seconds)
        finally:
            for lock in held:
                lock.release()
        await trio.lowlevel.checkpoint_if_cancelled()
        return result, seconds
