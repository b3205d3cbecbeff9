"""sim.libp2p.transport: libp2p's transport interface in memory, with nothing of the system behind it."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.transport.exceptions import OpenConnectionError
from multiaddr import Multiaddr

from sim.libp2p.transport import MemoryListener, MemoryTransport
from tests.net.memory import MemoryNet

HERE = Multiaddr("/ip4/10.0.0.1/tcp/4001")


async def test_who_listens_gets_connections_and_who_closes_gets_none():
    net, accepted = MemoryNet(), []

    async def handle(link):
        accepted.append(link)
        await trio.sleep_forever()

    transport = MemoryTransport(net)
    listener = transport.create_listener(handle)
    await listener.listen(HERE)
    assert listener.get_addrs() == (HERE,)
    conn = await transport.dial(HERE)
    assert isinstance(conn, RawConnection)
    await trio.testing.wait_all_tasks_blocked()
    assert len(accepted) == 1
    await listener.close()
    assert listener.get_addrs() == ()
    with pytest.raises(OpenConnectionError, match=r"10\.0\.0\.1:4001: nobody listens"):
        await transport.dial(HERE)


async def test_what_goes_wrong_with_a_connection_ends_that_connection_alone():
    net, served = MemoryNet(), []

    async def handle(link):
        served.append(link)
        if len(served) == 1:
            raise ValueError("a stranger's bytes")

    listener = MemoryListener(net, handle)
    await listener.listen(HERE)
    for _ in range(2):
        await MemoryTransport(net).dial(HERE)
        await trio.testing.wait_all_tasks_blocked()
    assert len(served) == 2
    await listener.close()


@pytest.mark.parametrize("address", ["/dns4/example.org/tcp/4001", "/ip6/::1/tcp/4001", "/ip4/10.0.0.1/udp/4001"])
async def test_only_tcp_over_ip4_is_dialled_and_no_name_is_looked_up(address):
    net = MemoryNet()
    with pytest.raises(OpenConnectionError, match="not /ip4 with /tcp"):
        await MemoryTransport(net).dial(Multiaddr(address))
    assert net.dialled == []


def test_it_says_what_it_can():
    transport = MemoryTransport(MemoryNet())
    assert transport.can_dial(HERE)
    assert transport.can_listen(HERE)
    assert not transport.can_dial(Multiaddr("/ip4/10.0.0.1/udp/4001/quic-v1"))
    assert transport.protocols() == ["tcp"]
