"""Frames: what goes in comes out however it is cut, and nothing else ever does."""

from __future__ import annotations

import contextlib
import random
import tracemalloc
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pllm.config import WireLimits
from p2pllm.errors import LocalProtocolError, RemoteProtocolError
from p2pllm.wire import messages as m
from p2pllm.wire.frame import MessageReader, encode_frames, encode_message
from tests.wire.strategies import MODEL, SESSION, messages, payload_of, raw_frame, raw_message, tensor_of

BIG = m.Step(SESSION, 1, 0, (0,), (300,), tensor_of(300, 512, "fp32"))
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=9)
    | st.binary(max_size=20)
)
ANYTHING = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("tpxsziejhnmbrakyl", max_size=1), inner),
    max_leaves=12,
)
ODDITIES: list[Any] = [None, True, False, -1, 0, 1, 2**32, 2**63, 1.5, float("nan"), float("inf"), "", "x", "é\x1b"]
ODDITIES += [b"", b"abc", b"\xff" * 4, b"\xff" * 8, b"x" * 16, [], [1, 2], [2, 1], [True, 2], ["a", 1], [[1], 2], {}]
ODDITIES += [{"a": 1}, {1: 2}, msgpack.Timestamp(1), msgpack.ExtType(7, b"x")]

SMALL = m.Step(SESSION, 1, 57, (100,), (1,), tensor_of(1, 64), acked=56)


def read_all(data: bytes) -> list[tuple[m.Message, bytes]]:
    reader = MessageReader()
    out = [(message, bytes(payload)) for message, payload in reader.feed(data)]
    reader.eof()
    return out


class TestRoundTrip:
    @settings(max_examples=400, deadline=None)
    @given(messages)
    def test_every_message_comes_back_as_it_was(self, message: m.Message) -> None:
        payload = payload_of(message)
        assert read_all(encode_message(message, payload)) == [(message, payload)]

    @settings(max_examples=60, deadline=None)
    @given(st.lists(messages, min_size=1, max_size=5), st.data())
    def test_a_stream_may_be_cut_anywhere(self, sent: list[m.Message], data: st.DataObject) -> None:
        stream = b"".join(encode_message(message, payload_of(message)) for message in sent)
        cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
        reader = MessageReader()
        got = []
        for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True):
            got += [(message, bytes(payload)) for message, payload in reader.feed(stream[start:stop])]
        reader.eof()
        assert got == [(message, payload_of(message)) for message in sent]

    def test_a_stream_may_come_byte_by_byte(self) -> None:
        stream = encode_message(SMALL, payload_of(SMALL)) + encode_message(m.Attach(SESSION, 3))
        reader = MessageReader()
        got = [item for i in range(len(stream)) for item in reader.feed(stream[i : i + 1])]
        assert [message for message, _ in got] == [SMALL, m.Attach(SESSION, 3)]

    def test_a_long_payload_is_cut_into_frames_of_64_kib(self) -> None:
        payload = random.Random(1).randbytes(BIG.tensor.size)
        frames = list(encode_frames(BIG, payload))
        assert len(frames) == 10
        assert {len(frame) for frame in frames[:-1]} == {65536}
        assert b"".join(frames) == encode_message(BIG, payload)
        assert read_all(b"".join(frames)) == [(BIG, payload)]

    def test_a_step_is_one_frame_and_little_more_than_its_payload(self) -> None:
        assert len(list(encode_frames(SMALL, payload_of(SMALL)))) == 1
        assert len(encode_message(SMALL, payload_of(SMALL))) - SMALL.tensor.size <= 80

    def test_any_buffer_is_a_payload(self) -> None:
        payload = payload_of(SMALL)
        assert encode_message(SMALL, memoryview(payload)) == encode_message(SMALL, bytearray(payload))
        wide = memoryview(bytes(BIG.tensor.size)).cast("f")
        assert encode_message(BIG, wide) == encode_message(BIG, bytes(BIG.tensor.size))

    def test_payloads_cannot_be_changed_by_their_receiver(self) -> None:
        (_, payload), *_ = MessageReader().feed(encode_message(BIG, bytes(BIG.tensor.size)))
        assert memoryview(payload).readonly

    def test_the_payload_must_be_the_one_of_the_header(self) -> None:
        with pytest.raises(LocalProtocolError, match="payload of 3 bytes"):
            encode_message(SMALL, b"abc")
        with pytest.raises(LocalProtocolError, match="carries no payload"):
            encode_frames(m.Close(SESSION), b"abc")


