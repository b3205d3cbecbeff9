"""The one door from other worlds (plain threads, asyncio) into trio: a thread that runs the loop, and calls into it.

Invariants: a call that its caller gives up (Ctrl-C, a cancelled asyncio task) is cancelled inside trio and has ended
before the caller goes on; a context is entered and left in one and the same trio task; leaving the portal ends every
task and joins the thread.
"""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, aclosing
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Protocol, Self, TypeVar

import trio

from p2pllm.errors import LocalProtocolError

if TYPE_CHECKING:
    from trio_typing import TaskStatus  # its stubs, which libp2p installs, shadow trio's own types

T = TypeVar("T")
Future = concurrent.futures.Future
T_co = TypeVar("T_co", covariant=True)
STREAM_AHEAD = 16
"""Items that a stream may run ahead of its reader."""


class Items(Protocol[T_co]):
    """An async iterator that can be closed: an async generator, or a generation."""

    def __aiter__(self) -> Items[T_co]: ...

    async def __anext__(self) -> T_co: ...

    async def aclose(self) -> None: ...


class Call(Generic[T]):
    """One call under way: ``future`` gets its outcome; ``cancel`` may be used from any thread."""

    def __init__(self, token: trio.lowlevel.TrioToken) -> None:
        self.future: Future[T] = Future()
        self._token = token
        self._scope = trio.CancelScope()

    def cancel(self) -> None:
        """Ask trio to cancel the call; the future completes once it has ended."""
        try:
            self._token.run_sync_soon(self._scope.cancel)
        except trio.RunFinishedError:
            self.future.cancel()

    async def _run(self, fn: Callable[..., Awaitable[T]], args: tuple[Any, ...]) -> None:
        try:
            with self._scope:
                self.future.set_result(await fn(*args))
        except BaseException as error:
            self.future.set_exception(error)
            if not isinstance(error, Exception):
                raise  # cancellation of the whole portal goes on its way
        else:
            if not self.future.done():
                self.future.set_exception(concurrent.futures.CancelledError())

    def result(self) -> T:
        """Wait in a plain thread; an interrupt (Ctrl-C) cancels the call and waits for its end."""
        try:
            return self.future.result()
        except BaseException:
            if not self.future.done():
                self.cancel()
                concurrent.futures.wait([self.future], timeout=10)
            raise


class Held(Generic[T]):
    """An async context that a portal task keeps open; ``close`` leaves it and raises what leaving raised."""

    def __init__(self, value: T, portal: Portal, leave: trio.Event, ended: Future[None]) -> None:
        self.value = value
        self._portal = portal
        self._leave = leave
        self.ended = ended

    def ask_to_leave(self) -> None:
        """Begin leaving; ``ended`` completes when that is done."""
        self._portal.soon(self._leave.set)

    def close(self) -> None:
        """Leave the context and wait for it, in a plain thread."""
        self.ask_to_leave()
        self.ended.result()


class Portal:
    """A trio loop in a thread of its own. Use as a context manager; every method is safe from any other thread."""

    def __init__(self) -> None:
        self._ready: Future[None] = Future()
        self._thread = threading.Thread(target=self._thread_main, name="p2pllm", daemon=True)
        self._token: trio.lowlevel.TrioToken
        self._nursery: trio.Nursery

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.result()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.soon(self._nursery.cancel_scope.cancel)
        self._thread.join()

    def _thread_main(self) -> None:
        trio.run(self._main)

    async def _main(self) -> None:
        async with trio.open_nursery() as nursery:
            self._token = trio.lowlevel.current_trio_token()
            self._nursery = nursery
            self._ready.set_result(None)
            await trio.sleep_forever()

    def soon(self, fn: Callable[[], object]) -> None:
        """Run a synchronous function in the loop, soon; nothing happens when the loop has ended."""
        try:
            self._token.run_sync_soon(fn)
        except trio.RunFinishedError:
            return

    def submit(self, fn: Callable[..., Awaitable[T]], *args: Any) -> Call[T]:
        """Start ``await fn(*args)`` in the loop.

        Raises:
            LocalProtocolError: the portal is closed, or this is the portal's own thread (it would wait for itself).
        """
        if threading.current_thread() is self._thread:
            raise LocalProtocolError(
                "a synchronous call from inside the loop's own thread would never end; await instead"
            )
        call: Call[T] = Call(self._token)
        try:
            self._token.run_sync_soon(self._nursery.start_soon, call._run, fn, args)
        except trio.RunFinishedError:
            raise LocalProtocolError("this connection is closed") from None
        return call

    def call(self, fn: Callable[..., Awaitable[T]], *args: Any, **kwargs: Any) -> T:
        """``await fn(*args, **kwargs)`` from a plain thread."""
        return self.submit(partial(fn, **kwargs), *args).result()

    def hold(self, context: AbstractAsyncContextManager[T]) -> tuple[Call[T], Callable[[], Held[T]]]:
        """Enter ``context`` in a task of its own: the call to wait for, and then a function that gives the Held."""
        leave = trio.Event()
        ended: Future[None] = Future()

        async def keeper(task_status: TaskStatus[T]) -> None:
            entered = False
            try:
                async with context as value:
                    entered = True
                    task_status.started(value)
                    await leave.wait()
            except Exception as error:
                if not entered:
                    raise
                ended.set_exception(error)
            finally:
                if not ended.done():
                    ended.set_result(None)

        async def enter() -> T:
            value: T = await self._nursery.start(keeper)
            return value

        call = self.submit(enter)
        return call, lambda: Held(call.future.result(), self, leave, ended)

    def open(self, context: AbstractAsyncContextManager[T]) -> Held[T]:
        """Enter ``context`` from a plain thread."""
        call, held = self.hold(context)
        call.result()
        return held()

    def pump(self, source: Callable[[], Items[T]]) -> tuple[Callable[[], Awaitable[T]], Callable[[], None]]:
        """Iterate ``source()`` in a task of its own; gives (an async ``next`` to submit, a function that stops it)."""
        send, receive = trio.open_memory_channel[T](STREAM_AHEAD)
        failure: list[Exception] = []
        scope = trio.CancelScope()

        async def run() -> None:
            with scope:
                async with send:
                    try:
                        async with aclosing(source()) as items:
                            async for item in items:
                                await send.send(item)
                    except Exception as error:
                        failure.append(error)

        async def take() -> T:
            try:
                return await receive.receive()
            except trio.EndOfChannel:
                if failure:
                    raise failure.pop() from None
                raise StopAsyncIteration from None

        self.submit(run)
        return take, lambda: self.soon(scope.cancel)

    def iterate(self, source: Callable[[], Items[T]]) -> Iterator[T]:
        """A plain iterator over an async one; dropping it stops the source."""
        take, stop = self.pump(source)
        try:
            while True:
                try:
                    yield self.call(take)
                except StopAsyncIteration:
                    return
        finally:
            stop()
