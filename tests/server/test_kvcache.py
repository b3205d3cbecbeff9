"""Pages are never lost, never shared, and those who wait are served in order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from p2pllm.server.kvcache import KVCache, Reservation, continue_rows


def test_reserves_whole_pages_in_one_run():
    cache = KVCache(pages=10, page_tokens=16)
    reservation = cache.ask("a", rows=2, length=33)
    assert reservation is not None
    assert reservation.rows == [(0, 1, 2), (3, 4, 5)]
    assert cache.tokens_free == 4 * 16


def test_prefers_the_tightest_run_and_else_the_fewest_runs():
    cache = KVCache(pages=12, page_tokens=1)
    for owner, length in (("a", 3), ("b", 1), ("c", 2), ("d", 1), ("e", 4), ("f", 1)):
        cache.ask(owner, 1, length)
    for owner in "ace":
        cache.release(owner)
    tight = cache.ask("g", 1, 2)
    assert tight is not None
    assert tight.rows == [(4, 5)]
    split = cache.ask("h", 1, 6)
    assert split is not None
    assert split.rows == [(7, 8, 9, 10, 0, 1)]
    cache.check_integrity()


def test_waits_in_line_first_come_first_served():
    cache = KVCache(pages=4, page_tokens=16)
    assert cache.ask("a", 1, 48) is not None
    assert cache.ask("big", 1, 64) is None
    assert cache.ask("small", 1, 16) is None, "a page is free, but big came first"
    assert cache.waiting == 2
    assert [r.owner for r in cache.release("a")] == ["big"]
    assert [r.owner for r in cache.release("big")] == ["small"]


def test_leaving_the_line_lets_the_next_one_in():
    cache = KVCache(pages=4, page_tokens=16)
    cache.ask("a", 1, 48)
    cache.ask("big", 1, 64)
    cache.ask("small", 1, 16)
    assert [r.owner for r in cache.release("big")] == ["small"]
    assert cache.release("nobody") == []


def test_pinned_pages_return_when_the_pass_ends():
    cache = KVCache(pages=2, page_tokens=16)
    held = cache.ask("a", 1, 32)
    assert held is not None
    cache.pin(held)
    assert cache.ask("b", 1, 16) is None
    assert cache.release("a") == []
    cache.check_integrity()
    assert [r.owner for r in cache.unpin(held)] == ["b"]
    cache.check_integrity()


@pytest.mark.parametrize(("rows", "length"), [(1, 65), (5, 1), (0, 4), (1, 0)])
def test_what_can_never_fit_is_refused(rows: int, length: int):
    with pytest.raises(ValueError, match="do not fit"):
        KVCache(pages=4, page_tokens=16).ask("a", rows, length)


def test_asking_twice_is_refused():
    cache = KVCache(pages=4, page_tokens=16)
    cache.ask("a", 1, 1)
    with pytest.raises(ValueError, match="asked already"):
        cache.ask("a", 1, 1)


@pytest.mark.parametrize(
    ("sources", "plan", "copies"),
    [
        ((0, 1, 2), "abc", []),
        ((2, 0, 1), "cab", []),
        ((0, 0, 0), "abc", [(0, 1), (0, 2)]),
        ((1, 1, 2), "abc", [(1, 0)]),
        ((2, 2, 0), "cba", [(2, 1)]),
    ],
)
def test_rows_continue_rows(sources: tuple[int, ...], plan: str, copies: list[tuple[int, int]]):
    rows = [(ord(name),) for name in "abc"]
    got, made = continue_rows(rows, sources)
    assert got == [(ord(name),) for name in plan]
    assert made == copies


@given(st.data())
def test_continued_rows_hold_their_sources(data: st.DataObject):
    count = data.draw(st.integers(1, 8))
    sources = data.draw(st.lists(st.integers(0, count - 1), min_size=count, max_size=count))
    rows = [(10 * row, 10 * row + 1) for row in range(count)]
    plan, copies = continue_rows(rows, sources)
    assert sorted(plan) == rows, "every row has pages of its own"
    held = {pages: pages[0] // 10 for pages in rows}
    written = {plan[to] for _, to in copies}
    for source, to in copies:
        assert rows[source] not in written, "a copy would read what another one writes"
        held[plan[to]] = source
    assert [held[pages] for pages in plan] == sources


class CacheMachine(RuleBasedStateMachine):
    """Random clients of one cache; after every move the books balance."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = KVCache(pages=20, page_tokens=4)
        self.held: dict[int, Reservation] = {}
        self.line: list[int] = []
        self.pinned: list[Reservation] = []
        self.next = 0

    def granted(self, reservations: list[Reservation]) -> None:
        assert [r.owner for r in reservations] == self.line[: len(reservations)]
        del self.line[: len(reservations)]
        self.held.update({r.owner: r for r in reservations})  # type: ignore[misc]

    @rule(rows=st.integers(1, 3), length=st.integers(1, 24))
    def ask(self, rows: int, length: int) -> None:
        self.next += 1
        got = self.cache.ask(self.next, rows, length)
        if got is None:
            self.line.append(self.next)
        else:
            assert not self.line
            assert [len(row) * 4 >= length for row in got.rows] == [True] * rows
            self.held[self.next] = got

    @precondition(lambda self: self.held or self.line)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        owner = data.draw(st.sampled_from([*self.held, *self.line]))
        self.held.pop(owner, None)
        if owner in self.line:
            self.line.remove(owner)
        self.granted(self.cache.release(owner))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def pin(self, data: st.DataObject) -> None:
        reservation = self.held[data.draw(st.sampled_from(list(self.held)))]
        self.cache.pin(reservation)
        self.pinned.append(reservation)

    @precondition(lambda self: self.pinned)
    @rule()
    def unpin(self) -> None:
        self.granted(self.cache.unpin(self.pinned.pop()))

    @invariant()
    def balanced(self) -> None:
        self.cache.check_integrity()


TestCacheMachine = CacheMachine.TestCase
