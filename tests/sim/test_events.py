"""Events are recorded only while somebody wants them, and the first difference of two recordings is found."""

from __future__ import annotations

from sim.events import Difference, first_difference, recording, saw


def test_events_are_recorded_up_to_a_limit():
    lines = []
    saw(0.0, "before", "a", "b", b"")
    with recording(lines.append, limit=2):
        for at in range(3):
            saw(at / 2, "send", "a", "b", b"xy")
    saw(9.0, "after", "a", "b", b"")
    assert [line.rsplit(" ", 1)[0] for line in lines] == [
        "0.000000000 s send a->b 2 bytes", "0.500000000 s send a->b 2 bytes",
    ]  # fmt: skip


def test_other_bytes_are_another_event():
    lines = []
    with recording(lines.append):
        saw(0.0, "send", "a", "b", b"x")
        saw(0.0, "send", "a", "b", b"y")
    assert lines[0] != lines[1]


def test_the_first_difference_is_found():
    assert first_difference("abc", "abc") is None
    assert first_difference("abc", "axc") == Difference(1, "b", "x")
    found = first_difference("ab", "abc")
    assert found == Difference(2, None, "c")
    assert str(found) == "event 2:\n  nothing more\n  c"
