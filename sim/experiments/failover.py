"""Kind "failover": one generation on the toy with faults at chosen messages; its tokens must be the undisturbed ones.

Invariants: faults, where the scenario names none, follow from the seed; everything else is ``sim.failover``.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from typing import Literal

from p2pllm.errors import UserError
from sim.failover import HOPS_AND_SPARES, NEW_TOKENS, Case, play
from sim.failover import Outcome as Played
from sim.faults import FaultAt, Mishap
from sim.kinds import Kind, Run
from sim.results import Gate, Outcome, Table, combined, gate

Word = Literal["kill", "hang", "freeze", "reset", "corrupt", "lie", "gone", "internal", "busy"]

LASTING = ("kill", "hang")
"""What a server does not come back from."""


@dataclass(frozen=True, slots=True)
class Params:
    """A generation and what disturbs it."""

    mishaps: tuple[Word, ...] = field(
        default=("kill", "hang", "reset", "corrupt", "lie", "gone", "internal", "busy"),
        metadata={"about": "what may happen when the seed chooses; no more kills and hangs than there are spares"},
    )
    count: int = field(default=3, metadata={"min": 0, "max": 100, "about": "how many faults the seed chooses"})
    faults: tuple[str, ...] = field(
        default=(),
        metadata={"about": "these faults instead, such as kill@37 or hang@40s (s: the sender is the victim)"},
    )
    push: bool = field(default=True, metadata={"about": "servers send their outputs straight to the next one"})
    spans: tuple[tuple[int, int], ...] = field(
        default=HOPS_AND_SPARES, metadata={"about": "one server each: first block and the block after its last"}
    )
    activations: Literal["fp32", "fp16", "bf16", "int8"] = "fp32"
    new_tokens: int = field(default=NEW_TOKENS, metadata={"min": 1, "max": 200})
    pass_ms: float = field(default=10.0, metadata={"min": 0.0, "max": 60_000.0, "about": "of every pass"})


def run(params: Params, how: Run) -> Outcome:
    """Play the generation undisturbed, then with its faults."""
    case = Case(
        push=params.push, spans=params.spans, activations=params.activations, seed=how.seed,
        new_tokens=min(params.new_tokens, 12) if how.quick else params.new_tokens, pass_s=params.pass_ms / 1000,
    )  # fmt: skip
    how.progress("undisturbed", 0, 2)
    expected = play(case)
    texts = params.faults if how.faults is None else how.faults
    faults = parsed(texts) if texts or how.faults is not None else drawn(params, len(expected.seen), how.seed)
    how.progress("with faults", 1, 2)
    played = play(replace(case, faults=faults))
    how.progress("with faults", 2, 2)
    right = played.tokens == expected.tokens
    return Outcome(
        tables=(_struck(played), _compared(expected, played)),
        plots=(),
        gates=_gates(expected, played),
        results=(_result(expected, played, right),),
        notes=(f"One case alone: {replace(case, faults=faults).command()}",),
        trace_hash=combined([expected.trace, played.trace]),
        violations=() if right else (f"tokens differ from the undisturbed ones: {played.error or 'silently'}",),
        faults=tuple(map(str, faults)),
    )


def drawn(params: Params, messages: int, seed: int) -> tuple[FaultAt, ...]:
    """Faults at distinct messages of the undisturbed run, in order; no more lasting ones than there are spares."""
    rng = random.Random(f"{seed}/failover")
    moments = sorted(rng.sample(range(messages), min(params.count, messages)))
    lasting = spares(params.spans)
    faults = []
    for moment in moments:
        words = [word for word in params.mishaps if lasting or word not in LASTING]
        if words:
            fault = FaultAt(Mishap(rng.choice(words)), moment, rng.random() < 0.5)
            lasting -= fault.mishap.value in LASTING
            faults.append(fault)
    return tuple(faults)


def spares(spans: tuple[tuple[int, int], ...]) -> int:
    """How many servers may be lost, whichever they are."""
    blocks = range(max(end for _, end in spans))
    return max(0, min(sum(start <= block < end for start, end in spans) for block in blocks) - 1)


def parsed(texts: tuple[str, ...]) -> tuple[FaultAt, ...]:
    """Faults from their texts.

    Raises:
        UserError: one of them is none.
    """
    found = []
    for text in texts:
        try:
            found.append(FaultAt.parse(text))
        except ValueError as error:
            kinds = ", ".join(mishap.value for mishap in Mishap)
            raise UserError(f"fault {text!r} is not KIND@MESSAGE, such as kill@37; kinds: {kinds}") from error
    return tuple(found)


def _struck(played: Played) -> Table:
    rows = []
    for fault, victim in played.struck:
        message = played.seen[fault.index]
        rows.append((str(fault), message.kind, message.source, message.target, victim))
    return Table("What happened", ("fault", "message", "from", "to", "victim"), tuple(rows))


def _compared(expected: Played, played: Played) -> Table:
    columns = ("run", "tokens", "virtual s", "messages", "recoveries", "blamed", "error")
    rows = tuple(
        (
            name, len(one.tokens), one.took_s, len(one.seen), one.recoveries, ", ".join(sorted(one.blamed)),
            str(one.error or ""),
        )
        for name, one in (("undisturbed", expected), ("with faults", played))
    )  # fmt: skip
    return Table("The generation", columns, rows)


def _gates(expected: Played, played: Played) -> tuple[Gate, ...]:
    lost = len(expected.tokens) - sum(a == b for a, b in zip(expected.tokens, played.tokens, strict=False))
    return (gate("tokens lost or wrong", lost, 0, 0.0, "ours"),)


def _result(expected: Played, played: Played, right: bool) -> dict[str, object]:
    return {
        "equal": right,
        "tokens": list(played.tokens),
        "recoveries": played.recoveries,
        "blamed": sorted(played.blamed),
        "took_s": played.took_s,
        "undisturbed_s": expected.took_s,
    }


KIND = Kind("failover", "one generation with faults at chosen messages: the tokens must not change", Params, run)
