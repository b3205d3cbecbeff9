"""Kinds that misbehave, and the simulator's command with them: for tests of what finds them out."""

from __future__ import annotations

import os
import random
import signal
import sys
from dataclasses import dataclass
from typing import Literal

from sim import check
from sim.cli.main import main
from sim.events import saw
from sim.kinds import KINDS, Kind, Run
from sim.results import Outcome, Table, combined, gate

LETTERS = "abcdefgh"


@dataclass(frozen=True, slots=True)
class Params:
    """How to misbehave."""

    odd: Literal["", "faults", "crash", "hashing", "gate", "silent", "slow"] = ""
    from_seed: int = 0


def play(params: Params, how: Run) -> Outcome:
    """Well for the first seeds, oddly from one on."""
    odd = params.odd if how.seed >= params.from_seed else ""
    for at in range(3):
        told = os.environ["PYTHONHASHSEED"] if odd == "hashing" and at == 2 else ""
        saw(float(at), "step", "a", "b", told.encode())
    if odd == "slow":
        how.map(forever, range(4))
    if odd == "crash":
        raise ZeroDivisionError("by seed")
    drawn = tuple(random.Random(how.seed).sample(LETTERS, len(LETTERS)))
    faults = drawn if how.faults is None else how.faults
    violations = ("b and d met",) if odd == "faults" and {"b", "d"} <= set(faults) else ()
    mark = os.environ.get("PYTHONHASHSEED", "") if odd in ("hashing", "silent") else ""
    trace = combined([str(how.seed), mark if odd == "hashing" else ""])
    gates = (gate("rate", 1.0, 2.0 if odd == "gate" else 1.0, 0.05, "S"),)
    return Outcome((Table("t", ("mark",), ((mark,),)),), (), gates, (), (), trace, violations, faults)


def forever(job: int) -> None:
    """Tell that a worker is at it, and never come back."""
    print(os.getpid(), flush=True)
    while True:
        pass


KIND = Kind("odd", "misbehaves", Params, play)

if __name__ == "__main__":
    KINDS["odd"] = "tests.sim.odd_kinds:KIND"
    check.COMMAND = (sys.executable, "-m", "tests.sim.odd_kinds")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
