"""What the transport adds to a hop: echoes of a step's size, over bare trio TCP, our adapter, and libp2p as it comes.

Two processes on loopback; rounds of the stacks alternate, so that the machine's mood hits all of them. ``cold`` reads
50 MB between messages at both ends, as decoding does with a span's weights: that is what a hop costs in a real swarm.
``bulk`` is one way, in messages of 1 MB. Microseconds are medians, ratios are to bare TCP in the same run.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import numpy as np
import trio

from benchmarks.common import arguments, save, show

SIZES = (620, 8192, 32768)
COLD_FLOATS = 50_000_000 // 4
PROTOCOL = "/p2pllm/bench/echo"
STACKS = ("trio TCP", "p2pllm", "stock libp2p")
BULK_MESSAGE = 1 << 20


class Wire(Protocol):
    """The two calls that are timed."""

    async def send(self, data: bytes, bulk: bool) -> None: ...

    async def receive(self) -> bytes: ...


class TcpWire:
    """Bare trio."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream

    async def send(self, data: bytes, bulk: bool) -> None:
        await self.stream.send_all(data)

    async def receive(self) -> bytes:
        return bytes(await self.stream.receive_some(262144))


class PortWire:
    """A stream of the Network port."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    async def send(self, data: bytes, bulk: bool) -> None:
        from p2pllm.types import Priority

        await self.stream.send_all(data, Priority.BULK if bulk else Priority.STEP)

    async def receive(self) -> bytes:
        data: bytes = await self.stream.receive_some(262144)
        return data


class StockWire:
    """A libp2p stream."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    async def send(self, data: bytes, bulk: bool) -> None:
        await self.stream.write(data)

    async def receive(self) -> bytes:
        data: bytes = await self.stream.read(262144)
        return data


async def exactly(wire: Wire, size: int) -> bytes:
    data = await wire.receive()
    while len(data) < size:
        more = await wire.receive()
        if not more:
            raise EOFError
        data += more
    return data


async def serve(wire: Wire) -> None:
    """Answer orders: size (8 bytes), count, flags: 1 cold, 2 one way."""
    weights = np.ones(COLD_FLOATS, dtype=np.float32)
    while True:
        order = await exactly(wire, 24)
        size, count, flags = (int.from_bytes(order[i : i + 8], "big") for i in (0, 8, 16))
        if not size:
            return
        await wire.send(b"!", False)
        if flags & 2:
            left = size * count
            while left > 0:
                left -= len(await wire.receive())
            await wire.send(b"!", False)
            continue
        for _ in range(count):
            await wire.send(await exactly(wire, size), False)
            if flags & 1:
                weights.sum()


async def order(wire: Wire, size: int, count: int, flags: int) -> None:
    await wire.send(b"".join(n.to_bytes(8, "big") for n in (size, count, flags)), False)
    await exactly(wire, 1)


async def echoes(wire: Wire, size: int, count: int, cold: bool) -> list[float]:
    """Seconds of each echo; if ``cold``, both ends have read their weights since the one before."""
    weights = np.ones(COLD_FLOATS, dtype=np.float32)
    await order(wire, size, count, int(cold))
    data = bytes(size)
    times = []
    for _ in range(count):
        if cold:
            begun = time.perf_counter()
            weights.sum()
            await trio.sleep(2 * (time.perf_counter() - begun))
        begun = time.perf_counter()
        await wire.send(data, False)
        await exactly(wire, size)
        times.append(time.perf_counter() - begun)
    return times


async def bulk(wire: Wire, count: int) -> float:
    """MB/s one way."""
    await order(wire, BULK_MESSAGE, count, 2)
    data = bytes(BULK_MESSAGE)
    begun = time.perf_counter()
    for _ in range(count):
        await wire.send(data, True)
    await exactly(wire, 1)
    return count * BULK_MESSAGE / (time.perf_counter() - begun) / 1e6


def stock_host() -> Any:
    from libp2p import new_host

    return new_host()


