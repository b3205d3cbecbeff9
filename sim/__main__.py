"""``python -m sim <scenario> ...``: one entry per scenario."""

from __future__ import annotations

import sys

from sim import failover

SCENARIOS = {"failover": failover.main}

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in SCENARIOS:
        sys.exit(f"usage: python -m sim {{{','.join(SCENARIOS)}}} ...")
    sys.exit(SCENARIOS[sys.argv[1]](sys.argv[2:]))
