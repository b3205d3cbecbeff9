"""Links between namespaces: delay, jitter, bandwidth, queues, loss, partitions; and what a lab's processes see."""

from __future__ import annotations

import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from sim.netlab import Lab, LabError
from tests.sim.netlab.laboratory import PORT, exchange, host, needs_lab, round_trips_ms, two, udp

pytestmark = [needs_lab, pytest.mark.real_clock]

SLACK_MS = 3.0
"""The machine may be busy with other things."""

# One TCP stream: the receiver counts for `secs` seconds, after `skip` s of ramp-up.
RECEIVE = textwrap.dedent("""
    import socket, sys, time
    skip, secs = float(sys.argv[1]), float(sys.argv[2])
    s = socket.create_server(("0.0.0.0", 5001)); print("up", flush=True)
    c, _ = s.accept(); buf = bytearray(1 << 20)
    t0 = time.monotonic(); n = 0; t1 = None
    while True:
        k = c.recv_into(buf); t = time.monotonic()
        if t1 is None and t - t0 >= skip: t1, n = t, 0
        else: n += k
        if k == 0 or t - t0 >= skip + secs: break
    print(n * 8e-6 / (t - t1), flush=True)""")
SEND = textwrap.dedent("""
    import socket, sys
    s = socket.socket(); s.connect((sys.argv[1], 5001)); buf = bytes(1 << 18)
    try:
        while True: s.sendall(buf)
    except OSError: pass""")


def tcp_mbit(lab: Lab, source: str, target: str, skip_s: float, count_s: float) -> float:
    """What one connection carries."""
    command = [sys.executable, "-c", RECEIVE, str(skip_s), str(count_s)]
    with lab.popen(target, command, stdout=subprocess.PIPE, text=True) as receiver:
        assert receiver.stdout.readline() == "up\n"
        sender = lab.popen(source, [sys.executable, "-c", SEND, lab.addr(target)])
        out, _ = receiver.communicate(timeout=skip_s + count_s + 20)
        sender.kill()
        sender.wait()
    return float(out)


@pytest.mark.parametrize(("da", "db"), [(0.5, 0.5), (5, 20), (0, 100)])
def test_round_trips_take_both_delays_twice(da: float, db: float) -> None:
    with Lab({"hosts": [host("a", da), host("b", db)]}) as lab:
        found = round_trips_ms(lab, "a", "b")
    wanted = 2 * (da + db)
    assert wanted - 0.3 < min(found) < wanted + SLACK_MS


def test_links_change_while_it_runs() -> None:
    """A path of its own for a pair, one way or both, and back to the sum of the access links."""
    config = two(delay=5) | {"pairs": [{"a": "a", "b": "b", "delay_ms": 30}]}
    with Lab(config) as lab:
        assert abs(min(round_trips_ms(lab, "a", "b")) - 60) < SLACK_MS
        lab.set_link("a", "b", delay_ms=10, oneway=True)
        assert abs(min(round_trips_ms(lab, "a", "b")) - 40) < SLACK_MS
        lab.set_link("a", "b", delay_ms=None)
        lab.set_link("b", delay_ms=15)
        assert abs(min(round_trips_ms(lab, "a", "b")) - 40) < SLACK_MS
        for mistake, words in (
            (lambda: lab.ctl("link nobody up=1"), "no such host"),
            (lambda: lab.set_link("a", loss=2), "bad value"),
            (lambda: lab.set_link("a", bandwidth=2), "unknown key"),
        ):
            with pytest.raises(LabError, match=words):
                mistake()


def test_jitter_keeps_order() -> None:
    with Lab(two(delay=20, jitter_ms=5)) as lab:
        found = round_trips_ms(lab, "a", "b", count=40)
        assert min(found) >= 59
        assert max(found) - min(found) > 5
        with udp(lab, "a") as a, udp(lab, "b", PORT) as b:
            for number in range(300):
                a.sendto(b"%d" % number, (lab.addr("b"), PORT))
                time.sleep(0.0005)
            got = [int(b.recv(100)) for _ in range(300)]
    assert got == sorted(got)


def test_a_connection_fills_its_line() -> None:
    """Uplink, then a downlink that is slower, changed while it runs."""
    with Lab(two(delay=1.25, mbit=100)) as lab:
        assert 85 <= tcp_mbit(lab, "a", "b", 0.5, 1) <= 100
        lab.set_link("b", downlink_mbit=10, queue_ms=15)
        assert 8 <= tcp_mbit(lab, "a", "b", 0.5, 1) <= 10
        assert lab.stats()["b"]["drop_down"] > 0


