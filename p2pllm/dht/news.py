"""What others should hear at once: a server's record that says more than that it is still there, and how busy it is.

Invariants: pure. The publisher and every reader decide alike, so that what is announced at once is also passed on.
"""

from __future__ import annotations

from p2pllm.dht.record import Announcement, Throughput, lasting

SPEED_CHANGE_MIN = 0.2
"""A server's speed has changed when it differs by this share: what traffic shows of it wavers."""


def tells_more(old: Announcement, new: Announcement) -> bool:
    """Whether ``new`` differs from ``old`` in more than load, pings and times."""
    return lasting(old) != lasting(new) or speeds_differ(old.throughput, new.throughput)


def speeds_differ(old: Throughput, new: Throughput) -> bool:
    """Whether a server has become faster or slower."""
    if old == new:
        return False
    pairs = ((old.inference, new.inference), (old.forward, new.forward), (old.network, new.network))
    return any(abs(a - b) > SPEED_CHANGE_MIN * max(a, b) for a, b in pairs)
