"""A server or a bootstrap node from ports: the directory, the blocks, and leaving in order.

Invariants: works on any ports; the simulator runs this very code. Leaving is bounded and happens also when the caller
fails.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from p2pllm.config import Config
from p2pllm.dht.service import Directory
from p2pllm.node.members import Members, MembersFile
from p2pllm.ports import Ports
from p2pllm.server.service import Plan, Server
from p2pllm.server.weights import Weights
from p2pllm.types import ModelId, Span

if TYPE_CHECKING:
    from trio_typing import TaskStatus  # its stubs, which libp2p installs, shadow trio's own types

SAVE_INTERVAL_S = 60.0


@asynccontextmanager
async def open_directory(
    ports: Ports,
    config: Config,
    models: Sequence[ModelId] | None,
    *,
    members: MembersFile | None = None,
    state_path: str | None = None,
) -> AsyncIterator[Directory]:
    """A running directory; what it learns of members is remembered now and then, and at the end."""
    known: Members = members.current if members is not None else []
    directory = Directory(ports, config, models, members=known, state_path=state_path)

    async def remember() -> None:
        while members is not None:
            await trio.sleep(SAVE_INTERVAL_S)
            await members.save(directory.members())

    async with trio.open_nursery() as nursery:
        await nursery.start(directory.run)
        nursery.start_soon(remember)
        try:
            yield directory
        finally:
            if members is not None:
                with trio.CancelScope(shield=True):
                    await members.save(directory.members())
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def open_server(
    ports: Ports, config: Config, directory: Directory, weights: Weights, plan: Plan
) -> AsyncIterator[Server]:
    """A server that serves while the body runs, then drains and says goodbye.

    Raises:
        UserError: the blocks cannot be served.
        StorageError: the weights could not be read.
    """
    server = Server(ports, config, directory, weights, plan)
    ended = trio.Event()

    async def run(task_status: TaskStatus[Span]) -> None:
        try:
            await server.run(task_status=task_status)
        finally:
            ended.set()

    async with trio.open_nursery() as nursery:
        await nursery.start(run)
        try:
            yield server
        finally:
            server.stop()
            with trio.CancelScope(shield=True):
                await ended.wait()
