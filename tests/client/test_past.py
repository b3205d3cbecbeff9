from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from p2pllm.client.chunks import cut
from p2pllm.client.past import (
    Tokens,
    common,
    covering,
    entries_of,
    length,
    lengths,
    replay_of,
    runs_of,
    shortened,
)  # fmt: skip

ROWS = 3

steps = st.lists(
    st.tuples(
        st.lists(st.integers(0, 5), min_size=ROWS, max_size=ROWS).filter(any),
        st.none() | st.lists(st.integers(0, ROWS - 1), min_size=ROWS, max_size=ROWS),
        st.none() | st.lists(st.floats(0, 1), min_size=ROWS, max_size=ROWS),
        st.integers(1, 7),
    ),
    max_size=8,
)


def ids(row) -> list[int]:
    return [first + i for first, count in runs_of(row, 0, length(row)) for i in range(count)]


def walk(plan):
    """All states of a session, as rows and as lists of numbers; each step is checked on its way."""
    rows, plain, number, token = (None,) * ROWS, [[] for _ in range(ROWS)], 0, 0
    states = [(rows, plain)]
    for counts, sources, back, chunk in plan:
        if back is not None:
            ends = [int(part * length(row)) for part, row in zip(back, rows, strict=True)]
            rows = tuple(shortened(row, end) for row, end in zip(rows, ends, strict=True))
            plain = [text[:end] for text, end in zip(plain, ends, strict=True)]
            states.append((rows, plain))
        entries = entries_of(cut(counts, chunk), rows, tuple(sources or ()), number=number, token=token)
        plain = [list(plain[source]) for source in sources] if sources else [list(text) for text in plain]
        held = [list(text) for text in plain]
        for entry in entries:
            fresh = iter([first + i for first, count in entry.runs for i in range(count)])
            for row, count in enumerate(entry.counts):
                assert entry.positions[row] == len(held[row])
                held[row] += [next(fresh) for _ in range(count)]
            assert next(fresh, None) is None
        number += len(entries)
        token += sum(counts)
        rows = entries[-1].after
        assert [ids(row) for row in rows] == held
        assert all(new[: len(old)] == old for new, old in zip(held, plain, strict=True))
        plain = held
        states.append((rows, plain))
    return states


@settings(deadline=None, max_examples=150)
@given(steps)
def test_rows_are_what_the_steps_made_of_them(plan):
    walk(plan)


@settings(deadline=None, max_examples=150)
@given(steps)
def test_any_two_rows_of_all_times_can_be_compared(plan):
    rows = [pair for state in walk(plan) for pair in zip(*state, strict=True)]
    for one, mine in rows:
        for two, theirs in rows:
            shared = next((i for i, (a, b) in enumerate(zip(mine, theirs, strict=False)) if a != b), None)
            assert common(one, two) == (min(len(mine), len(theirs)) if shared is None else shared)


@settings(deadline=None, max_examples=150)
@given(steps, st.integers(0, 99), st.integers(0, 99), st.integers(1, 6))
def test_a_replay_turns_any_state_into_any_other(plan, first, second, chunk):
    states = walk(plan)
    held, caches = states[first % len(states)]
    wanted, expected = states[second % len(states)]
    _, known = covering(held, wanted)
    missing = [end - there for end, there in zip(lengths(wanted), known, strict=True)]
    picks, _ = covering(held, wanted)
    caches = [list(text) for text in caches]
    entries = replay_of(cut(missing, chunk, 0), held, wanted)
    if not entries:  # the next step gathers the rows
        caches = [caches[pick] for pick in picks]
    for entry in entries:
        if entry.sources:
            caches = [list(caches[source]) for source in entry.sources]
        fresh = iter([first + i for first, count in entry.runs for i in range(count)])
        for row, count in enumerate(entry.counts):
            assert entry.positions[row] <= len(caches[row])
            caches[row] = caches[row][: entry.positions[row]] + [next(fresh) for _ in range(count)]
    assert [cache[: len(text)] for cache, text in zip(caches, expected, strict=True)] == expected


def test_a_row_of_many_tokens_is_let_go_without_recursion():
    row = None
    for position in range(200_000):
        row = Tokens(row, position, position, 1)
    assert length(row) == 200_000
    assert len(runs_of(row, 0, 200_000)) == 200_000
    del row
