"""Bytes between simulated hosts, and when they arrived: what tests of the network have in common."""

from __future__ import annotations

import hashlib

import trio

from sim.links import Access
from sim.network import SimWorld

SINK = "/test/sink"
UNLIMITED = Access()


def noise(size, name=""):
    """Bytes that do not repeat."""
    return hashlib.shake_128(f"{size}/{name}".encode()).digest(size)


class Receiver:
    """A host that reads all streams, and remembers what came when: (time, stream, bytes)."""

    def __init__(self, host):
        self.host = host
        self.log = []
        self.data = {}
        self._numbers = 0
        host.serve(SINK, self._read)

    async def _read(self, stream):
        self._numbers += 1
        number = self._numbers
        self.data[number] = bytearray()
        while data := await stream.receive_some():
            self.log.append((trio.current_time(), number, len(data)))
            self.data[number] += data

    @property
    def last_at(self):
        return self.log[-1][0]


async def open_to(sender, receiver):
    """A stream to a receiver."""
    sender.learn(receiver.host.me, receiver.host.addrs)
    return await sender.open_stream(receiver.host.me, SINK)


async def time_of(size, *, latency_s=0.05, server=UNLIMITED, client=UNLIMITED, prepare=lambda world: None):
    """How long ``size`` bytes travel from the client to the server, once a stream is open."""
    async with SimWorld(1, latency_s) as world:
        prepare(world)
        world.set_access("server", server)
        world.set_access("client", client)
        receiver = Receiver(world.host("server"))
        stream = await open_to(world.host("client"), receiver)
        await trio.sleep(5)
        begun = trio.current_time()
        data = noise(size)
        await stream.send_all(data)
        await stream.aclose()
        await trio.sleep(1000)
        assert bytes(receiver.data[1]) == data
        return receiver.last_at - begun
