"""Trap: a connection keeps its streams in a set, ordered by memory address, and resets them in that order at its end.

What waits for one of them then goes on before or after what waits for another, and no run can be repeated. Here the set
is ordered by the streams' numbers. Streams stay equal to nothing but themselves.
"""

from __future__ import annotations

from typing import Any, cast

from libp2p.network.stream.net_stream import NetStream


def install() -> None:
    """From now on streams are found by their number on their connection. Idempotent; global to the process."""
    cast("Any", NetStream).__hash__ = number


def number(stream: NetStream) -> int:
    """The stream's hash: sets of streams are each of one connection, so that few collide."""
    muxed: Any = stream.muxed_stream
    return int(muxed.stream_id)
