"""NAT kinds: who can dial whom, who must go through a relay, and which pairs punch through to a direct path.

A host behind a NAT keeps a reservation at a relay, and is dialled through it. Both ends then try to punch: they dial
each other at one moment, so that each NAT takes the other's packets for answers. That works where a NAT keeps the same
outer port for every destination, and fails where it does not (symmetric), unless the other end can simply be dialled.

Invariants: pure rules over kinds; nothing here knows hosts, streams or time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum


class Nat(Enum):
    """What stands between a host and the Internet."""

    PUBLIC = "public"
    """Nothing, or a port that its owner forwards."""
    FULL_CONE = "full-cone"
    """One outer port, open to everybody once the host itself has sent something."""
    PORT_RESTRICTED = "port-restricted"
    """One outer port, open only to those whom the host has sent something."""
    SYMMETRIC = "symmetric"
    """Another outer port for every destination: nobody can know it in advance."""


@dataclass(frozen=True, slots=True)
class RelayLimits:
    """What a relay does for others.

    Attributes:
        reservations_max: hosts that may be reached through it.
        circuits_max: relayed connections at once.
        circuit_s: a circuit is cut after so long.
        circuit_bytes: a circuit is cut after so many bytes, both directions together.
    """

    reservations_max: int = 128
    circuits_max: int = 64
    circuit_s: float = math.inf
    circuit_bytes: float = math.inf


def dialable(kind: Nat) -> bool:
    """Whether strangers can open a connection to a host that has itself contacted somebody."""
    return kind in (Nat.PUBLIC, Nat.FULL_CONE)


def punches(a: Nat, b: Nat) -> bool:
    """Whether two hosts that are connected through a relay get a direct path."""
    if dialable(a) or dialable(b):
        return True  # the other end dials it, now that it knows that it should
    return Nat.SYMMETRIC not in (a, b)
