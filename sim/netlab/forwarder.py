"""The C forwarder: compiled on first use, started, told and asked through its control socket.

Invariants: what it says no to becomes a ``LabError``; it ends when its standard input does, so it never outlives the
process that started it. Its commands are listed in ``forwarder/forwarder.h``.
"""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

from sim.netlab.tools import LabError, run_tool

SOURCES = Path(__file__).parent / "forwarder"
LINES_MAX = 400
"""Commands per datagram, which holds 64 KB."""
ANSWER_S = 5.0


def build() -> Path:
    """Compile the forwarder when its sources are newer; gives its path."""
    sources = sorted(SOURCES.glob("*.[ch]"))
    out = SOURCES / "build" / "netlab-fwd"
    if not out.exists() or out.stat().st_mtime < max(path.stat().st_mtime for path in sources):
        out.parent.mkdir(exist_ok=True)
        unfinished = out.with_name(f"{out.name}.{os.getpid()}")
        units = [path for path in sources if path.suffix == ".c"]
        run_tool(["gcc", "-std=c11", "-O2", "-Wall", "-o", unfinished, *units, "-lm"])
        unfinished.replace(out)
    return out


def start(lines: Sequence[str], folder: Path, control: Path) -> subprocess.Popen[bytes]:
    """A forwarder that passes packets between the hosts that ``lines`` name."""
    config, log = folder / "config", folder / "log"
    config.write_text("\n".join(lines) + "\n")
    with log.open("w") as errors:
        process = subprocess.Popen(
            [build(), config, control],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
        )
    assert process.stdout is not None
    if process.stdout.readline() != b"ready\n":
        stop(process)
        raise LabError(log.read_text().strip() or "the forwarder did not start")
    return process


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a forwarder: its standard input is closed."""
    try:
        process.communicate(timeout=ANSWER_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()


def control(path: str | Path, text: str) -> str:
    """Send command lines to a forwarder's control socket; gives what they print."""
    out = ""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind("")  # an address of its own, to reply to
        sock.settimeout(ANSWER_S)
        sock.connect(str(path))
        lines = [line for line in text.split("\n") if line.strip()]
        for begin in range(0, len(lines), LINES_MAX):
            sock.send("\n".join(lines[begin : begin + LINES_MAX]).encode())
            out += sock.recv(1 << 20).decode()
            if not out.endswith("ok\n"):
                raise LabError(out.strip())
            out = out[:-3]
    return out
