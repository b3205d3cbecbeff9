"""One generation on the toy, with faults at chosen messages: does the text go on as if nothing had happened?

The tests play every message and every fault; a case that fails there is repeated alone by the line that they print:

    python -m sim failover kill@37 --push

Invariants: a case is a value, and its outcome follows from it alone, bit for bit.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace

import trio

from p2pllm.config import Config
from p2pllm.errors import SwarmError
from sim.faults import FaultAt, Injector, Seen
from sim.run import run
from sim.stacks import open_world
from sim.swarm import Blocks, open_swarm
from sim.toy import ToyModel

PROMPT = (11, 7, 5, 3, 2, 200, 100, 50, 25, 12)
NEW_TOKENS = 24
PATIENCE_S = 60.0
LATENCY_S = 0.02
TOO_LONG_S = 400.0
"""Virtual seconds after which a generation counts as hanging: every deadline on its way is far shorter."""
HOPS_AND_SPARES = ((0, 1), (1, 2), (2, 3), (0, 1), (1, 2), (2, 3))
OTHER_BORDERS = ((0, 2), (2, 4), (4, 6), (0, 3), (1, 5), (3, 6))
"""No single spare replaces a server, and none has the chain's borders."""

_models: dict[int, ToyModel] = {}


@dataclass(frozen=True, slots=True)
class Case:
    """A generation to be played.

    Attributes:
        push: outputs go straight to the next hop.
        spans: one server each.
        activations: codec.
        seed: of the world, and of trio's scheduling.
        pass_s: virtual seconds of every pass.
        stack: of the world, ``ports`` or ``libp2p``.
    """

    faults: tuple[FaultAt, ...] = ()
    push: bool = False
    spans: tuple[tuple[int, int], ...] = HOPS_AND_SPARES
    activations: str = "fp32"
    seed: int = 0
    new_tokens: int = NEW_TOKENS
    prompt: tuple[int, ...] = PROMPT
    pass_s: float = 0.0
    stack: str = "ports"

    def command(self) -> str:
        """The line that plays this case alone."""
        words = ["python -m sim failover", *map(str, self.faults)]
        words += ["--push"] * self.push
        words += [f"--activations {self.activations}"] * (self.activations != "fp32")
        words += [f"--seed {self.seed}"] * bool(self.seed)
        words += [f"--pass-s {self.pass_s:g}"] * bool(self.pass_s)
        words += [f"--stack {self.stack}"] * (self.stack != "ports")
        words += [f"--new-tokens {self.new_tokens}"] * (self.new_tokens != NEW_TOKENS)
        if self.spans != HOPS_AND_SPARES:
            words.append("--spans " + ",".join(f"{start}:{end}" for start, end in self.spans))
        return " ".join(words)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a case.

    Attributes:
        tokens: as far as they came.
        error: what ended it early, if anything did.
        struck: the faults that happened, and the names of their victims.
        blamed: servers that the client counts a failure of.
        took_s: virtual seconds.
        seen: every message.
        trace: hash of all that happened.
    """

    tokens: tuple[int, ...]
    error: SwarmError | None
    struck: tuple[tuple[FaultAt, str], ...]
    blamed: frozenset[str]
    recoveries: int
    took_s: float
    seen: tuple[Seen, ...]
    trace: str


def config_of(case: Case) -> Config:
    """The settings of a case: what users get, but exact, and so small that a prompt is several chunks."""
    base = Config()
    client = replace(
        base.client, activations=case.activations, exact=True, prefill_chunk_tokens=4, patience_s=PATIENCE_S,
        push="on" if case.push else "off",
    )  # fmt: skip
    return replace(base, server=replace(base.server, cache_tokens=256), client=client)


def toy(blocks: int) -> ToyModel:
    """The toy of so many blocks, made once."""
    if blocks not in _models:
        _models[blocks] = ToyModel(blocks)
    return _models[blocks]


def play(case: Case, blocks: Blocks | None = None) -> Outcome:
    """Play ``case`` in virtual time."""
    model = blocks or toy(max(end for _, end in case.spans))
    return run(lambda: _play(case, model), case.seed)


async def _play(case: Case, model: Blocks) -> Outcome:
    tokens: list[int] = []
    error: SwarmError | None = None
    config = config_of(case)
    async with AsyncExitStack() as stack:
        world = await stack.enter_async_context(open_world(case.stack, case.seed, config.net))
        world.links.set_default(latency_s=LATENCY_S)
        opened = open_swarm(model, case.spans, config, seed=case.seed, pass_s=case.pass_s, world=world)
        swarm = await stack.enter_async_context(opened)
        client = await stack.enter_async_context(swarm.client())
        injector = Injector(swarm, case.faults)
        recoveries = 0
        began = trio.current_time()
        with trio.move_on_after(TOO_LONG_S) as patience:
            try:
                generation = client.model.stream([list(case.prompt)], max_new_tokens=case.new_tokens)
                async for piece in generation:
                    tokens += piece.ids
                recoveries = generation.result().recoveries
            except SwarmError as exc:
                error = exc
        if patience.cancelled_caught:
            error = SwarmError(f"nothing came for {TOO_LONG_S:g} s")
        took_s = trio.current_time() - began
        blamed = [
            server.name
            for known in client.peers.statistics(trio.current_time())
            if known.failures and (server := swarm.by_peer(known.peer)) is not None
        ]
        trace = swarm.world.trace_hash()
        swarm.world.tap = None
    return Outcome(
        tuple(tokens), error, tuple(injector.struck), frozenset(blamed), recoveries, took_s, tuple(injector.seen), trace
    )  # fmt: skip


def main(words: Sequence[str]) -> int:
    """Play one case and tell what came of it; 1 when the text is not that of an undisturbed run."""
    parser = argparse.ArgumentParser(prog="python -m sim failover", description=play.__doc__)
    parser.add_argument("faults", nargs="*", type=FaultAt.parse, help="such as kill@37; 40s: the sender of message 40")
    parser.add_argument("--push", action="store_true", help="servers send their outputs straight to the next one")
    parser.add_argument("--activations", default="fp32")
    parser.add_argument("--spans", help="such as 0:2,2:4,0:4")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pass-s", type=float, default=0.0, help="virtual seconds of every pass")
    parser.add_argument("--new-tokens", type=int, default=NEW_TOKENS)
    parser.add_argument("--stack", choices=("ports", "libp2p"), default="ports")
    given = parser.parse_args(words)
    case = Case(
        push=given.push, activations=given.activations, seed=given.seed, pass_s=given.pass_s,
        new_tokens=given.new_tokens, stack=given.stack,
    )  # fmt: skip
    if given.spans:
        pairs = [part.split(":") for part in given.spans.split(",")]
        case = replace(case, spans=tuple((int(start), int(end)) for start, end in pairs))
    expected = play(case)
    case = replace(case, faults=tuple(given.faults))
    outcome = play(case)
    print(f"{case.command()}: {len(expected.seen)} messages undisturbed")
    for fault, victim in outcome.struck:
        message = outcome.seen[fault.index]
        print(f"{fault}: {message.kind} from {message.source} to {message.target}, victim {victim}")
    print(f"undisturbed: {list(expected.tokens)}\nwith faults: {list(outcome.tokens)}")
    print(f"blamed {sorted(outcome.blamed)}, {outcome.recoveries} recoveries")
    print(f"{outcome.took_s:.2f} virtual seconds instead of {expected.took_s:.2f}; error: {outcome.error}")
    return int(outcome.tokens != expected.tokens)
