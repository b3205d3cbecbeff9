"""The real arms of the ports that are not the network: compute threads, disk, clock, chance.

Invariants: the only place, beside the facades, where threads and the operating system's clock and randomness are used.
"""
