"""An event is its text, both ways, and what is none is answered in one line."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pllm.errors import UserError
from sim.disorder import NATURES, Event, Fault, check_names, in_order, schedule_of, texts_of

names = st.sampled_from(["s0", "client", "eu-3", "a.b", "s1'"])
seconds = st.floats(0, 1e6, allow_nan=False)


@st.composite
def events(draw: st.DrawFn) -> Event:
    kind = draw(st.sampled_from(list(Fault)))
    nature = NATURES[kind]
    groups = draw(st.lists(st.lists(names, min_size=1, max_size=3).map("&".join), min_size=1, max_size=3))
    target = "|".join(groups) if kind is Fault.PARTITION else draw(names)
    for_s = draw(st.none() | st.floats(1e-6, 1e6)) if nature.lasts else None
    low, high = max(nature.low, -1e6), min(nature.high, 1e6)
    amount = draw(st.none() | st.floats(low, high)) if nature.amount else None
    return Event(draw(seconds), kind, target, for_s, amount)


@given(events())
def test_an_event_is_its_text(event):
    assert Event.parse(str(event)) == event


@given(st.lists(events(), max_size=5))
def test_a_schedule_is_its_texts_in_order(found):
    schedule = in_order(found)
    assert schedule_of(texts_of(schedule)) == schedule
    assert schedule_of([" ".join(texts_of(schedule))]) == schedule
    assert [event.at_s for event in schedule] == sorted(event.at_s for event in found)


def test_texts_that_users_type():
    slow = Event.parse("slow@10=s2+30*4")
    assert (slow.at_s, slow.kind, slow.target, slow.for_s, slow.amount) == (10, Fault.SLOW, "s2", 30, 4)
    assert slow.ends_s == 40
    split = Event.parse("partition@40=s0&s1|s2+15")
    assert split.groups == (("s0", "s1"), ("s2",))
    assert split.hosts == ("s0", "s1", "s2")
    crash = Event.parse("crash@12.5=s3")
    assert crash.ends_s == math.inf
    assert Event.parse("clock_jump@1=s0*-3600").much == -3600
    assert Event.parse("flaky@1=s0").much == NATURES[Fault.FLAKY].usual
    assert Event.parse("restart@7=s0").ends_s == 7


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("earthquake@3=s0", "there is no fault 'earthquake'; there are: crash, restart"),
        ("crash=s0", "KIND@SECONDS=HOST"),
        ("crash@x=s0", "KIND@SECONDS=HOST"),
        ("restart@3=s0+5", "restart has no duration"),
        ("crash@3=s0*5", "crash takes no amount"),
        ("slow@3=s0*0.5", "between 1 and inf, not 0.5"),
        ("flaky@3=s0*1.5", "between 0 and 0.9"),
        ("hang@3=s0+0", "more than 0 s"),
        ("hang@-3=s0", "no moment"),
        ("hang@3=s0&s1", "one host"),
    ],
)
def test_what_is_no_event_is_told_in_one_line(text, complaint):
    with pytest.raises(UserError) as caught:
        schedule_of([text])
    assert complaint in str(caught.value)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_who_is_not_there_is_named():
    schedule = schedule_of(["crash@1=s0", "partition@2=s0&s7|s1"])
    check_names(schedule, ["s0", "s1", "s7"])
    with pytest.raises(UserError, match=r"partition@2=s0&s7\|s1: there is no host 's7'; there are: s0, s1"):
        check_names(schedule, ["s0", "s1"])
