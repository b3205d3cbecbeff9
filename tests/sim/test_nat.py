"""sim.nat: the table of kinds."""

from __future__ import annotations

import pytest

from sim.nat import Nat, dialable, punches


def test_who_can_be_dialled():
    assert [kind for kind in Nat if dialable(kind)] == [Nat.PUBLIC, Nat.FULL_CONE]


@pytest.mark.parametrize("a", Nat, ids=lambda kind: kind.value)
@pytest.mark.parametrize("b", Nat, ids=lambda kind: kind.value)
def test_who_punches_through(a, b):
    hopeless = {(Nat.SYMMETRIC, Nat.SYMMETRIC), (Nat.SYMMETRIC, Nat.PORT_RESTRICTED)}
    assert punches(a, b) == punches(b, a) == ((a, b) not in hopeless and (b, a) not in hopeless)
