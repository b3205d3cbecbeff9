"""Simulated ports for one host: what a node gets instead of the real world.

Invariants: production code above the ports runs unchanged; every generator is seeded by the world's seed, the host's
name and the purpose.
"""

from __future__ import annotations

from p2pllm.ports import Compute, Ports, Storage
from sim.compute import SimCompute
from sim.host import SimNetwork
from sim.network import SimWorld
from sim.storage import MemoryStorage


def sim_ports(
    world: SimWorld,
    name: str,
    *,
    network: SimNetwork | None = None,
    compute: Compute | None = None,
    storage: Storage | None = None,
) -> Ports:
    """The ports of host ``name``: of a new one, or of ``network`` where the host exists already."""
    return Ports(
        network=network or world.host(name),
        compute=compute or SimCompute(),
        storage=storage or MemoryStorage(),
        wall_time=lambda: world.wall_time(name),
        rng=world.rng(name, "rng"),
        token_bytes=world.rng(name, "tokens").randbytes,
    )
