"""What is left of a failing schedule fails, cannot lose an event, and is found with few runs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.disorder import Fault, in_order, schedule_of
from sim.shrink import ddmin, shrink, simpler_events
from tests.sim.test_disorder import events

items = st.lists(st.integers(0, 30), unique=True, min_size=1, max_size=24)


@given(items, st.data())
def test_ddmin_leaves_exactly_what_has_to_be_there(found, data):
    needed = set(data.draw(st.lists(st.sampled_from(found), unique=True, max_size=4)))
    assert set(ddmin(found, lambda part: needed <= set(part))) == needed


@given(items, st.data())
def test_ddmin_is_1_minimal_whatever_fails(found, data):
    """Also where failing is not monotonous: more events may hide what fewer show."""
    salt = data.draw(st.integers(0, 1000))

    def fails(part):
        return part == tuple(found) or hash((salt, part)) % 3 == 0

    left = ddmin(found, fails)
    assert fails(left)
    assert list(left) == [item for item in found if item in left]
    if left:
        assert not any(fails(left[:i] + left[i + 1 :]) for i in range(len(left)))


def test_ddmin_needs_something_that_fails():
    with pytest.raises(ValueError, match="nothing fails"):
        ddmin((1, 2, 3), lambda part: False)
    assert ddmin((1, 2, 3), lambda part: True) == ()


def test_twenty_events_of_which_one_matters_take_few_runs():
    asked = []

    def fails(part):
        asked.append(part)
        return 13 in part

    assert ddmin(range(20), fails) == (13,)
    assert len(asked) < 20


@given(st.lists(events(), min_size=1, max_size=12), st.data())
def test_a_shrunk_schedule_fails_and_is_1_minimal(found, data):
    schedule = in_order(found)
    culprit = data.draw(st.sampled_from(schedule))

    def fails(candidate):
        return any(
            event.kind is culprit.kind and event.target == culprit.target and event.at_s >= culprit.at_s / 2
            for event in candidate
        )

    (left,) = shrink(schedule, fails)
    assert fails((left,))
    assert left.amount is None
    assert left.for_s is None or left.for_s <= 0.5 or left.for_s == culprit.for_s or left in schedule
    assert not any(fails((simpler,)) for simpler in simpler_events(left))


@given(events())
def test_simplifying_an_event_ends(event):
    seen = {event}
    for _ in range(200):
        simpler = next(iter(simpler_events(event)), None)
        if simpler is None:
            return
        assert simpler not in seen
        seen.add(simpler)
        event = simpler
    raise AssertionError("it goes on for ever")


def test_a_pair_that_must_come_together_survives():
    schedule = schedule_of(
        ["slow@1.234=s1+30*4 crash@7.891=s0+12.5 hang@9=s2 crash@9.9876=s3 lag@10=s1+3 restart@11=s1 flap@12=s2+60"]
    )

    def fails(candidate):
        crashed = [event for event in candidate if event.kind is Fault.CRASH]
        return {event.target for event in crashed} == {"s0", "s3"} and crashed[0].at_s >= 7

    assert shrink(schedule, fails) == schedule_of(["crash@8=s0+0.5 crash@10=s3"])
