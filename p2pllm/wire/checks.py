"""Checks of a message across its fields: what no single field can tell.

Invariants: pure; each raises RemoteProtocolError with the reason, or returns.
"""

from __future__ import annotations

import itertools
from typing import NoReturn

from p2pllm.config import WireLimits
from p2pllm.errors import RemoteProtocolError
from p2pllm.wire import messages as m


def refuse(reason: str) -> NoReturn:
    """A peer's message is wrong."""
    raise RemoteProtocolError(reason)


def _check_points(points: tuple[int, ...]) -> None:
    if any(a >= b for a, b in itertools.pairwise(points)):
        refuse("codec points are not strictly ascending")


def check_open(msg: m.Open, limits: WireLimits) -> None:
    _check_points(msg.codec_points)


def check_step(msg: m.Step, limits: WireLimits) -> None:
    rows = len(msg.counts)
    if rows == 0 or len(msg.positions) != rows:
        refuse(f"{len(msg.positions)} positions for {rows} counts")
    if msg.sources and (len(msg.sources) != rows or max(msg.sources) >= rows):
        refuse(f"sources do not name a row for each of {rows} rows")
    if sum(msg.counts) != msg.tensor.shape[0]:
        refuse(f"counts sum to {sum(msg.counts)}, the tensor has {msg.tensor.shape[0]} tokens")
    for position, count in zip(msg.positions, msg.counts, strict=True):
        if position + count > limits.length_max:
            refuse(f"a row of {position + count} tokens; at most {limits.length_max} are allowed")
    if msg.acked >= msg.step:
        refuse(f"step {msg.step} acknowledges step {msg.acked}")


def check_forward(msg: m.Forward | m.Backward, limits: WireLimits) -> None:
    if not msg.counts or min(msg.counts) < 1:
        refuse("a forward needs at least one sequence, and each at least one token")
    if sum(msg.counts) != msg.tensor.shape[0]:
        refuse(f"counts sum to {sum(msg.counts)}, the tensor has {msg.tensor.shape[0]} tokens")
    _check_points(msg.codec_points)


def check_positions(msg: m.Answer | m.Attached, limits: WireLimits) -> None:
    if not msg.positions:
        refuse("no positions")


def check_backward(msg: m.Backward, limits: WireLimits) -> None:
    """What a Forward keeps to, and a gradient of the same shape."""
    check_forward(msg, limits)
    if msg.gradient.shape != msg.tensor.shape:
        refuse(f"a gradient of shape {list(msg.gradient.shape)} for inputs of {list(msg.tensor.shape)}")
