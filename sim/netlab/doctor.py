"""Whether labs can run on this machine, and what is missing.

Invariants: asks the machine itself (in a namespace that is gone again), not its version; needs no root to say that
root is missing.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sim.netlab import forwarder
from sim.netlab.hosts import LEARN, NAT_RULES
from sim.netlab.tools import LabError, run_tool, stale_netns

TOOLS = {"ip": "iproute2", "nsenter": "util-linux", "unshare": "util-linux", "gcc": "gcc"}
"""What must be there, and the package that usually brings it."""
FAST_UDP_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        vital: without it there is no lab at all.
        why: what the system said, when it is not ``ok``.
    """

    what: str
    vital: bool
    ok: bool
    why: str = ""


def missing() -> tuple[str, ...]:
    """What stands in the way of a lab without NAT, the cheap checks only; empty: nothing."""
    found = [] if os.geteuid() == 0 else ["root"]
    if not Path("/dev/net/tun").exists():
        found.append("/dev/net/tun")
    found += [f"{tool} ({package})" for tool, package in TOOLS.items() if shutil.which(tool) is None]
    return tuple(found)


def nat_missing() -> tuple[str, ...]:
    """What stands in the way of hosts behind NAT, beside ``missing``."""
    return () if shutil.which("nft") else ("nft (nftables)",)


def examine() -> list[Finding]:
    """Everything that matters, tried out."""
    findings = [Finding("root", True, os.geteuid() == 0)]
    findings += [
        Finding(f"{tool} ({package})", True, shutil.which(tool) is not None) for tool, package in TOOLS.items()
    ]
    rules = NAT_RULES.format(timeout=9, inside="192.168.1.2", learn=LEARN, mode="fully-random")
    tried: tuple[tuple[str, bool, Callable[[], object]], ...] = (
        ("forwarder builds", True, forwarder.build),
        ("network namespaces with tun devices", True, lambda: _in_fresh("ip", "tuntap", "add", "t0", "mode", "tun")),
        ("veth (for NAT)", False, lambda: _in_fresh("ip", "link", "add", "v0", "type", "veth")),
        ("nft NAT (for NAT)", False, lambda: _in_fresh("nft", "-f", "-", stdin=rules)),
        ("net.core.rmem_max >= 4 MB (for fast UDP)", False, _check_fast_udp),
        ("no stale namespaces (python -m sim.netlab gc)", False, _check_stale),
    )
    return findings + [_try(what, vital, check) for what, vital, check in tried]


def _try(what: str, vital: bool, check: Callable[[], object]) -> Finding:
    try:
        check()
    except (LabError, OSError) as exc:
        return Finding(what, vital, False, str(exc))
    return Finding(what, vital, True)


def _in_fresh(*argv: str, stdin: str | None = None) -> None:
    run_tool(["unshare", "--net", *argv], stdin)


def _check_fast_udp() -> None:
    if (size := int(Path("/proc/sys/net/core/rmem_max").read_text())) < FAST_UDP_BYTES:
        raise LabError(f"it is {size}")


def _check_stale() -> None:
    if names := stale_netns():
        raise LabError(", ".join(names))
