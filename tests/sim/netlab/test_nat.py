"""Hosts behind NAT: who gets in, under which port, and where hole punching works."""

from __future__ import annotations

import socket

import pytest

from sim.netlab import Lab
from sim.netlab.hosts import NATS
from tests.sim.netlab.laboratory import exchange, host, needs_nat, udp

pytestmark = [needs_nat, pytest.mark.real_clock]


@pytest.mark.parametrize("kind", NATS[1:])
def test_nat(kind: str) -> None:
    """Mapping and filter of each kind, over UDP; TCP goes out and not in."""
    with Lab({"hosts": [host("n", nat=kind), host("s"), host("t")]}) as lab:
        sockets = [udp(lab, *at) for at in (("n", 7000), ("s", 4000), ("s", 4001), ("t", 4000), ("t", 4999))]
        n, s, s2, t, stranger = sockets
        for sock in sockets:
            sock.settimeout(0.3)
        wan = (lab.addr("n"), 7000)
        assert exchange(s, n, wan) is None  # not reachable from outside
        targets = ((s, "s", 4000), (s2, "s", 4001), (t, "t", 4000))
        seen = [exchange(n, sock, (lab.addr(name), port)) for sock, name, port in targets]
        assert {address[0] for address in seen if address} == {wan[0]}
        ports = {address[1] for address in seen if address}
        assert (len(ports) == 3) if kind == "symmetric" else (ports == {7000})
        assert exchange(s, n, seen[0]) == (lab.addr("s"), 4000)  # the answer comes back
        assert bool(exchange(stranger, n, seen[0])) == (kind == "full-cone")
        with lab.call("s", socket.create_server, ("0.0.0.0", 80)) as server:
            server.settimeout(2)
            with lab.call("n", socket.create_connection, (lab.addr("s"), 80), 2) as there, server.accept()[0] as here:
                here.sendall(b"hi")
                assert there.recv(2) == b"hi"
        with pytest.raises(OSError, match="timed out"):
            lab.call("s", socket.create_connection, (wan[0], 80), 0.3)
        for sock in sockets:
            sock.close()


@pytest.mark.parametrize(
    ("one", "two", "through"),
    [
        ("port-restricted", "port-restricted", True),
        ("full-cone", "symmetric", True),
        ("port-restricted", "symmetric", False),
        ("symmetric", "symmetric", False),
    ],
)
def test_hole_punching(one: str, two: str, through: bool) -> None:
    config = {"hosts": [host("x", nat=one), host("y", nat=two), host("s")]}
    with Lab(config) as lab, udp(lab, "x", 7000) as x, udp(lab, "y", 7000) as y, udp(lab, "s", 4000) as s:
        at_x, at_y = (exchange(sock, s, (lab.addr("s"), 4000)) for sock in (x, y))
        for sock in (x, y):
            sock.settimeout(0.05)
        got = [exchange(x, y, at_y) or exchange(y, x, at_x) for _ in range(4)]
    assert any(got) == through
