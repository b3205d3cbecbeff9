"""libp2p's loggers, made quiet: what matters to a user is said by us, in one line.

Invariants: imported before anything of libp2p. ``LIBP2P_DEBUG`` (libp2p's own switch) turns its logs on again.
"""

from __future__ import annotations

import logging
import os
import warnings


def quiet() -> None:
    """Silence libp2p's loggers, and the one module of it that logs through (and so configures) the root logger."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import libp2p  # noqa: F401  (its import configures logging, so ours must come after)
        from libp2p.network.connection import swarm_connection
    own = logging.getLogger("libp2p")
    # the same method names, without the module functions' logging.basicConfig
    vars(swarm_connection)["logging"] = own.getChild("network.connection")
    if not os.environ.get("LIBP2P_DEBUG"):
        own.handlers = [logging.NullHandler()]
        own.setLevel(logging.CRITICAL + 1)
