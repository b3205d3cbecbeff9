"""The composition root: the one place where network, disk, threads, server and client meet.

``world`` builds the real ports; ``serving`` and ``using`` build a server and a client from any ports, so the simulator
runs them unchanged; ``local_swarm`` starts a whole swarm of processes on this machine.
"""
