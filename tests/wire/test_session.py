"""The law that both automata share: tables, rows, and what strangers hear."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pllm.types import Priority
from p2pllm.wire import messages as m
from p2pllm.wire.session import (
    CLIENT,
    SERVER,
    Ended,
    HopPhase,
    Lost,
    ServerPhase,
    Table,
    advance,
    kept_tokens,
    no_session,
    priority_of,
)
from tests.wire.strategies import SESSION, tensor_of

PROTOCOL = Path(__file__).parent.parent.parent / "docs" / "protocol.md"


class TestTables:
    def test_every_phase_is_there_and_can_be_reached(self) -> None:
        for table, start, phases in ((SERVER, ServerPhase.ATTACHED, ServerPhase), (CLIENT, HopPhase.NEW, HopPhase)):
            assert set(table) == set(phases)
            seen = {start}
            for _ in phases:
                seen |= {to for phase in seen for to in table[phase].values()}
            assert seen == set(phases)

    def test_a_stream_may_be_lost_and_a_session_end_at_any_time(self) -> None:
        for table, over in ((SERVER, ServerPhase.ENDED), (CLIENT, HopPhase.OVER)):
            for moves in table.values():
                assert Lost in moves
                assert moves[Ended] is over

    def test_what_is_over_stays_over(self) -> None:
        assert set(SERVER[ServerPhase.ENDED].values()) == {ServerPhase.ENDED}
        assert set(CLIENT[HopPhase.OVER].values()) == {HopPhase.OVER}

    @pytest.mark.parametrize("table", [SERVER, CLIENT], ids=["server", "client"])
    def test_the_document_shows_this_table(self, table: Table) -> None:
        lines = PROTOCOL.read_text().splitlines()
        for phase, moves in table.items():
            groups: dict[str, list[str]] = {}
            for event, to in moves.items():
                groups.setdefault(to.value, []).append(event.__name__)
            shown = "; ".join(f"{', '.join(events)} → {to}" for to, events in groups.items())
            assert f"| {phase.value} | {shown} |" in lines


class TestRows:
    def test_sources_come_first_then_roll_back_then_new_tokens(self) -> None:
        assert advance((5, 2), (4, 5), (1, 2), (0, 0), 10) == (5, 7)
        assert advance((5, 2), (0, 2), (0, 1), (), 10) == (0, 3)

    @pytest.mark.parametrize(
        ("positions", "counts", "sources", "reason"),
        [
            ((6, 0), (1, 0), (), "row 0 continues at 6, but has 5 tokens"),
            ((0, 3), (0, 1), (), "row 1 continues at 3"),
            ((-1, 0), (1, 0), (), "continues at -1"),
            ((5, 0), (6, 0), (), "row 0 would have 11 tokens"),
            ((5, 0), (-1, 0), (), "would have 4"),
            ((5,), (1,), (), "1 rows in a session of 2"),
            ((5, 0), (1, 0), (0,), "rows that do not exist"),
            ((5, 0), (1, 0), (0, 2), "rows that do not exist"),
            ((5, 0), (1, 0), (0, -1), "rows that do not exist"),
        ],
    )
    def test_what_does_not_fit_is_refused(
        self, positions: tuple[int, ...], counts: tuple[int, ...], sources: tuple[int, ...], reason: str
    ) -> None:
        with pytest.raises(ValueError, match=reason):
            advance((5, 2), positions, counts, sources, 10)

    @given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.integers(-1, 12))
    def test_a_tail_keeps_what_there_is(self, counts: list[int], tail: int) -> None:
        expected = sum(len(range(count)[-tail:] if tail > 0 else range(count if tail < 0 else 0)) for count in counts)
        assert kept_tokens(tuple(counts), tail) == expected


def test_the_next_token_goes_first() -> None:
    assert priority_of(bytes(4096)) is Priority.STEP
    assert priority_of(memoryview(bytes(1 << 20)).cast("f")) is Priority.BULK


def test_without_a_session_steps_are_gone_and_closes_granted() -> None:
    step = m.Step(SESSION, 3, 7, (0,), (1,), tensor_of(1, 8))
    assert no_session(step) == m.Fault(m.FaultKind.GONE, "no such session here", SESSION, 3, 7)
    assert no_session(m.Attach(SESSION, 2)) == m.Fault(m.FaultKind.GONE, "no such session here", SESSION, 2)
    assert no_session(m.Close(SESSION)) == m.Closed(SESSION)
