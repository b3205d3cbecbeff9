"""p2pllm.net.fixes.handlers: no handler and no odd negotiation ends the node."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pllm.errors import PeerLost
from p2pllm.net.negotiate import encode
from p2pllm.net.yamux import YamuxStream
from p2pllm.ports import Stream
from tests.net.fixes.stock import PROTOCOL, connect, stock_hosts
from tests.net.memory import MemoryNet, networks


async def test_without_the_fix_a_handlers_exception_ends_the_host() -> None:
    async def broken(stream: object) -> None:
        raise ValueError("a bug")

    with pytest.RaisesGroup(ValueError, allow_unwrapped=True, flatten_subgroups=True):
        async with stock_hosts(MemoryNet()) as (a, b):
            a.set_stream_handler(PROTOCOL, broken)
            await connect(b, a)
            await b.new_stream(a.get_id(), [PROTOCOL])
            await trio.sleep(10)


async def test_groups_of_exceptions_end_the_stream_alone() -> None:
    async def broken(stream: Stream) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            raise ValueError("in a nursery")

    async with networks(MemoryNet(), 2) as (a, b):
        a.serve("/broken", broken)
        await b.bootstrap()
        for _ in range(3):
            stream = await b.open_stream(a.me, "/broken")
            with pytest.raises(PeerLost):
                await stream.receive_some()


@given(
    junk=st.one_of(
        st.binary(max_size=600), st.binary(max_size=300).map(lambda data: encode("/multistream/1.0.0") + data)
    )
)
@settings(max_examples=40, deadline=None)
def test_whatever_a_stream_begins_with_the_node_lives(junk: bytes) -> None:
    async def main() -> None:
        async with networks(MemoryNet(), 2) as (a, b):
            await b.bootstrap()
            conn = b._peers.best(a.me)
            assert conn is not None
            stream: YamuxStream = conn.open_nowait()
            await stream.send_all(junk)
            await stream.aclose()
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(PeerLost, match="does not speak"):
                await b.open_stream(a.me, "/nothing")

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


async def test_a_negotiation_that_never_ends_is_ended() -> None:
    async with networks(MemoryNet(), 2) as (a, b):
        await b.bootstrap()
        conn = b._peers.best(a.me)
        assert conn is not None
        stream = conn.open_nowait()
        await stream.send_all(encode("/multistream/1.0.0"))
        assert await stream.receive_some() == encode("/multistream/1.0.0")
        with pytest.raises(PeerLost):
            await stream.receive_some()
        assert trio.current_time() < 15
