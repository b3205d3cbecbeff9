"""``python -m sim``: see ``sim.cli.main``."""

import signal
import sys

from sim.cli.main import main

if __name__ == "__main__":
    # To end politely is to end like Ctrl-C: with all processes that were started.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