async def server() -> None:
    """The other process: one listener per stack, their addresses printed as one line."""
    from libp2p.custom_types import TProtocol
    from multiaddr import Multiaddr

    from p2pllm.config import NetConfig
    from p2pllm.net import Identity, open_network

    host = stock_host()
    config = NetConfig()
    async with (
        open_network(
            config, identity=Identity.ephemeral(), wall_time=time.time, listen=["/ip4/127.0.0.1/tcp/0"]
        ) as net,
        host.run(listen_addrs=[Multiaddr("/ip4/127.0.0.1/tcp/0")]),
        trio.open_nursery() as nursery,
    ):
        net.serve(PROTOCOL, lambda stream: serve(PortWire(stream)))
        host.set_stream_handler(TProtocol(PROTOCOL), lambda stream: serve(StockWire(stream)))
        listeners = await nursery.start(trio.serve_tcp, lambda stream: serve(TcpWire(stream)), 0)
        port = listeners[0].socket.getsockname()[1]
        print(port, net.addrs[0], host.get_addrs()[0], flush=True)
        await trio.to_thread.run_sync(sys.stdin.read)
        nursery.cancel_scope.cancel()


async def with_wires(line: str, use: Callable[[dict[str, Wire]], Awaitable[None]]) -> None:
    """Connect to the server's three listeners."""
    from libp2p.custom_types import TProtocol
    from libp2p.peer.id import ID
    from multiaddr import Multiaddr

    from p2pllm.config import NetConfig
    from p2pllm.net import Identity, open_network
    from p2pllm.types import PeerId

    port, ours, stock = line.split()
    host = stock_host()
    config = NetConfig()
    async with (
        open_network(config, identity=Identity.ephemeral(), wall_time=time.time, listen=[], bootstrap=[ours]) as net,
        host.run(listen_addrs=[]),
    ):
        tcp = await trio.open_tcp_stream("127.0.0.1", int(port))
        await net.bootstrap()
        stream = await net.open_stream(PeerId(ours.rsplit("/", 1)[1]), PROTOCOL)
        peer = ID.from_base58(stock.rsplit("/", 1)[1])
        await host.get_network().dial_addr(Multiaddr(stock.rsplit("/p2p/", 1)[0]), peer)
        wires = (TcpWire(tcp), PortWire(stream), StockWire(await host.new_stream(peer, [TProtocol(PROTOCOL)])))
        await use(dict(zip(STACKS, wires, strict=True)))
        for wire in wires:
            await wire.send(bytes(24), False)


async def measure(line: str, rounds: int) -> list[dict[str, Any]]:
    """One row per message, medians over all rounds."""
    times: dict[tuple[str, str], list[float]] = {}

    async def use(wires: dict[str, Wire]) -> None:
        for number in range(rounds + 1):
            for stack, wire in wires.items():
                for size in SIZES:
                    got = await echoes(wire, size, 200, cold=False)
                    times.setdefault((f"{size} B", stack), []).extend(got if number else [])
                got = await echoes(wire, SIZES[0], 40, cold=True)
                times.setdefault((f"{SIZES[0]} B cold", stack), []).extend(got if number else [])
                rate = await bulk(wire, 64)
                times.setdefault(("bulk MB/s", stack), []).extend([rate] if number else [])

    await with_wires(line, use)
    rows = []
    for name in dict.fromkeys(key[0] for key in times):
        scale = 1.0 if name.startswith("bulk") else 1e6
        values = {stack: statistics.median(times[name, stack]) * scale for stack in STACKS}
        ratios = {f"{stack} / TCP": round(values[stack] / values["trio TCP"], 2) for stack in STACKS[1:]}
        rows.append({"message": name, **values, **ratios})
    return rows


def run(rounds: int = 5) -> list[dict[str, Any]]:
    """Start the other process, measure, stop it."""
    command = [sys.executable, "-m", "benchmarks.hop_transport", "--server"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        try:
            return trio.run(measure, other.stdout.readline(), rounds)
        finally:
            other.stdin.close()


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--server", action="store_true", help="be the other process")
    args = parser.parse_args()
    if args.server:
        trio.run(server)
        return
    rows = run(args.rounds)
    show("The transport's part of a hop (us per echo)", rows, "stock libp2p = py-libp2p 0.8.1, noise + yamux, unmended")
    save(args.out, {"hop_transport": rows})


if __name__ == "__main__":
    main()
