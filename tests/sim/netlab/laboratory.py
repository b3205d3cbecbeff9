"""What the tests of netlab share: when they are skipped, small labs, sockets inside hosts."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import pytest

from sim.netlab import Lab
from sim.netlab.doctor import missing, nat_missing
from sim.netlab.tools import NETNS

needs_lab = pytest.mark.skipif(bool(missing()), reason=f"netlab needs {', '.join(missing())}")
needs_nat = pytest.mark.skipif(
    bool(missing() + nat_missing()), reason=f"NAT needs {', '.join(missing() + nat_missing())}"
)
PORT = 4000


def host(name, delay=1, mbit=0, **more):
    return {"name": name, "delay_ms": delay, "uplink_mbit": mbit, "downlink_mbit": mbit, **more}


def two(**settings):
    return {"hosts": [host("a", **settings), host("b", **settings)]}


def udp(lab, name, port=0):
    """A socket inside a host; its receive gives up after a while."""

    def make():
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind(("0.0.0.0", port))
        sock.settimeout(1)
        return sock

    return lab.call(name, make)


def exchange(sender, receiver, addr, data=b"x"):
    """Send to ``addr``; the source address that the receiver saw, or None if nothing came."""
    sender.sendto(data, addr)
    try:
        return receiver.recvfrom(2000)[1]
    except TimeoutError:
        return None


def round_trips_ms(lab, a, b, count=20):
    """Of single packets from a to b and back."""
    found = []
    with udp(lab, a) as near, udp(lab, b, PORT) as far:
        for _ in range(count):
            begun = time.monotonic()
            near.sendto(b"there", (lab.addr(b), PORT))
            data, source = far.recvfrom(100)
            far.sendto(data, source)
            near.recv(100)
            found.append(1000 * (time.monotonic() - begun))
    return found


def left_behind():
    """Namespaces of this process, and forwarders that it started."""
    names = [path.name for path in NETNS.glob(f"nl{os.getpid()}x*")]
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return names + [pid for pid in children if "netlab-fwd" in Path(f"/proc/{pid}/cmdline").read_text()]


__all__ = ["PORT", "Lab", "exchange", "host", "left_behind", "needs_lab", "needs_nat", "round_trips_ms", "two", "udp"]