class TestBrokenFrames:
    def test_a_flipped_bit_never_passes(self) -> None:
        stream = encode_message(SMALL, payload_of(SMALL))
        for bit in range(len(stream) * 8):
            broken = bytearray(stream)
            broken[bit // 8] ^= 1 << bit % 8
            with pytest.raises(RemoteProtocolError):
                read_all(bytes(broken))

    def test_a_cut_stream_is_an_error_at_its_end(self) -> None:
        stream = encode_message(SMALL, payload_of(SMALL))
        for stop in range(1, len(stream)):
            reader = MessageReader()
            assert reader.feed(stream[:stop]) == []
            with pytest.raises(RemoteProtocolError, match="in the middle of a message"):
                reader.eof()

    def test_a_stream_cut_between_two_frames_of_a_message_is_an_error(self) -> None:
        reader = MessageReader()
        assert reader.feed(next(iter(encode_frames(BIG, bytes(BIG.tensor.size))))) == []
        with pytest.raises(RemoteProtocolError, match="in the middle of a message"):
            reader.eof()

    def test_a_dead_reader_stays_dead(self) -> None:
        reader = MessageReader()
        with pytest.raises(RemoteProtocolError, match="checksum"):
            reader.feed(encode_message(m.Close(SESSION))[:-1] + b"?")
        for _ in range(2):
            with pytest.raises(RemoteProtocolError, match="checksum"):
                reader.feed(encode_message(m.Close(SESSION)))
            with pytest.raises(RemoteProtocolError, match="checksum"):
                reader.eof()

    def test_another_version_is_named(self) -> None:
        with pytest.raises(RemoteProtocolError, match="version 2; this side speaks version 1"):
            read_all(raw_frame(b"", version=2))

    @pytest.mark.parametrize(
        ("stream", "reason"),
        [
            (b"GET / HTTP/1.1\r\n\r\n", "at most 65536"),
            (b"\x00\x00\x00\x00", "frame of 4 bytes"),
            (b"\x00\x00\xff\xfd", "at most 65536"),
            (raw_frame(b"", kind=2), "unknown kind 2"),
            (raw_frame(b"abc", header_size=9), "header of 9 bytes"),
            (raw_frame(b"x" * 20000), "header of 20000 bytes"),
            (raw_frame(b"", kind=1), "continuation of no message"),
            (raw_message({"t": 3, "i": SESSION, "e": 1}, b"more"), "more payload than declared"),
            (raw_message({"t": 3, "i": SESSION, "e": 1, "p": 4}, b"more"), "no payload"),
        ],
    )
    def test_what_is_no_frame_is_refused(self, stream: bytes, reason: str) -> None:
        with pytest.raises(RemoteProtocolError, match=reason):
            read_all(stream)

    @pytest.mark.parametrize(
        ("second", "reason"),
        [
            (encode_message(m.Close(SESSION)), "before the end of the last one"),
            (raw_frame(b"h", b"raw", kind=1), "continuation with a header"),
            (raw_frame(b"", b"", kind=1), "without payload"),
        ],
    )
    def test_messages_do_not_interleave(self, second: bytes, reason: str) -> None:
        reader = MessageReader()
        reader.feed(next(iter(encode_frames(BIG, bytes(BIG.tensor.size)))))
        with pytest.raises(RemoteProtocolError, match=reason):
            reader.feed(second)

    def test_more_than_was_declared_is_refused(self) -> None:
        *frames, last = encode_frames(BIG, bytes(BIG.tensor.size))
        reader = MessageReader()
        for frame in frames:
            reader.feed(frame)
        with pytest.raises(RemoteProtocolError, match="more payload than declared"):
            reader.feed(raw_frame(b"", last[8:-4] + b"!", kind=1))


class TestFuzz:
    @settings(max_examples=300, deadline=None)
    @given(st.binary(max_size=300))
    def test_no_bytes_raise_anything_else(self, data: bytes) -> None:
        for stream in (data, raw_frame(data), raw_frame(data[:9], data[9:]), raw_frame(b"", data, kind=1)):
            with contextlib.suppress(RemoteProtocolError):
                read_all(stream)

    @settings(max_examples=300, deadline=None)
    @given(ANYTHING, st.integers(0, 30), st.binary(max_size=40))
    def test_no_header_raises_anything_else(self, fields: object, number: int, body: bytes) -> None:
        if isinstance(fields, dict):
            fields = {**fields, "t": number}
        with contextlib.suppress(RemoteProtocolError):
            read_all(raw_frame(msgpack.packb(fields), body))

    @settings(max_examples=300, deadline=None)
    @given(st.lists(messages, min_size=1, max_size=3), st.randoms(use_true_random=False))
    def test_damaged_streams_raise_nothing_else(self, sent: list[m.Message], rng: random.Random) -> None:
        stream = bytearray(b"".join(encode_message(message, payload_of(message)) for message in sent))
        for _ in range(rng.randint(1, 4)):
            match rng.randrange(4):
                case 0 if stream:
                    stream[rng.randrange(len(stream))] = rng.randrange(256)
                case 1:
                    del stream[rng.randrange(len(stream) + 1) :]
                case 2:
                    at = rng.randrange(len(stream) + 1)
                    stream[at:at] = rng.randbytes(rng.randrange(9))
                case _:
                    at = rng.randrange(len(stream) + 1)
                    del stream[at : at + rng.randrange(9)]
        try:
            got = read_all(bytes(stream))
        except RemoteProtocolError:
            return
        # Whatever passes the checksum was sent so: a prefix or a few whole messages.
        assert all(message in sent for message, _ in got)

    @settings(max_examples=200, deadline=None)
    @given(messages, st.data())
    def test_damaged_headers_with_a_right_checksum_raise_nothing_else(
        self, message: m.Message, data: st.DataObject
    ) -> None:
        frame = next(iter(encode_frames(message, payload_of(message))))
        size = int.from_bytes(frame[6:8], "big")
        fields = msgpack.unpackb(frame[8 : 8 + size])
        key = data.draw(st.sampled_from(["t", "p", *sorted(fields)]))
        fields[key] = data.draw(st.sampled_from(ODDITIES))
        with contextlib.suppress(RemoteProtocolError):
            read_all(raw_frame(msgpack.packb(fields), frame[8 + size : -4]))


class TestMemory:
    def peak(self, *chunks: bytes) -> int:
        """Peak of newly allocated bytes while a reader takes ``chunks``."""
        reader = MessageReader()
        tracemalloc.start()
        try:
            for chunk in chunks:
                try:
                    reader.feed(chunk)
                except RemoteProtocolError:
                    break
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    def test_a_declared_payload_allocates_nothing(self) -> None:
        huge = m.Step(SESSION, 1, 0, (0,), (4096,), tensor_of(4096, 4096, "fp32"))
        assert huge.tensor.size == WireLimits().payload_bytes_max
        fields = {
            "t": 4,
            "i": SESSION,
            "e": 1,
            "j": 0,
            "h": bytes(4),
            "n": (4096).to_bytes(4, "big"),
            "x": 3,
            "s": [4096, 4096],
        }
        start = raw_message(fields | {"p": huge.tensor.size}, b"abc")
        assert self.peak(start) < 64 * 1024
        assert self.peak(b"\x00\x00\xff\xf0" + bytes(10)) < 64 * 1024

    def test_more_than_the_limit_is_refused_before_it_comes(self) -> None:
        with pytest.raises(RemoteProtocolError, match="at most 67108864"):
            read_all(raw_message({"t": 4, "i": SESSION, "p": WireLimits().payload_bytes_max + 1}))

    def test_nested_headers_claim_no_memory(self) -> None:
        bombs = [
            b"\xdc\x3f\xff" * 5000,  # arrays of 16383 in arrays
            b"\xdd\x7f\xff\xff\xff" * 3000,
            b"\x91" * 16000,
            b"\x81\xa1t" * 5000,
            b"\xdf\xff\xff\xff\xff" * 3000,
            b"\x82\xa1t" + b"\xdc\x00\x08" * 5000,
            b"\xc6\xff\xff\xff\xff",
            b"\xdb\xff\xff\xff\xff",
        ]
        for bomb in bombs:
            assert self.peak(raw_frame(bomb)) < 1024 * 1024, bomb[:8]
            with pytest.raises(RemoteProtocolError):
                read_all(raw_frame(bomb))

    def test_small_pieces_cost_what_they_weigh(self) -> None:
        """One-byte reads and one-byte frames hold no more than the bytes that came."""
        frames = [encode_message(BIG, bytes(BIG.tensor.size))[:65536]]
        frames += [raw_frame(b"", b"x", kind=1)] * 2000
        assert self.peak(*frames) < 400 * 1024
        stream = frames[0]
        assert self.peak(*(stream[i : i + 1] for i in range(20000))) < 400 * 1024


def test_records_are_a_payload_and_come_back_as_records() -> None:
    page = m.RecordsPage(1, 2, True, (b"a" * 8000,) * 20 + (b"",))
    assert read_all(encode_message(page)) == [(page, b"")]
    with pytest.raises(RemoteProtocolError, match="records of 3 bytes in a payload of 4"):
        read_all(raw_message({"t": 28, "l": bytes([0, 0, 0, 3]), "p": 4}, b"abcd"))
    with pytest.raises(LocalProtocolError):
        encode_message(m.RecordsOffer((bytes(9000),)))


def test_limits_are_the_readers_own() -> None:
    tight = WireLimits(payload_bytes_max=64)
    with pytest.raises(RemoteProtocolError, match="at most 64"):
        MessageReader(tight).feed(encode_message(SMALL, payload_of(SMALL)))
    with pytest.raises(LocalProtocolError, match="at most 64"):
        encode_message(SMALL, payload_of(SMALL), tight)
    assert MessageReader(tight).feed(encode_message(m.InfoRequest(1, MODEL))) == [(m.InfoRequest(1, MODEL), b"")]
