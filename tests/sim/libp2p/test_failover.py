"""A generation over real Noise, yamux and streams goes on as if nothing had happened; every other moment is played on
ports (``tests/failover``)."""

from __future__ import annotations

import pytest

from sim.failover import Case, Outcome, play
from sim.faults import FaultAt, Mishap

NEW_TOKENS = 6


def case(*faults: FaultAt, push: bool = False, stack: str = "libp2p") -> Case:
    return Case(faults=faults, push=push, new_tokens=NEW_TOKENS, stack=stack)


def messages(outcome: Outcome) -> list[tuple[str, str, str]]:
    """All of them; those of one moment leave in any order."""
    return sorted((seen.source, seen.target, seen.kind) for seen in outcome.seen)


@pytest.fixture(scope="module", params=[False, True], ids=["relay", "push"])
def undisturbed(request) -> tuple[bool, Outcome]:
    return request.param, play(case(push=request.param))


def test_an_undisturbed_generation_is_the_same_on_both_stacks(undisturbed):
    push, outcome = undisturbed
    ports = play(case(push=push, stack="ports"))
    assert outcome.error is None
    assert outcome.tokens == ports.tokens
    assert messages(outcome) == messages(ports)
    assert outcome.took_s == pytest.approx(ports.took_s, rel=0.05)


@pytest.mark.parametrize("index", [9, 20, 33])
@pytest.mark.parametrize("mishap", list(Mishap), ids=lambda mishap: mishap.value)
def test_a_generation_survives(undisturbed, mishap, index):
    push, expected = undisturbed
    outcome = play(case(FaultAt(mishap, index), push=push))
    assert [str(fault) for fault, _ in outcome.struck] == [f"{mishap.value}@{index}"]
    assert (outcome.tokens, outcome.error) == (expected.tokens, None)


def test_its_command_plays_it_on_the_same_stack():
    command = case(FaultAt(Mishap.KILL, 3)).command()
    assert command == f"python -m sim failover kill@3 --stack libp2p --new-tokens {NEW_TOKENS}"
