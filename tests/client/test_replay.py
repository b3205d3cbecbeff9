from __future__ import annotations

import numpy as np
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from p2pllm.client.chunks import cut
from p2pllm.client.edge import Packed
from p2pllm.client.past import entries_of, length, lengths, runs_of, shortened
from p2pllm.client.replay import History
from p2pllm.errors import LocalProtocolError, StorageError
from p2pllm.wire.tensor import encode
from sim.storage import MemoryStorage
from tests.client.test_past import ROWS, ids, steps

HIDDEN = 96


def packed_of(tokens: list[int], border: int, codec: str, zstd: bool = False) -> Packed:
    """What these tokens look like at a border: a function of the numbers alone."""
    rows = [np.random.default_rng((token, border)).standard_normal(HIDDEN) for token in tokens]
    array = np.array(rows, np.float32).reshape(len(tokens), HIDDEN)
    return Packed(*encode(array, "fp32", codec, zstd=zstd))


def feed(history, counts, sources=(), borders=(0, 2), codec="int8", chunk=4, zstd=False):
    entries = entries_of(cut(counts, chunk), history.rows, tuple(sources), number=history.entries, token=history.tokens)
    history.number(entries)
    for entry in entries:
        tokens = [first + i for first, count in entry.runs for i in range(count)]
        for border in borders:
            history.record(border, entry, packed_of(tokens, border, codec, zstd))
    history.rows = entries[-1].after


async def check(history, borders=(0, 2), codec="int8"):
    for border in borders:
        assert history.known(border, history.rows) == history.rows
        for row in history.rows:
            if length(row):
                packed = await history.packed(border, runs_of(row, 0, length(row)))
                expected = packed_of(ids(row), border, codec)
                assert (packed.tensor, bytes(packed.payload)) == (expected.tensor, bytes(expected.payload))


@settings(deadline=None, max_examples=40)
@given(steps, st.sampled_from(["int8", "fp32", "bf16"]), st.sampled_from([1, 3000, 1 << 20]), st.booleans())
def test_rows_come_back_byte_for_byte_from_memory_and_from_the_file(plan, codec, bytes_max, zstd):
    async def body():
        storage = MemoryStorage()
        history = History(storage, HIDDEN, ROWS, bytes_max)
        for counts, sources, back, chunk in plan:
            if back is not None:
                ends = [int(part * end) for part, end in zip(back, lengths(history.rows), strict=True)]
                history.rows = tuple(shortened(row, end) for row, end in zip(history.rows, ends, strict=True))
            feed(history, counts, sources or (), codec=codec, chunk=chunk, zstd=zstd)
            await history.tidy()
            assert history.memory_bytes <= bytes_max
        await check(history, codec=codec)
        history.close()
        assert not storage.scratches
        assert history.memory_bytes == history.filed_bytes == 0

    trio.run(body, clock=MockClock(autojump_threshold=0))


async def test_what_is_rolled_back_is_forgotten_and_the_file_shrinks(monkeypatch):
    monkeypatch.setattr("p2pllm.client.replay.REPACK_BYTES", 10_000)
    storage = MemoryStorage()
    history = History(storage, HIDDEN, 1, 20_000)
    feed(history, (100,))
    for _ in range(300):
        feed(history, (20,))
        history.rows = (shortened(history.rows[0], 100),)
        await history.tidy()
        assert history.memory_bytes + history.filed_bytes < 2 * 1300 * 110
    assert sum(len(scratch.content) for scratch in storage.scratches) < 400_000
    await check(history)
    history.close()
    assert not storage.scratches


async def test_a_full_disk_is_told_and_loses_nothing():
    storage = MemoryStorage(quota_bytes=1000)
    history = History(storage, HIDDEN, 1, 500)
    feed(history, (30,))
    with pytest.raises(StorageError, match="disk full"):
        await history.tidy()
    await check(history)
    history.close()
    assert not storage.scratches


async def test_a_fork_shares_and_outlives_its_origin():
    storage = MemoryStorage()
    history = History(storage, HIDDEN, 2, 3000)
    feed(history, (20, 5))
    await history.tidy()
    fork = history.fork()
    feed(history, (3, 3))
    fork.rows = tuple(shortened(row, 4) for row in fork.rows)
    feed(fork, (7, 7))
    for one in (history, fork):
        await one.tidy()
        await check(one)
    history.close()
    feed(fork, (40, 0))
    await fork.tidy()
    await check(fork)
    assert len(storage.scratches) == 1
    fork.close()
    fork.close()
    assert not storage.scratches


async def test_gaps_are_known():
    history = History(MemoryStorage(), HIDDEN, 1, 1 << 20)
    feed(history, (5,))
    feed(history, (4,), borders=(0,))
    assert lengths(history.known(0, history.rows)) == (9,)
    assert lengths(history.known(2, history.rows)) == (5,)
    assert lengths(history.known(4, history.rows)) == (0,)
    with pytest.raises(LocalProtocolError, match="missing"):
        await history.packed(2, runs_of(history.rows[0], 0, 9))
    history.forget([0])
    assert history.borders == (2,)


async def test_recording_costs_next_to_nothing_and_keeps_no_foreign_buffer():
    history = History(MemoryStorage(), HIDDEN, 1, 1 << 24)
    big = memoryview(bytearray(1 << 20))
    entry = entries_of(cut((1,), 4), history.rows, (), number=0, token=0)[0]
    packed = packed_of([0], 0, "int8")
    big[:3] = b"abc"
    history.record(0, entry, Packed(packed.tensor, big[: packed.tensor.size]))
    assert history.memory_bytes == packed.tensor.size
