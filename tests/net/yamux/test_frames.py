"""p2pllm.net.yamux.frames and outbox: frames survive any cut, junk is refused, urgency is kept."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pllm.errors import RemoteProtocolError
from p2pllm.net.yamux import outbox
from p2pllm.net.yamux.frames import ACK, DATA, GO_AWAY, PING, SYN, WINDOW_UPDATE, Body, Frame, FrameParser, header

kinds = st.sampled_from((WINDOW_UPDATE, PING, GO_AWAY))
flags = st.integers(0, 15)
numbers = st.integers(0, 2**32 - 1)
frames = st.one_of(
    st.builds(lambda kind, flag, sid, n: (kind, flag, sid, n, b""), kinds, flags, numbers, numbers),
    st.builds(lambda flag, sid, body: (DATA, flag, sid, len(body), body), flags, numbers, st.binary(max_size=80)),
)


@given(st.lists(frames, max_size=12), st.lists(st.integers(1, 40), min_size=1))
def test_frames_come_out_as_they_went_in_however_they_are_cut(sent: list[tuple], cuts: list[int]) -> None:
    data = b"".join(header(*frame[:4]) + frame[4] for frame in sent)
    parser = FrameParser()
    got: list[list] = []
    at = turn = 0
    while at < len(data):
        size = cuts[turn % len(cuts)]
        for event in parser.feed(data[at : at + size]):
            if isinstance(event, Frame):
                got.append([event.kind, event.flags, event.stream_id, event.length, b""])
            else:
                assert isinstance(event, Body)
                assert event.stream_id == got[-1][2]
                got[-1][4] += event.data
        at += size
        turn += 1
    assert [tuple(frame) for frame in got] == sent


@given(
    st.one_of(st.binary(max_size=40), frames.map(lambda frame: header(*frame[:4]) + frame[4])), st.binary(max_size=5)
)
def test_the_short_way_takes_exactly_the_plain_data_frames(record: bytes, before: bytes) -> None:
    parser = FrameParser()
    try:
        list(parser.feed(before))
    except RemoteProtocolError:
        return
    found = parser.whole(record)
    if found is not None:
        assert not before
        sid, size = found
        expected = [Frame(DATA, 0, sid, size)] + [Body(sid, record[12:])] * (size > 0)
        assert list(FrameParser().feed(record)) == expected


@given(st.binary(max_size=200))
def test_junk_parses_or_is_refused(junk: bytes) -> None:
    parser = FrameParser()
    try:
        for event in parser.feed(junk):
            assert isinstance(event, Frame | Body)
    except RemoteProtocolError:
        pass


@pytest.mark.parametrize("junk", [b"\1" + bytes(11), header(4, 0, 0, 0), header(DATA, 16, 0, 0), b"GET / HTTP/1.1\r\n"])
def test_what_is_not_yamux_is_refused(junk: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="not a yamux frame"):
        list(FrameParser().feed(junk))


def test_control_frames_are_bounded_and_first() -> None:
    box = outbox.Outbox()
    ping = header(PING, SYN | ACK, 0, 1)
    assert all(box.put_control(ping) for _ in range(outbox.CONTROL_FRAMES_MAX))
    assert not box.put_control(ping)
    assert box.take(30) == ping * 2
    assert box.clear() == []
    assert not box
