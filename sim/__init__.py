"""The simulator: the production node over simulated ports, in virtual time.

Invariants: imports anything of p2pllm, and nothing of p2pllm imports it; it swaps the ports and nothing else.
"""

from sim.network import SimWorld as SimWorld
from sim.ports import sim_ports as sim_ports
from sim.run import run as run
