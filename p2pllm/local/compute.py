"""The real arm of ``ports.Compute``: one worker thread per device.

Invariants: a pass runs alone on all of its devices, in order of arrival; a pass that has begun is never abandoned, only
its answer is; every thread has ended when the context is left. Knows nothing of torch: ``setup`` runs first in each
thread and prepares whatever the passes need (thread counts, streams).

A hand-off costs two queue operations and one wake-up of the loop, which is why this is not ``trio.to_thread``: that
one takes a limiter, a fresh context and a thread from a pool for every call.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import trio

from p2pllm.types import Cost, WorkKind

log = logging.getLogger(__name__)

T = TypeVar("T")

_SETUP = Cost(WorkKind.CLIENT)

CLOSE_TIMEOUT_S = 60.0
"""How long leaving waits for a pass that is still running; a device that hangs must not hang the exit."""


class _Pass:
    """One piece of work on its way through the threads of its devices."""

    def __init__(self, work: Callable[[], Any], devices: tuple[str, ...], done: Callable[[], None]) -> None:
        self.work = work
        self.lead = devices[0]
        self.result: Any = None
        self.error: BaseException | None = None
        self.seconds = 0.0
        self._done = done
        self._claim = threading.Lock()
        self._dropped = False
        # Followers hold their device still while the lead's thread does the work.
        self._arrivals = threading.Semaphore(0)
        self._followers = len(devices) - 1
        self._finished = threading.Event()

    def claim(self) -> bool:
        """Whoever claims first decides: the worker begins the pass, or the loop drops it."""
        return self._claim.acquire(blocking=False)

    def drop(self) -> bool:
        """Give the pass up if it has not begun; the worker threads then skip it."""
        if self.claim():
            self._dropped = True
            self._finished.set()
        return self._dropped

    def follow(self) -> None:
        self._arrivals.release()
        self._finished.wait()

    def lead_through(self) -> None:
        for _ in range(0 if self._dropped else self._followers):
            self._arrivals.acquire()
        if not self.claim():
            return
        begun = time.perf_counter()
        try:
            self.result = self.work()
        except BaseException as exc:  # it belongs to the caller, whatever it is: this thread has no one to tell
            self.error = exc
        self.seconds = time.perf_counter() - begun
        self._finished.set()
        self._done()


class ThreadCompute:
    """Compute on worker threads; made by ``open_compute``."""

    def __init__(self, devices: Sequence[str]) -> None:
        if not devices or len(set(devices)) != len(devices):
            raise ValueError(f"devices must be distinct and at least one, not {list(devices)}")
        self._queues: dict[str, queue.SimpleQueue[_Pass | None]] = {name: queue.SimpleQueue() for name in devices}
        self._closed = False

    async def run(self, work: Callable[[], T], cost: Cost, devices: Sequence[str] = ("cpu",)) -> tuple[T, float]:
        """See ``ports.Compute.run``. ``cost`` is for schedulers and simulators; real devices take what they take."""
        await trio.lowlevel.checkpoint_if_cancelled()
        names = tuple(dict.fromkeys(devices))
        unknown = [name for name in names if name not in self._queues]
        if unknown or not names:
            raise ValueError(f"no such compute device: {unknown}; there are {list(self._queues)}")
        if self._closed:
            raise RuntimeError("compute is closed")
        task, token = trio.lowlevel.current_task(), trio.lowlevel.current_trio_token()
        job = _Pass(work, names, lambda: _wake(token, task))
        # One loop fills all queues without a pause between them, so any two passes stand in the same order in every
        # queue that both are in, and passes over several devices cannot deadlock.
        for name in names:
            self._queues[name].put(job)

        def abort(_: Any) -> trio.lowlevel.Abort:
            return trio.lowlevel.Abort.SUCCEEDED if job.drop() else trio.lowlevel.Abort.FAILED

        await trio.lowlevel.wait_task_rescheduled(abort)
        if job.error is not None:
            raise job.error
        await trio.lowlevel.checkpoint_if_cancelled()
        return job.result, job.seconds

    def _work(self, device: str) -> None:
        """The body of one device's thread."""
        while (job := self._queues[device].get()) is not None:
            if job.lead == device:
                job.lead_through()
            else:
                job.follow()

    def _close(self) -> None:
        self._closed = True
        for waiting in self._queues.values():
            waiting.put(None)


@asynccontextmanager
async def open_compute(
    devices: Sequence[str] = ("cpu",), setup: Callable[[str], None] | None = None
) -> AsyncIterator[ThreadCompute]:
    """Start one thread per device; ``setup(device)`` runs in it before the first pass, and its error is raised here."""
    compute = ThreadCompute(devices)
    token = trio.lowlevel.current_trio_token()
    threads: list[tuple[threading.Thread, trio.Event]] = []

    def body(device: str, gone: trio.Event) -> None:
        try:
            compute._work(device)
        finally:
            _soon(token, gone.set)

    for device in devices:
        gone = trio.Event()
        # A daemon, so that a device that hangs cannot keep the interpreter; ordinarily it is joined below.
        thread = threading.Thread(target=body, args=(device, gone), name=f"p2pllm-{device}", daemon=True)
        threads.append((thread, gone))
        thread.start()
    try:
        if setup is not None:
            prepare = setup
            for device in devices:
                await compute.run(lambda name=device: prepare(name), _SETUP, (device,))  # type: ignore[misc]
        yield compute
    finally:
        compute._close()
        with trio.CancelScope(deadline=trio.current_time() + CLOSE_TIMEOUT_S, shield=True):
            for thread, gone in threads:
                await gone.wait()
                thread.join()
        for thread, _ in threads:
            if thread.is_alive():
                log.warning("a pass still runs on %s after %.0f s; leaving without it", thread.name, CLOSE_TIMEOUT_S)


def _wake(token: trio.lowlevel.TrioToken, task: trio.lowlevel.Task) -> None:
    _soon(token, lambda: trio.lowlevel.reschedule(task))


def _soon(token: trio.lowlevel.TrioToken, call: Callable[[], None]) -> None:
    try:
        token.run_sync_soon(call)
    except trio.RunFinishedError:
        log.debug("the loop ended before a compute thread did")
