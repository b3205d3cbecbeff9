"""p2pllm.net.negotiate: two ends agree in one round trip, and junk is an error of the peer."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from p2pllm.errors import PeerLost, RemoteProtocolError
from p2pllm.net.negotiate import MULTISTREAM, answer, encode, propose
from p2pllm.types import PeerId, Priority


class Script:
    """A stream whose peer says fixed bytes, however it is read."""

    peer = PeerId("somebody")

    def __init__(self, says: bytes) -> None:
        self.says = says
        self.heard = b""

    async def send_all(self, data: bytes, priority: Priority = Priority.STEP) -> None:
        self.heard += data

    async def receive_some(self, max_bytes: int = 65536) -> bytes:
        out, self.says = self.says[:max_bytes], self.says[max_bytes:]
        return out

    async def aclose(self) -> None:
        raise AssertionError

    def abort(self) -> None:
        raise AssertionError


async def test_the_opener_says_everything_at_once() -> None:
    stream = Script(encode(MULTISTREAM, "/x/1"))
    await propose(stream, "/x/1")
    assert stream.heard == b"\x13/multistream/1.0.0\n\x05/x/1\n"


async def test_refusals_and_lies() -> None:
    with pytest.raises(PeerLost, match="does not speak /x/1"):
        await propose(Script(encode(MULTISTREAM, "na")), "/x/1")
    for junk in (
        encode("/multistream/2.0.0"),
        encode(MULTISTREAM, "/y/1"),
        b"\x00",
        b"\x05/x/1x",
        b"\xff\xff",
        b"\x02\xff\n",
    ):
        with pytest.raises(RemoteProtocolError):
            await propose(Script(junk + bytes(300)), "/x/1")
    with pytest.raises(PeerLost, match="closed the stream"):
        await propose(Script(encode(MULTISTREAM)), "/x/1")


async def test_the_answerer_takes_the_first_that_it_speaks() -> None:
    long = "/" + "n" * 150
    stream = Script(encode(MULTISTREAM, "ls", "/no/1", long, "/x/1"))
    assert await answer(stream, {"/x/1": None}) == "/x/1"
    assert stream.heard == encode(MULTISTREAM, "na", "na", "na", "/x/1")
    assert await answer(Script(encode(MULTISTREAM, long)), [long]) == long


async def test_a_peer_that_wants_nothing_is_sent_away() -> None:
    with pytest.raises(RemoteProtocolError, match="no protocol"):
        await answer(Script(encode(MULTISTREAM, *["/a"] * 50)), ["/x"])


@given(st.binary(max_size=400), st.booleans())
def test_junk_is_the_peers_fault(junk: bytes, polite: bool) -> None:
    async def main() -> None:
        stream = Script(encode(MULTISTREAM) * polite + junk)
        with pytest.raises((RemoteProtocolError, PeerLost)):
            await answer(stream, ["/never/said/by/chance"])

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
