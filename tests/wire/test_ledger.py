"""The server's book of steps."""

from __future__ import annotations

import pytest

from p2pllm.wire import messages as m
from p2pllm.wire.ledger import ENTRIES_MAX, Entry, Ledger, digest_of, nbytes
from tests.wire.strategies import SESSION, tensor_of


def entry(number: int, cost: int = 10) -> Entry:
    step = m.Step(SESSION, 1, number, (number,), (1,), tensor_of(1, 8))
    return Entry(step, digest_of(b""), (number,), (number + 1,), 1, cost)


def answer(ledger: Ledger, number: int, payload: bytes = b"12345") -> None:
    found = ledger.find(number)
    assert found is not None
    ledger.answer(found, m.Answer(SESSION, 1, number, found.after, tensor_of(1, 8)), payload)


def filled(count: int, credit: int = 1000) -> Ledger:
    ledger = Ledger(credit)
    for number in range(count):
        ledger.accept(entry(number))
    return ledger


def test_steps_run_are_answered_and_acknowledged() -> None:
    ledger = filled(3)
    assert (ledger.next, ledger.computed, tuple(ledger.running)) == (3, -1, (0, 1, 2))
    answer(ledger, 0)
    answer(ledger, 1)
    assert (ledger.computed, tuple(ledger.running)) == (1, (2,))
    ledger.acknowledge(0)
    assert ledger.find(0) is None
    assert ledger.find(1) is not None
    assert ledger.find(3) is None


def test_credit_holds_bounds_first_and_sizes_later() -> None:
    ledger = filled(2, credit=20)
    assert not ledger.has_room(1)
    answer(ledger, 0)
    assert ledger.has_room(5)
    assert not ledger.has_room(6)
    ledger.acknowledge(0)
    assert ledger.has_room(10)
    ledger.renumber(0)
    assert ledger.has_room(20)


def test_the_number_of_answers_is_bounded() -> None:
    assert not filled(ENTRIES_MAX, credit=10**9).has_room(0)


def test_withdrawn_steps_leave_no_trace() -> None:
    ledger = filled(4)
    answer(ledger, 0)
    assert ledger.withdraw(1) == ((1,), (2, 3))
    assert (ledger.next, tuple(ledger.running)) == (1, ())
    ledger.accept(entry(1))
    assert ledger.has_room(1000 - 5 - 10)
    assert not ledger.has_room(1000 - 5 - 10 + 1)


def test_renumbering_tells_what_was_running() -> None:
    ledger = filled(3)
    answer(ledger, 0)
    assert ledger.renumber(57) == (1, 2)
    assert (ledger.next, ledger.computed, ledger.acked) == (57, 56, 56)


@pytest.mark.parametrize("payload", [bytes(8), bytearray(8), memoryview(bytes(8)), memoryview(bytes(8)).cast("f")])
def test_buffers_are_measured_in_bytes(payload: bytes | bytearray | memoryview) -> None:
    assert nbytes(payload) == 8
    assert digest_of(payload) == digest_of(bytes(8))
