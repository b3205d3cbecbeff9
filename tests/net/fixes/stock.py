"""py-libp2p as it comes, over connections in memory: what the fixes are needed for, shown.

Each fix has a test in which the scenario goes wrong on these hosts. When such a test fails, upstream has mended it, and
the fix can go.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import trio
from libp2p import new_host
from libp2p.abc import IRawConnection
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.custom_types import TProtocol
from libp2p.io.abc import ReadWriteCloser
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.network.connection.raw_connection import RawConnection
from multiaddr import Multiaddr

from p2pllm.net.link import Link
from sim.libp2p.transport import MemoryListener, MemoryTransport
from tests.net.memory import MemoryNet, address

PROTOCOL = TProtocol("/test/1")


class StockStream(ReadWriteCloser):
    """A connection as libp2p's own TCP stream gives it: at most ``n`` bytes, whatever is there."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.ahead = b""
        self.lock = trio.Lock()

    async def read(self, n: int | None = None) -> bytes:
        if not self.ahead:
            self.ahead = await self.link.receive()
        out, self.ahead = self.ahead[:n], self.ahead[n or len(self.ahead) :]
        return out

    async def write(self, data: bytes) -> None:
        async with self.lock:
            try:
                await self.link.send(data)
            except OSError as exc:
                raise ConnectionClosedError(str(exc)) from exc

    async def close(self) -> None:
        await self.link.close()

    def get_remote_address(self) -> tuple[str, int] | None:
        return self.link.get_remote_address()


class StockListener(MemoryListener):
    async def serve(self, link: Link) -> None:
        await self.handler(StockStream(link))


class StockTransport(MemoryTransport):
    async def dial(self, maddr: Multiaddr) -> IRawConnection:
        conn: Any = await super().dial(maddr)
        return RawConnection(StockStream(conn.stream), True)

    def create_listener(self, handler_function: Any) -> StockListener:
        return StockListener(self.fabric, handler_function)


@asynccontextmanager
async def stock_hosts(net: MemoryNet, count: int = 2, **options: Any) -> AsyncIterator[list[Any]]:
    """``count`` hosts that listen and do not know each other."""
    async with AsyncExitStack() as stack:
        hosts = []
        for number in range(1, count + 1):
            keys = create_new_key_pair(number.to_bytes(32, "big"))
            host = new_host(key_pair=keys, transports=[StockTransport(net)], **options)
            await stack.enter_async_context(host.run(listen_addrs=[Multiaddr(address(number))]))
            hosts.append(host)
        yield hosts


async def connect(here: Any, there: Any, number: int = 1) -> Any:
    return await here.get_network().dial_addr(Multiaddr(address(number)), there.get_id())
