"""libp2p's transport interface over links in memory: who listens where, and how a dial ends.

Used by the simulator, and by tests that bring links of their own.

Invariants: no socket, no thread and no name service: only /ip4 with /tcp is dialled. A dial that fails does so as
libp2p's TCP does, and what goes wrong with an accepted connection ends that connection alone.
"""

from __future__ import annotations

import logging
from typing import Protocol

import trio
from libp2p.abc import IListener, IRawConnection, ITransport
from libp2p.custom_types import THandler
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.transport.exceptions import OpenConnectionError
from multiaddr import Multiaddr

from p2pllm.net.fixes.inbound_slots import until_closed
from p2pllm.net.link import Link

logger = logging.getLogger(__name__)

Address = tuple[str, int]


class Fabric(Protocol):
    """Where a host's connections come from and go to."""

    listeners: dict[Address, MemoryListener]

    async def connect(self, address: Address) -> Link:
        """A connection to whoever listens there. Raises OSError, or takes forever."""
        ...


class MemoryTransport(ITransport):
    """One host's transport."""

    def __init__(self, fabric: Fabric) -> None:
        self.fabric = fabric

    async def dial(self, maddr: Multiaddr) -> IRawConnection:
        address = address_of(maddr)
        try:
            return RawConnection(await self.fabric.connect(address), True)
        except OSError as exc:
            raise OpenConnectionError(f"Failed to connect {address[0]}:{address[1]}: {exc}") from exc

    def create_listener(self, handler_function: THandler) -> IListener:
        return MemoryListener(self.fabric, handler_function)

    def can_dial(self, maddr: Multiaddr) -> bool:
        return "tcp" in [protocol.name for protocol in maddr.protocols()]

    can_listen = can_dial

    def protocols(self) -> list[str]:
        return ["tcp"]


class MemoryListener(IListener):
    """A host's open ports; accepted connections run beside the host's own tasks, as libp2p's TCP listener has it."""

    def __init__(self, fabric: Fabric, handler: THandler) -> None:
        self.fabric = fabric
        self.handler = handler
        self._addrs: list[Multiaddr] = []
        self._nursery: trio.Nursery | None = None

    async def listen(self, maddr: Multiaddr) -> None:
        if self._nursery is None:
            ready = trio.Event()
            trio.lowlevel.spawn_system_task(self._run, ready)
            await ready.wait()
        self.fabric.listeners[address_of(maddr)] = self
        self._addrs.append(maddr)

    async def _run(self, ready: trio.Event) -> None:
        async with trio.open_nursery() as self._nursery:
            ready.set()
            await trio.sleep_forever()

    def accept(self, link: Link) -> None:
        """Somebody has connected."""
        if self._nursery is not None:
            self._nursery.start_soon(self.serve, link)

    async def serve(self, link: Link) -> None:
        """What becomes of an accepted connection."""
        try:
            await until_closed(self.handler, link)
        except Exception as exc:  # as libp2p's listener: a stranger's connection never ends the host
            logger.debug("an accepted connection failed: %r", exc)

    def get_addrs(self) -> tuple[Multiaddr, ...]:
        return tuple(self._addrs)

    def abandon(self) -> None:
        """Be gone, at once and without a word."""
        for addr in self._addrs:
            self.fabric.listeners.pop(address_of(addr), None)
        self._addrs.clear()
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()

    async def close(self) -> None:
        self.abandon()
        await trio.lowlevel.checkpoint()


def address_of(maddr: Multiaddr) -> Address:
    """IP and port.

    Raises:
        OpenConnectionError: it is not /ip4 with /tcp.
    """
    values = {protocol.name: value for protocol, value in maddr.items()}
    if "ip4" not in values or "tcp" not in values:
        raise OpenConnectionError(f"Cannot use {maddr}: not /ip4 with /tcp")
    return str(values["ip4"]), int(str(values["tcp"]))
