"""p2pllm.net.noise, yamux and p2pllm.net.quiet against py-libp2p as it comes: the wire is libp2p's, on real sockets."""

from __future__ import annotations

import logging
import socket
import subprocess
import sys
import time
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import trio
from libp2p import new_host
from libp2p.custom_types import TProtocol
from libp2p.host.ping import ID as PING
from libp2p.network.stream.exceptions import StreamEOF
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from p2pllm.config import NetConfig
from p2pllm.errors import UserError
from p2pllm.net import Identity, Libp2pNetwork, open_network
from p2pllm.ports import Stream
from p2pllm.types import PeerId

pytestmark = pytest.mark.real_clock
ECHO = "/test/echo/1"


async def echo(stream: Stream) -> None:
    while data := await stream.receive_some():
        await stream.send_all(data)


async def stock_echo(stream: Any) -> None:
    try:
        while True:
            await stream.write(await stream.read(65536))
    except StreamEOF:
        await stream.close()


@asynccontextmanager
async def ours_and_theirs():
    host = new_host()
    async with (
        open_network(
            NetConfig(), identity=Identity.ephemeral(), wall_time=time.time, listen=["/ip4/127.0.0.1/tcp/0"]
        ) as ours,
        host.run(listen_addrs=[Multiaddr("/ip4/127.0.0.1/tcp/0")]),
    ):
        ours.serve(ECHO, echo)
        host.set_stream_handler(TProtocol(ECHO), stock_echo)
        yield ours, host
        await host.get_network().close()


async def test_we_dial_a_stock_node() -> None:
    async with ours_and_theirs() as (ours, host):
        peer = PeerId(str(host.get_id()))
        ours.learn(peer, [str(addr) for addr in host.get_addrs()])
        stream = await ours.open_stream(peer, ECHO)
        data = bytes(range(256)) * 4000
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_all, data)
            got = bytearray()
            while len(got) < len(data):
                got += await stream.receive_some()
        assert got == data
        await stream.aclose()


async def test_a_stock_node_dials_us() -> None:
    async with ours_and_theirs() as (ours, host):
        text, peer = ours.addrs[0].rsplit("/p2p/", 1)
        await host.get_network().dial_addr(Multiaddr(text), ID.from_base58(peer))
        stream = await host.new_stream(ID.from_base58(peer), [TProtocol(ECHO)])
        data = bytes(range(256)) * 4000
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.write, data)
            got = bytearray()
            while len(got) < len(data):
                got += await stream.read(65536)
        assert got == data
        await stream.close()
        ping = await host.new_stream(ID.from_base58(peer), [PING])
        await ping.write(bytes(32))
        assert await ping.read(32) == bytes(32), "libp2p's own protocols run over our muxer"
        await ping.reset()


async def test_two_nodes_on_one_port_are_refused_in_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match="another program uses that port"):
            async with open_network(
                NetConfig(),
                identity=Identity.ephemeral(),
                wall_time=time.time,
                listen=[f"/ip4/127.0.0.1/tcp/{port}"],
            ):
                pass


async def test_announced_addresses_are_never_unspecified() -> None:
    async with open_network(
        NetConfig(), identity=Identity.ephemeral(), wall_time=time.time, listen=["/ip4/0.0.0.0/tcp/0"]
    ) as node:
        assert node.addrs
        for addr in node.addrs:
            assert "0.0.0.0" not in addr
            assert "/tcp/0" not in addr
            assert addr.endswith(f"/p2p/{node.me}")
    async with open_network(
        NetConfig(),
        identity=Identity.ephemeral(),
        wall_time=time.time,
        listen=["/ip4/127.0.0.1/tcp/0"],
        announce=["/ip4/203.0.113.9/tcp/4001"],
    ) as node:
        assert node.addrs == (f"/ip4/203.0.113.9/tcp/4001/p2p/{node.me}",)


async def test_a_join_on_loopback_takes_well_below_a_second() -> None:
    async def node(bootstrap: tuple[str, ...], started: Any = trio.TASK_STATUS_IGNORED) -> None:
        async with open_network(
            NetConfig(),
            identity=Identity.ephemeral(),
            wall_time=time.time,
            listen=["/ip4/127.0.0.1/tcp/0"],
            bootstrap=bootstrap,
        ) as network:
            started.started(network)
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:

        async def start(bootstrap: tuple[str, ...]) -> Libp2pNetwork:
            return await nursery.start(lambda task_status: node(bootstrap, task_status))

        first = await start(())
        times = []
        for _ in range(4):
            network = await start(first.addrs)
            begun = time.perf_counter()
            assert await network.bootstrap() == 1
            times.append(time.perf_counter() - begun)
        assert sorted(times)[1] < 1.0
        nursery.cancel_scope.cancel()


def test_importing_and_running_is_quiet() -> None:
    """Nothing on the terminal, and nobody touches the root logger."""
    code = """
import logging, time, trio
from p2pllm.config import NetConfig
from p2pllm.net import Identity, open_network
async def main():
    where = dict(wall_time=time.time, listen=["/ip4/127.0.0.1/tcp/0"])
    async with open_network(NetConfig(), identity=Identity.ephemeral(), **where) as a:
        async with open_network(NetConfig(), identity=Identity.ephemeral(), bootstrap=a.addrs, **where) as b:
            assert await b.bootstrap() == 1
            await b.close_peer(a.me)
trio.run(main)
assert not logging.getLogger().handlers
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert logging.getLogger("libp2p").level > logging.CRITICAL


async def test_strangers_with_garbage_and_open_sockets_harm_nobody() -> None:
    """Junk, half a request, a length of 2^60, sockets that say nothing: all are shown the door, others are served."""
    config = replace(NetConfig(), dial_timeout_s=1.5)
    where = {"wall_time": time.time, "listen": ["/ip4/127.0.0.1/tcp/0"]}
    async with open_network(config, identity=Identity.ephemeral(), **where) as node:
        node.serve(ECHO, echo)
        port = int(node.addrs[0].split("/")[4])
        noise_then_junk = b"\x13/multistream/1.0.0\n\x07/noise\n" + bytes(range(256)) * 100
        junk = [
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            b"\xff" * 9 + b"\x7f" + bytes(200_000),
            bytes(70_000),
            noise_then_junk,
            b"",
        ]
        async with trio.open_nursery() as nursery:

            async def intrude(data: bytes) -> None:
                async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                    try:
                        await stream.send_all(data)
                        with trio.fail_after(20):
                            while await stream.receive_some():
                                pass
                    except trio.BrokenResourceError:
                        pass

            for data in junk * 4:
                nursery.start_soon(intrude, data)
            async with open_network(config, identity=Identity.ephemeral(), bootstrap=node.addrs, **where) as friend:
                assert await friend.bootstrap() == 1
                stream = await friend.open_stream(node.me, ECHO)
                await stream.send_all(b"fine")
                assert await stream.receive_some() == b"fine"
