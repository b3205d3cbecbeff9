"""Kind "recovery": a server is killed in mid-generation; the tokens are those of the model in one piece.

On real sockets that is a process that gets SIGKILL while a client in another one generates; in virtual time it is a
host that crashes. The same chain, the same prompt, the same moment: so the pauses can be compared, too.

Invariants: no token may be lost or change on any stack. Pauses are reported, not gated: on real sockets they are what
this machine's clock says.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from p2pllm.config import Config
from p2pllm.types import PeerId
from sim.agreement import PUSH, REAL_S, SPANS, demo
from sim.expected import Expected
from sim.kinds import Kind, Run
from sim.measuring import Generated, generate
from sim.real.passes import Passes
from sim.real.swarm import RealSpec, RealSwarm, open_real
from sim.results import Gate, Outcome, Table, combined, gate
from sim.run import run as run_virtually
from sim.virtual import VirtualSpec, open_virtual

PROMPT = (5, 300, 41, 7, 1200, 88, 640, 9)
SIMULATED = ("ports", "libp2p")
CODEC = "int8"


@dataclass(frozen=True, slots=True)
class Params:
    """A generation, and who is killed when.

    Attributes:
        hop: of the chain, from 0.
        hop_ms: a pass in virtual time, by number of blocks.
    """

    latency_ms: float = field(default=20.0, metadata={"min": 0.0, "max": 1000.0, "about": "one way"})
    mbit: float = field(default=100.0, metadata={"min": 0.1})
    mode: Literal["relayed", "pushed"] = "pushed"
    replicas: int = field(default=2, metadata={"min": 2, "max": 10, "about": "servers of each span"})
    new_tokens: int = field(default=32, metadata={"min": 4, "max": 1000})
    kill_at: int = field(default=12, metadata={"min": 1, "about": "token after which the server is killed"})
    hop: int = field(default=1, metadata={"min": 0, "max": len(SPANS) - 1})
    hop_ms: tuple[tuple[int, float], ...] = ((2, 1.2), (3, 1.4))
    client_ms: float = field(default=0.3, metadata={"min": 0.0, "max": 1000.0})

    def __post_init__(self) -> None:
        if self.kill_at >= self.new_tokens:
            raise ValueError(f"kill_at: {self.kill_at} of {self.new_tokens} tokens is too late")

    @property
    def servers(self) -> dict[str, tuple[int, int]]:
        """Blocks by name."""
        return {
            f"s{number}{'abcdefghij'[copy]}": span for number, span in enumerate(SPANS) for copy in range(self.replicas)
        }


def run(params: Params, how: Run) -> Outcome:
    """Play it on real sockets where asked, and on the simulated stacks."""
    if how.quick:
        params = replace(params, new_tokens=min(params.new_tokens, 12), kill_at=min(params.kill_at, 5))
    points = (*(start for start, _ in SPANS), SPANS[-1][1])
    expected = tuple(Expected(demo()).greedy(PROMPT, params.new_tokens, CODEC, points))
    stacks = [*(["real"] if how.stack == "real" else []), *SIMULATED]
    found: dict[str, Generated] = {}
    traces = []
    for done, stack in enumerate(stacks):
        how.progress(stack, done, len(stacks))
        if stack == "real":
            found[stack] = play_real(params)
        else:
            found[stack], trace = play_virtual(params, stack, how.seed)
            traces.append(trace)
    wrong = {stack: _wrong(one.tokens, expected) for stack, one in found.items()}
    return Outcome(
        tables=(_table(found, wrong),),
        plots=(),
        gates=tuple(one for stack in stacks for one in _gates(stack, found[stack], wrong[stack])),
        results=tuple(
            {"stack": stack, "equal": not wrong[stack], "pause_s": one.pause_s, "recoveries": one.recoveries}
            for stack, one in found.items()
        ),
        notes=(f"Server of hop {params.hop} killed after token {params.kill_at} of {params.new_tokens}.",),
        trace_hash=combined(traces),
        violations=tuple(f"{stack}: {count} tokens are lost or wrong" for stack, count in wrong.items() if count),
    )


def play_real(params: Params) -> Generated:
    """With processes.

    Raises:
        Skipped: this machine cannot do that.
        SwarmError: a process failed.
    """
    with open_real(RealSpec(params.servers, params.latency_ms, params.mbit)) as swarm:
        return _listen(swarm, params)


def _listen(swarm: RealSwarm, params: Params) -> Generated:
    """Let a client generate, and kill whom it names at the right moment."""
    job = swarm.job(push=PUSH[params.mode], activations=CODEC, prompt=PROMPT, new_tokens=params.new_tokens)
    last = {}
    for last in swarm.ask(job, 2 * REAL_S):
        if last.get("count") == params.kill_at:
            swarm.kill(swarm.named(last["peers"][params.hop]))
    return Generated(tuple(last["tokens"]), tuple(last["times_s"]), last["recoveries"], tuple(last["chain"]))


def play_virtual(params: Params, stack: str, seed: int) -> tuple[Generated, str]:
    """In virtual time; with the trace's hash."""
    costs = Passes(params.hop_ms, params.client_ms).cost_model()
    spec = VirtualSpec(stack, params.servers, costs, params.latency_ms, params.mbit, push=PUSH[params.mode], seed=seed)
    config = replace(Config(), client=replace(Config().client, activations=CODEC, exact=True))

    async def main() -> tuple[Generated, str]:
        async with open_virtual(demo(), spec, config) as swarm:
            names = {host.me: name for name, host in swarm.world.hosts.items()}

            def on_token(count: int, peers: tuple[PeerId, ...]) -> None:
                if count == params.kill_at:
                    swarm.world.kill(names[peers[params.hop]])

            done = await generate(swarm.model, PROMPT, params.new_tokens, on_token)
            return done, swarm.world.trace_hash()

    return run_virtually(main, seed)


def _wrong(tokens: tuple[int, ...], expected: tuple[int, ...]) -> int:
    """Tokens that are lost or wrong."""
    equal = sum(one == other for one, other in zip(tokens, expected, strict=False))
    return max(len(tokens), len(expected)) - equal


def _gates(stack: str, found: Generated, wrong: int) -> list[Gate]:
    return [
        gate(f"{stack}: tokens lost or wrong", wrong, 0.0, 0.0, "ours"),
        gate(f"{stack}: failures survived", found.recoveries, 1.0, 0.0, "ours", "at least"),
    ]


def _table(found: dict[str, Generated], wrong: dict[str, int]) -> Table:
    rows = tuple(
        (stack, len(one.tokens), wrong[stack], one.recoveries, round(one.pause_s, 3)) for stack, one in found.items()
    )
    columns = ("stack", "tokens", "lost or wrong", "failures survived", "pause, s")
    return Table("A server killed in mid-generation", columns, rows, "pause: the longest wait beyond the usual one")


KIND = Kind(
    "recovery", "a server is killed in mid-generation, on every stack: the tokens are those of one process", Params,
    run, ("real", "libp2p"), measured=True,
)  # fmt: skip
