"""Internet links between processes on one machine, with real sockets: see README.md.

Invariants: Linux and root only; real time, real processes, nothing of trio. Whatever a lab makes (namespaces,
processes, a forwarder) is gone when it is closed, also after an exception, Ctrl-C or SIGTERM.
"""

from sim.netlab.lab import Lab
from sim.netlab.tools import LabError

__all__ = ["Lab", "LabError"]
