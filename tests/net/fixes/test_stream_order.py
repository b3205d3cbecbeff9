"""p2pllm.net.fixes.stream_order: a connection's streams have an order that does not depend on where they lie."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from libp2p.abc import IMuxedStream
from libp2p.network.stream.net_stream import NetStream

from p2pllm.net.fixes import stream_order


@dataclass(eq=False)
class Muxed:
    """As much of a muxed stream as a stream needs to exist."""

    stream_id: int
    muxed_conn: None = None


def streams(count: int) -> list[NetStream]:
    return [NetStream(cast("IMuxedStream", Muxed(number)), None, None) for number in range(1, 2 * count, 2)]


def test_the_order_of_a_set_follows_from_the_numbers():
    stream_order.install()
    one, other = streams(20), streams(20)
    kept = [NetStream(cast("IMuxedStream", Muxed(number)), None, None) for number in range(7)]  # others lie elsewhere
    numbers = [[stream.muxed_stream.stream_id for stream in set(some)] for some in (one, other)]
    assert numbers[0] == numbers[1]
    assert len(kept) == 7


def test_streams_stay_equal_to_nothing_but_themselves():
    stream_order.install()
    one, other = streams(1)[0], streams(1)[0]
    assert hash(one) == hash(other)
    assert len({one, other, one}) == 2
    assert "__eq__" not in vars(NetStream), "else the number would not be enough"