def test_a_long_fat_path_is_filled_too() -> None:
    with Lab(two(delay=25, mbit=100)) as lab:
        assert 60 <= tcp_mbit(lab, "a", "b", 2.5, 1) <= 100


def test_queues_have_an_end() -> None:
    """200 packets at once into 8 Mbit/s with a queue of 50 ms: about 50 kB and one pass, 1 ms apart."""
    with Lab(two(delay=5) | {"seed": 7}) as lab:
        lab.set_link("a", uplink_mbit=8, queue_ms=50)
        with udp(lab, "a") as a, udp(lab, "b", PORT) as b:
            begun = time.monotonic()
            for _ in range(200):
                a.sendto(bytes(972), (lab.addr("b"), PORT))  # 1000 bytes on the wire
            b.settimeout(0.3)
            times = []
            while (source := _arrival(b)) is not None:
                times.append(source - begun)
        assert 50 <= len(times) <= 60
        assert abs(times[-1] - (len(times) * 0.001 + 0.01)) < 0.010
        assert lab.stats()["a"]["drop_up"] == 200 - len(times)


def _arrival(sock: socket.socket) -> float | None:
    try:
        sock.recv(2000)
    except TimeoutError:
        return None
    return time.monotonic()


def test_loss_is_as_configured_and_reproducible() -> None:
    counts = []
    for _ in range(2):
        with Lab(two() | {"seed": 42}) as lab:
            lab.set_link("a", loss=0.2)
            with udp(lab, "a") as a, udp(lab, "b", PORT) as b:
                b.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
                for number in range(5000):
                    a.sendto(b"x", (lab.addr("b"), PORT))
                    if number % 100 == 0:
                        time.sleep(0.002)
                deadline = time.monotonic() + 5
                while (stats := lab.stats())["a"]["drop_loss"] + stats["b"]["rx_pkts"] < 5000:
                    assert time.monotonic() < deadline
            counts.append(stats["b"]["rx_pkts"])
    assert counts[0] == counts[1]
    assert abs(counts[0] - 4000) < 120


def test_partition_and_heal() -> None:
    with (
        Lab({"hosts": [host(name) for name in "abc"]}) as lab,
        udp(lab, "a") as a,
        udp(lab, "b", PORT) as b,
        udp(lab, "c", PORT) as c,
    ):
        for sock in (b, c):
            sock.settimeout(0.2)
        to_b, to_c = ((lab.addr(name), PORT) for name in "bc")
        assert exchange(a, b, to_b)
        lab.partition("a", ["b"])
        assert not exchange(a, b, to_b)
        assert exchange(a, c, to_c)
        assert exchange(c, b, to_b)
        lab.heal("a", ["b"])
        assert exchange(a, b, to_b)
        lab.partition("b")  # from everybody
        assert not exchange(a, b, to_b)
        assert not exchange(c, b, to_b)
        lab.heal()
        assert exchange(a, b, to_b)


def test_large_partition() -> None:
    """Halves of 60 hosts: many commands, more than one datagram."""
    with Lab({"hosts": [host("h", count=60)]}) as lab:
        names = list(lab.hosts)
        lab.partition(names[:30], names[30:])
        with pytest.raises(TimeoutError):
            round_trips_ms(lab, "h29", "h59", 1)
        assert round_trips_ms(lab, "h0", "h29", 1)
        lab.heal(names[:30], names[30:])
        assert round_trips_ms(lab, "h29", "h59", 1)


def test_processes_know_where_they_are() -> None:
    with Lab(two()) as lab:
        code, out = lab.run("b", "echo $NETLAB_HOST $NETLAB_ADDR $NETLAB_WAN; exit 3")
    assert (code, out) == (3, "b 10.0.0.2 10.0.0.2\n")


def test_idle_costs_nothing() -> None:
    with Lab({"hosts": [host("h", count=5)]}) as lab:
        assert lab.fwd is not None
        stat = Path(f"/proc/{lab.fwd.pid}/stat")
        before = sum(map(int, stat.read_text().split()[13:15]))
        time.sleep(0.5)
        assert sum(map(int, stat.read_text().split()[13:15])) - before <= 1
