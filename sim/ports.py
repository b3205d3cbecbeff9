"""Simulated ports for one host: what a node gets instead of the real world.

Invariants: production code above the ports runs unchanged; every generator is seeded by the world's seed, the host's
name and the purpose.
"""

from __future__ import annotations

from p2pllm.ports import Compute, Network, Ports, Storage
from sim.compute import SimCompute
from sim.network import SimWorld
from sim.storage import MemoryStorage
from sim.world import World


def sim_ports(
    world: World,
    name: str,
    *,
    network: Network | None = None,
    compute: Compute | None = None,
    storage: Storage | None = None,
) -> Ports:
    """The ports of host ``name``: of ``network``, or of a new one, which a world on ports makes without waiting."""
    if network is None:
        assert isinstance(world, SimWorld), "start the host, and hand it over"
        network = world.host(name)
    return Ports(
        network=network,
        compute=compute or SimCompute(),
        storage=storage or MemoryStorage(),
        wall_time=lambda: world.wall_time(name),
        rng=world.rng(name, "rng"),
        token_bytes=world.rng(name, "tokens").randbytes,
    )
