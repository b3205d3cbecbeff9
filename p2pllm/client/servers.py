"""The streams of one pass to the servers that it uses: one each, shared by all parts, kept for the next pass.

Invariants: a stream is opened once, however many parts want it at the same time. One that was kept from an earlier pass
and turns out to be dead is replaced once, before its server is blamed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import trio

from p2pllm.client.context import HOP_ERRORS, Context
from p2pllm.client.edge import Packed
from p2pllm.client.flow import first_of
from p2pllm.client.link import PeerSilent
from p2pllm.client.requests import Requests
from p2pllm.errors import PeerLost
from p2pllm.types import PeerId


class Servers:
    """Made by ``open_servers``."""

    def __init__(self, context: Context, protocol: str, nursery: trio.Nursery) -> None:
        self._context = context
        self._protocol = protocol
        self._nursery = nursery
        self._requests: dict[PeerId, Requests] = {}
        self._opening: dict[PeerId, trio.Lock] = {}

    async def ask(self, peer: PeerId, work: Callable[[Requests], Awaitable[Packed]]) -> Packed:
        """Do ``work``, one request, with the stream to ``peer``.

        Raises:
            PeerLost, RemoteProtocolError, RemoteFault: the server failed, or refused.
        """
        for fresh in (False, True):
            requests, reused = await self._open(peer, fresh=fresh)
            try:
                return await work(requests)
            except HOP_ERRORS as exc:
                if self._requests.get(peer) is requests and requests.link.dead:
                    del self._requests[peer]
                stale = reused and isinstance(exc, PeerLost) and not isinstance(exc, PeerSilent)
                if fresh or not stale:
                    raise
        raise AssertionError("the second round returns or raises")

    async def _open(self, peer: PeerId, *, fresh: bool) -> tuple[Requests, bool]:
        """The stream to a server, and whether it had been used before this pass."""
        lock = self._opening.setdefault(peer, trio.Lock())
        async with lock:
            known = self._requests.get(peer)
            if known is not None and not known.link.dead:
                return known, False
            config = self._context.config
            connect_s = self._context.peers.connect_timeout_s(peer, trio.current_time())
            link, reused = await self._context.links.take(peer, self._protocol, fresh=fresh, connect_s=connect_s)
            requests = Requests(link, self._context.model, config.wire, config.client.step_timeout_s)
            self._requests[peer] = requests
            self._nursery.start_soon(requests.serve)
            self._context.reached(peer)
            return requests, reused

    def close(self) -> None:
        """Keep the streams that are idle for the next pass; drop the others."""
        for requests in self._requests.values():
            if requests.idle:
                self._context.links.give(self._protocol, requests.link)
            else:
                requests.link.abort()


@asynccontextmanager
async def open_servers(context: Context, protocol: str) -> AsyncIterator[Servers]:
    """Streams for one pass; the body's error leaves as it was raised."""
    try:
        async with trio.open_nursery() as nursery:
            servers = Servers(context, protocol, nursery)
            try:
                yield servers
            finally:
                servers.close()
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise first_of(group) from None
