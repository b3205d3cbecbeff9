"""The real clock and real chance, as ``ports.Ports`` wants them.

Invariants: everything above the ports takes these as arguments; only this module touches the system's own.
"""

from __future__ import annotations

import random
import secrets
import time


def wall_time() -> float:
    """Seconds since 1970 by this machine's clock, right or wrong; only for signed timestamps."""
    return time.time()


def token_bytes(count: int) -> bytes:
    """Unpredictable bytes for session ids, nonces and seeds."""
    return secrets.token_bytes(count)


def new_rng() -> random.Random:
    """A generator with a fresh seed, for jitter and sampling of peers; never for secrets."""
    return random.Random(secrets.randbits(128))
