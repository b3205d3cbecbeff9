"""Every command's flags, in one place, so that one name means one thing everywhere.

Invariants: importing this is cheap (``--help`` answers at once); a flag is here only when the part behind it exists.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

ACTIVATIONS = ("int8", "bf16", "fp16", "fp32")
LEVELS = ("debug", "info", "warning", "error")


def number(low: float, high: float, kind: type[int | float], *, open_low: bool = False) -> Callable[[str], float]:
    """An argparse type for a number in [low, high] (or (low, high] with ``open_low``), with an error that says so."""

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not {'a whole' if kind is int else 'a'} number") from None
        if not low <= value <= high or (open_low and value == low):
            raise argparse.ArgumentTypeError(f"{text} is out of range, allowed: {low:g} to {high:g}")
        return value

    return parse


COUNT = number(1, 1 << 20, int)
SECONDS = number(0, 1e6, float)


def bytes_size(text: str) -> int:
    """An argparse type for sizes such as 4GB, 512MiB or 1000000."""
    units = {"": 1, "B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
    digits = text.rstrip("BbIiKkMmGg ")
    unit = text[len(digits) :].strip().upper()
    try:
        value = int(float(digits) * units[unit])
    except (KeyError, ValueError):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; write 4GB, 512MiB or a number of bytes") from None
    if value <= 0:
        raise argparse.ArgumentTypeError("a size must be positive")
    return value


def blocks(text: str) -> tuple[int, int] | None:
    """An argparse type for ``auto`` or ``A:B``."""
    if text == "auto":
        return None
    start, colon, end = text.partition(":")
    if not (colon and start.isdigit() and end.isdigit() and int(start) < int(end)):
        raise argparse.ArgumentTypeError(f"{text!r} is neither auto nor A:B with A < B, such as 0:4")
    return int(start), int(end)


def throughput(text: str) -> float | None:
    """An argparse type for ``auto`` or tokens per second."""
    return None if text == "auto" else float(number(0, 1e9, float, open_low=True)(text))


def add_common(parser: argparse.ArgumentParser) -> None:
    """Flags that every command takes."""
    group = parser.add_argument_group("general")
    group.add_argument("--threads", type=COUNT, metavar="N", help="compute threads (default: physical cores minus one)")
    group.add_argument(
        "--cache-dir", metavar="DIR", help="downloads, measurements, remembered members (default: ~/.cache/p2pllm)"
    )
    group.add_argument("--log-level", choices=LEVELS, default="warning", help="what goes to stderr (default: warning)")
    group.add_argument("--config", metavar="FILE", help="TOML file with the same names as the flags; flags win over it")


def add_swarm(parser: argparse.ArgumentParser) -> None:
    """Flags of every command that talks to a swarm."""
    group = parser.add_argument_group("swarm")
    group.add_argument(
        "--bootstrap",
        metavar="ADDR",
        action="append",
        default=[],
        help="multiaddr of a member, with /p2p/<id>; repeatable; also from P2PLLM_BOOTSTRAP (space-separated); "
        "without one, members remembered from last time are tried",
    )
    group.add_argument(
        "--preset",
        choices=("wan", "lan", "local"),
        default="wan",
        help="timing for machines across the Internet, one site, or one machine (default: wan)",
    )
    group.add_argument("--identity", metavar="FILE", help="key file of this peer, made when missing")


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """How the next token is chosen, and where the text ends."""
    group = parser.add_argument_group("sampling")
    group.add_argument("--max-new-tokens", type=COUNT, default=128, metavar="N", help="at most so many (default: 128)")
    group.add_argument(
        "--temperature",
        type=number(0, 100, float),
        default=0.0,
        metavar="T",
        help="0 picks the likeliest token (default)",
    )
    group.add_argument(
        "--top-k", type=number(0, 1 << 20, int), default=0, metavar="K", help="sample from the K likeliest; 0: all"
    )
    group.add_argument(
        "--top-p",
        type=number(0, 1, float, open_low=True),
        default=1.0,
        metavar="P",
        help="smallest set of tokens with probability P",
    )
    group.add_argument(
        "--min-p",
        type=number(0, 1, float),
        default=0.0,
        metavar="P",
        help="drop tokens below P times the likeliest one",
    )
    group.add_argument(
        "--repetition-penalty",
        type=number(0, 100, float, open_low=True),
        default=1.0,
        metavar="R",
        help="above 1 discourages repeats",
    )
    group.add_argument("--seed", type=number(0, 2**63 - 1, int), metavar="S", help="same seed, same text")
    group.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end before this text; repeatable")


def add_client(parser: argparse.ArgumentParser) -> None:
    """How a client talks to servers."""
    group = parser.add_argument_group("client")
    group.add_argument(
        "--activations", choices=ACTIVATIONS, default="int8", help="how hidden states travel (default: int8)"
    )
    group.add_argument(
        "--exact",
        action="store_true",
        help="use only servers whose results do not depend on batching; activations stay as chosen",
    )
    group.add_argument(
        "--push",
        choices=("auto", "on", "off"),
        default="auto",
        help="servers send outputs straight to the next hop, or everything through this client (default: auto)",
    )
    group.add_argument(
        "--patience",
        type=SECONDS,
        default=60.0,
        metavar="SECONDS",
        help="wait so long for blocks that nobody serves (default: 60)",
    )
    group.add_argument(
        "--allow-server",
        action="append",
        default=[],
        metavar="ID",
        help="only these servers may see the text; repeatable",
    )
