"""p2pllm for asyncio: the same names, awaited from an asyncio loop.

    async with p2pllm.aio.connect("demo", bootstrap=[addr]) as model:
        async for piece in model.stream("Once upon a time"):
            print(piece.text, end="", flush=True)

Invariants: a thin facade, no logic. The trio loop runs in a thread beside asyncio's loop, not as its guest: a busy
asyncio program then delays no heartbeat, and one call costs about 0.2 ms. A cancelled asyncio task cancels its call.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from p2pllm import api
from p2pllm.client.facade import ModelFacade, SessionFacade, inner
from p2pllm.client.portal import Call, Held, Portal

if TYPE_CHECKING:
    import torch

    from p2pllm.api import GenerateResult, Inputs, Piece

__all__ = ["AioSession", "Model", "Node", "connect"]

T = TypeVar("T")


async def _outcome(call: Call[T]) -> T:
    """Await a call of the portal; cancelling the asyncio task cancels the call and waits for its end."""
    waiting = asyncio.wrap_future(call.future)
    try:
        return await asyncio.shield(waiting)
    except asyncio.CancelledError:
        call.cancel()
        await asyncio.wait([waiting])
        raise


async def _open(portal: Portal, context: AbstractAsyncContextManager[T]) -> Held[T]:
    call, held = portal.hold(context)
    await _outcome(call)
    return held()


async def _close(held: Held[Any]) -> None:
    held.ask_to_leave()
    await asyncio.wrap_future(held.ended)


class AioSession(SessionFacade):
    """A session, step by step; made by ``Model.session``."""

    async def step(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Feed new tokens [B, n] (int64); returns logits [B, n, vocab] (float32)."""
        return await _outcome(self._portal.submit(self._session.step, input_ids))


class Model(ModelFacade):
    """A model of the swarm; made by ``connect``."""

    async def generate(self, inputs: Inputs, **options: Any) -> GenerateResult:
        """As ``RemoteModel.generate``."""
        return await _outcome(self._portal.submit(lambda: self._model.generate(inputs, **inner(options))))

    async def stream(self, inputs: Inputs, **options: Any) -> AsyncGenerator[Piece, None]:
        """As ``RemoteModel.stream``; leaving the loop early stops the generation."""
        take, stop = self._portal.pump(lambda: self._model.stream(inputs, **inner(options)))
        try:
            while True:
                try:
                    piece = await _outcome(self._portal.submit(take))
                except StopAsyncIteration:
                    return
                yield piece
        finally:
            stop()

    async def forward(self, input_ids: torch.Tensor, **options: Any) -> torch.Tensor:
        """Token ids [B, S] (int64) to logits [B, S, vocab] (float32)."""
        return await _outcome(self._portal.submit(lambda: self._model.forward(input_ids, **options)))

    @asynccontextmanager
    async def session(self, **options: Any) -> AsyncIterator[AioSession]:
        """As ``RemoteModel.session``."""
        held = await _open(self._portal, self._model.session(**options))
        try:
            yield AioSession(self._portal, held.value)
        finally:
            await _close(held)


@asynccontextmanager
async def connect(model: str, **options: Any) -> AsyncIterator[Model]:
    """As ``p2pllm.connect``."""
    portal = Portal()
    await asyncio.to_thread(portal.__enter__)
    try:
        held = await _open(portal, api.connect(model, **options))
        try:
            yield Model(portal, held.value)
        finally:
            await _close(held)
    finally:
        await asyncio.to_thread(portal.__exit__, None, None, None)


class Node:
    """As ``p2pllm.Node``; serves until the ``async with`` block is left."""

    def __init__(self, model: str, **options: Any) -> None:
        self._node = api.Node(model, **options)
        self._portal = Portal()

    async def __aenter__(self) -> api.Node:
        await asyncio.to_thread(self._portal.__enter__)
        try:
            self._held = await _open(self._portal, self._node)
        except BaseException:
            await asyncio.to_thread(self._portal.__exit__, None, None, None)
            raise
        return self._held.value

    async def __aexit__(self, *details: object) -> None:
        try:
            await _close(self._held)
        finally:
            await asyncio.to_thread(self._portal.__exit__, None, None, None)
