"""A running network of namespaces; the forwarder moves packets between them and emulates the links.

Invariants: ``close`` undoes everything that ``start`` did, and may be called twice; signals wait until it is through.
Every process of a lab ends with it.
"""

from __future__ import annotations

import atexit
import itertools
import os
import shutil
import signal
import subprocess
import sys
import threading
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from sim.netlab import forwarder
from sim.netlab.hosts import Host, forwarder_lines, link_lines, read_hosts
from sim.netlab.tools import NETNS, folder_of, in_netns, kill_netns, run_tool, set_sysctls

T = TypeVar("T")

SYSCTLS: dict[str, object] = {
    "net/ipv6/conf/all/disable_ipv6": 1,
    "net/ipv6/conf/default/disable_ipv6": 1,
    "net/ipv4/tcp_no_metrics_save": 1,
    "net/ipv4/tcp_rmem": "4096 131072 33554432",
    "net/ipv4/tcp_wmem": "4096 65536 33554432",
}
"""In every namespace: no IPv6, no memory of earlier labs, buffers for long fat paths."""
TX_QUEUE_PACKETS = 4000
_numbers = itertools.count()


class Lab:
    """A network to run programs in. Use as a context manager.

    Args:
        config: a TOML file, or a mapping of the same shape; see ``example.toml``.
        quiet: do not print the links' counters at the end.
    """

    def __init__(self, config: str | Path | Mapping[str, Any], quiet: bool = True) -> None:
        if not isinstance(config, Mapping):
            config = tomllib.loads(Path(config).read_text())
        self.id = f"nl{os.getpid()}x{next(_numbers)}"
        self.config = config
        self.hosts = read_hosts(self.id, config)
        self.procs: list[subprocess.Popen[Any]] = []
        self.fwd: subprocess.Popen[bytes] | None = None
        self.folder = folder_of(self.id)
        self.control = self.folder / "ctl"
        self.final_stats = ""
        self._quiet = quiet
        self._netns = [name for host in self.hosts.values() for name in (host.netns, host.router) if name]
        self._begun = self._closed = False

    def start(self) -> Self:
        """Build the network."""
        self._begun = True
        atexit.register(self.close)
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGHUP):  # unwind instead of dying
                if signal.getsignal(number) == signal.SIG_DFL:
                    signal.signal(number, lambda number, frame: sys.exit(128 + number))
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    __enter__ = start

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _start(self) -> None:
        self.folder.mkdir(0o700)
        run_tool(["ip", "-batch", "-"], "".join(f"netns add {name}\n" for name in self._netns))
        congestion = self.config.get("tcp_cc")
        sysctls = SYSCTLS | ({"net/ipv4/tcp_congestion_control": congestion} if congestion else {})
        for name in self._netns:
            in_netns(name, set_sysctls, sysctls)
        self.fwd = forwarder.start(forwarder_lines(self.hosts, self.config, str(NETNS)), self.folder, self.control)
        for host in self.hosts.values():
            self._configure(host)

    def _configure(self, host: Host) -> None:
        """Addresses and routes of one host, and of its router."""
        mtu = int(self.config.get("mtu", 1500))
        outside = (
            f"link set lo up\naddr add {host.wan}/32 dev wan0\n"
            f"link set wan0 mtu {mtu} txqueuelen {TX_QUEUE_PACKETS} up\nroute add default dev wan0\n"
        )
        if host.router is None:
            run_tool(["ip", "-n", host.netns, "-batch", "-"], outside)
            return
        between = (
            f"link add lan0 type veth peer name eth0 netns {host.netns}\n"
            f"addr add {host.lan}.1/24 dev lan0\nlink set lan0 mtu {mtu} up\n"
        )
        inside = (
            f"link set lo up\naddr add {host.local}/24 dev eth0\n"
            f"link set eth0 mtu {mtu} up\nroute add default via {host.lan}.1\n"
        )
        run_tool(["ip", "-n", host.router, "-batch", "-"], outside + between)
        run_tool(["ip", "-n", host.netns, "-batch", "-"], inside)
        in_netns(host.router, run_tool, ["nft", "-f", "-"], host.nat_rules())
        timeouts = {f"net/netfilter/nf_conntrack_udp_timeout{kind}": host.nat_udp_timeout_s for kind in ("", "_stream")}
        in_netns(host.router, set_sysctls, {"net/ipv4/ip_forward": 1, **timeouts})

    def close(self) -> None:
        """End all processes of the lab and remove all namespaces."""
        if self._closed or not self._begun:
            return
        self._closed = True
        held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP, signal.SIGINT, signal.SIGTERM})
        alive = [name for name in self._netns if (NETNS / name).exists()]
        try:
            kill_netns(alive)
        finally:
            for process in self.procs:
                process.poll()
            if self.fwd is not None:
                forwarder.stop(self.fwd)
                self.final_stats = (self.folder / "log").read_text()
            for name in alive:
                subprocess.run(["ip", "netns", "del", name], stderr=subprocess.DEVNULL, check=False)
            shutil.rmtree(self.folder, ignore_errors=True)
            atexit.unregister(self.close)
            if not self._quiet:
                sys.stderr.write(self.final_stats)
            signal.pthread_sigmask(signal.SIG_SETMASK, held)

    # -- programs

    def popen(self, host: str, argv: str | Sequence[str | Path], **options: Any) -> subprocess.Popen[Any]:
        """A process inside a host (a str runs in sh); ended by ``close``."""
        at = self.hosts[host]
        own = {"NETLAB_HOST": at.name, "NETLAB_ADDR": at.local, "NETLAB_WAN": at.wan}
        options["env"] = {**(options.get("env") or os.environ), **own}
        options.setdefault("start_new_session", True)
        command = ["sh", "-c", argv] if isinstance(argv, str) else list(argv)
        process = subprocess.Popen(["nsenter", f"--net={NETNS / at.netns}", "--", *command], **options)
        self.procs.append(process)
        return process

    def run(
        self, host: str, argv: str | Sequence[str | Path], timeout: float | None = None, **options: Any
    ) -> tuple[int, str]:
        """Run to the end; gives exit status, and stdout with stderr as text."""
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        process = self.popen(host, argv, **options, **pipes)
        try:
            out = process.communicate(timeout=timeout)[0]
        finally:
            if process.poll() is None:
                process.kill()
                process.communicate()
        return process.returncode, out

    def call(self, host: str, call: Callable[..., T], *args: object) -> T:
        """``call(*args)`` in a thread inside the host; sockets that it makes belong to the host."""
        return in_netns(self.hosts[host].netns, call, *args)

    def addr(self, host: str) -> str:
        """The address under which others see the host: behind NAT, its router's."""
        return self.hosts[host].wan

    # -- links

    def set_link(self, a: str, b: str | None = None, oneway: bool = False, **settings: float | None) -> None:
        """Change host a's access link, or with b the path a <-> b (None: what both hosts' links give)."""
        self.ctl("\n".join(link_lines(a, b, oneway, settings)))

    def partition(self, a: str | Sequence[str], b: str | Sequence[str] = "*", oneway: bool = False) -> None:
        """Nothing gets through between a and b: names, lists of names, or ``*``."""
        self._cut(a, b, oneway, 1)

    def heal(self, a: str | Sequence[str] = "*", b: str | Sequence[str] = "*") -> None:
        """End partitions between a and b."""
        self._cut(a, b, False, 0)

    def _cut(self, a: str | Sequence[str], b: str | Sequence[str], oneway: bool, cut: int) -> None:
        left, right = ([side] if isinstance(side, str) else list(side) for side in (a, b))
        pairs = [pair for x in left for y in right for pair in ((x, y), (y, x))[: 1 if oneway else 2]]
        self.ctl("\n".join(f"pair {x} {y} cut={cut}" for x, y in pairs))

    def ctl(self, text: str) -> str:
        """Command lines for the forwarder, see ``forwarder/forwarder.h``; gives what they print."""
        return forwarder.control(self.control, text)

    def stats(self) -> dict[str, dict[str, float]]:
        """Counters by host, and of all under ``total``, since the start or ``ctl("reset")``."""
        found: dict[str, dict[str, float]] = {}
        for line in self.ctl("stats").splitlines():
            row = dict(word.split("=", 1) for word in line.split() if "=" in word)
            name = row.pop("host", "total")
            found[name] = {key: float(value) if "." in value else int(value) for key, value in row.items()}
        return found
