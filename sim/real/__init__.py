"""Swarms of real processes between network namespaces: ``--stack real``.

Invariants: every process is a ``p2pllm`` command, or ``sim.real.client``, which runs the measuring code that the
simulated stacks run. Whatever happens, nothing is left of a swarm when its context is left, and everything is bounded.
"""
