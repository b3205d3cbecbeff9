"""What netlab needs of the system: tools run to their end, threads inside namespaces, ending what lives in them.

Invariants: a tool's error text becomes a ``LabError``; only namespaces that netlab has named are ever touched.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from p2pllm.errors import P2PLLMError

T = TypeVar("T")

NETNS = Path("/run/netns")
CLONE_NEWNET = 0x40000000
GRACE_S = 1.0
"""Processes get so long between SIGTERM and SIGKILL, and five seconds more to be gone."""
_libc = ctypes.CDLL(None, use_errno=True)


class LabError(P2PLLMError):
    """A lab cannot be built or changed like this; says what the tool or the forwarder said."""


def run_tool(argv: Sequence[str | Path], stdin: str | None = None) -> str:
    """Run a tool to its end and give its output."""
    done = subprocess.run(argv, input=stdin, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LabError(f"{shlex.join(map(str, argv))}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def check_keys(what: str, table: Iterable[str], allowed: Collection[str]) -> None:
    """Refuse keys that nobody reads."""
    if unknown := set(table) - set(allowed):
        raise LabError(f"{what}: unknown key(s) {', '.join(sorted(unknown))}; known: {', '.join(sorted(allowed))}")


def in_netns(name: str, call: Callable[..., T], *args: object) -> T:
    """``call(*args)`` in a fresh thread inside the namespace; sockets that it makes stay there."""

    def body() -> T:
        with (NETNS / name).open() as file:
            if _libc.setns(file.fileno(), CLONE_NEWNET):  # of this thread only
                raise OSError(ctypes.get_errno(), f"setns {name}")
        return call(*args)

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(body).result()


def set_sysctls(values: Mapping[str, object]) -> None:
    """Set the settings that this kernel has, in the caller's namespace."""
    for key, value in values.items():
        path = Path("/proc/sys", key)
        try:
            if path.exists():
                path.write_text(str(value))
        except OSError as exc:
            raise LabError(f"{path} = {value}: {exc}") from exc


def kill_netns(names: Sequence[str]) -> None:
    """End every process that lives in these namespaces: all of them are a lab's own."""
    begun, number = time.monotonic(), int(signal.SIGTERM)
    while pids := _inhabitants(names):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        time.sleep(0.02)
        waited_s = time.monotonic() - begun
        number = signal.SIGKILL if waited_s > GRACE_S else 0
        if waited_s > GRACE_S + 5:
            raise LabError(f"processes {sorted(pids)} do not end")


def _inhabitants(names: Sequence[str]) -> set[int]:
    return {int(pid) for name in names for pid in run_tool(["ip", "netns", "pids", name]).split()} - {os.getpid()}


def stale_netns() -> list[str]:
    """Namespaces of labs whose process is gone: it was killed with SIGKILL."""
    found = ((path.name, re.match(r"nl(\d+)x\d+-", path.name)) for path in sorted(NETNS.glob("nl*")))
    return [name for name, match in found if match and not Path("/proc", match[1]).exists()]


def collect() -> list[str]:
    """Remove what killed labs left behind; gives the names of their namespaces."""
    names = stale_netns()
    kill_netns(names)
    for name in names:
        run_tool(["ip", "netns", "del", name])
        shutil.rmtree(folder_of(name.split("-", maxsplit=1)[0]), ignore_errors=True)
    return names


def folder_of(lab_id: str) -> Path:
    """Where a lab keeps its configuration and control socket."""
    return Path(tempfile.gettempdir(), f"netlab-{lab_id}")
