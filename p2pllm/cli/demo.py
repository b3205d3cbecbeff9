"""``p2pllm demo``: a whole swarm on this machine, in separate processes, tells a story and survives a kill."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from typing import Any

import trio
from rich.markup import escape
from rich.table import Table

import p2pllm
from p2pllm.api import Hop, Session
from p2pllm.cli.running import errors, out, print_json
from p2pllm.errors import UserError
from p2pllm.local.models import resolve_model
from p2pllm.local.storage import DiskStorage
from p2pllm.model.checkpoint import Checkpoint
from p2pllm.node.local_swarm import LocalSwarm, Member, open_local_swarm, split
from p2pllm.node.reference import Reference

MODEL = "demo"
BLOCKS = 8


def run(args: argparse.Namespace) -> int:
    """Show it; exit code 1 when the swarm's text differs from one process's."""
    if args.servers > BLOCKS:
        raise UserError(f"--servers {args.servers}: the demo model has {BLOCKS} blocks to share out")
    if args.kill and args.replicas < 2:
        raise UserError("--replicas 1 leaves no spare for the server that is killed; add --no-kill")
    if args.log_level == "warning":
        logging.getLogger("p2pllm.client").setLevel(logging.ERROR)  # the show tells of the failure in its own words
    return trio.run(_demo, args)


async def _demo(args: argparse.Namespace) -> int:
    spans = split(BLOCKS, args.servers, args.replicas)
    show = _Show(quiet=args.json)
    show.say(
        f"Starting a bootstrap node and {len(spans)} servers, {args.replicas} for each of {args.servers} spans, "
        "each a process of its own."
    )
    async with open_local_swarm(MODEL, spans, flags=["--exact", *_threads(args)], on_ready=show.ready) as swarm:
        show.servers(swarm)
        cache = str(swarm.folder / "client")
        connecting = p2pllm.connect(MODEL, bootstrap=swarm.bootstrap, cache_dir=cache, threads=1, config="local")
        async with connecting as model, trio.open_nursery() as nursery:
            assert model.tokenizer is not None  # it ships with one
            prompt = model.tokenizer.encode(args.prompt)
            if len(prompt) + args.max_new_tokens > model.max_positions:
                raise UserError(f"prompt and story are longer than the model's context of {model.max_positions} tokens")
            show.say("\nA client finds them through the DHT and sends 8-bit activations along a chain:\n")
            async with model.session(max_length=len(prompt) + args.max_new_tokens, rows=1) as session:
                plug = _Plug(swarm, session, show, after=max(2, args.max_new_tokens // 3) if args.kill else None)
                first_route = session.route
                show.text(args.prompt)
                async with model.stream(prompt, session=session, max_new_tokens=args.max_new_tokens) as pieces:
                    async for piece in pieces:
                        show.text(piece.text)
                        plug.heard(nursery)
                show.text("\n")
                plug.tell(session)
                result = pieces.result()
        alone = await trio.to_thread.run_sync(one_process, prompt, args.max_new_tokens, first_route)
    equal = list(result.new_ids[0]) == alone
    show.end(result, equal)
    if args.json:
        print_json(_as_json(result, equal, plug, swarm.members))
    return 0 if equal else 1


class _Plug:
    """Pulls the plug of a server of the chain in mid-sentence, while it computes a step, and times the gap."""

    def __init__(self, swarm: LocalSwarm, session: Session, show: _Show, after: int | None) -> None:
        self.killed: Member | None = None
        self.recovery_s: float | None = None
        self._swarm = swarm
        self._session = session
        self._show = show
        self._after = after
        self._heard = 0
        self._killed_at: float | None = None
        self._last_at = trio.current_time()

    def heard(self, nursery: trio.Nursery) -> None:
        """A piece came."""
        now = trio.current_time()
        self._heard += 1
        if self._killed_at is not None and self.recovery_s is None and self._session.recovered:
            self.recovery_s = now - self._killed_at
        if self._heard == self._after:
            nursery.start_soon(self._pull, (now - self._last_at) / 2)
        self._last_at = now

    async def _pull(self, pause_s: float) -> None:
        await trio.sleep(pause_s)  # into the middle of the next step
        hop = self._session.route[len(self._session.route) // 2]
        self.killed = next(m for m in self._swarm.servers if m.peer_id == hop.peer_id)
        self.killed.kill()
        self._killed_at = trio.current_time()
        self._show.mark(f"[SIGKILL: blocks {hop.span}]")

    def tell(self, session: Session) -> None:
        """Say what was done about it."""
        for recovery in session.recovered:
            heirs = ", ".join(f"{hop.span} by …{hop.peer_id[-6:]}" for hop in recovery.replacement)
            self._show.say(
                f"\n[yellow]…{recovery.peer_id[-6:]} was killed while it served blocks {recovery.span}[/yellow]; "
                f"{recovery.replayed} tokens were replayed; now {heirs}."
            )
        if self.recovery_s is not None:
            self._show.say(f"The next token came {self.recovery_s:.2f} s after the kill.")


def one_process(prompt: list[int], new_tokens: int, route: Sequence[Hop]) -> list[int]:
    """What the whole model in this process says, rounded where the servers' borders round."""
    storage = DiskStorage()
    reference = Reference(Checkpoint(resolve_model(MODEL, "", storage)))
    borders = sorted({border for hop in route for border in (hop.span.start, hop.span.end)})
    return reference.greedy(prompt, new_tokens, borders, "int8")


def _threads(args: argparse.Namespace) -> list[str]:
    return ["--threads", str(args.threads or 1)]


class _Show:
    """What a person sees; nothing at all with ``--json``."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet

    def say(self, text: str) -> None:
        if not self._quiet:
            errors.print(text, highlight=False)

    def text(self, text: str) -> None:
        if not self._quiet:
            print(text, end="", flush=True)

    def mark(self, text: str) -> None:
        """In the middle of the text."""
        if not self._quiet:
            out.print(f"[bold red]{escape(text)}[/bold red]", end="", highlight=False)

    def ready(self, member: Member) -> None:
        what = f"blocks {member.span}" if member.span else "bootstrap node"
        self.say(f"  [green]✓[/green] {what:<15}[dim]…{member.peer_id[-6:]}  process {member.process.pid}[/dim]")

    def servers(self, swarm: LocalSwarm) -> None:
        if self._quiet:
            return
        table = Table(box=None, pad_edge=False)
        for column in ("blocks", *map(str, range(BLOCKS))):
            table.add_column(column)
        for member in sorted(swarm.servers, key=lambda m: (m.span.start if m.span else 0, m.peer_id)):
            held = ["[green]█[/green]" if member.span and b in member.span else "·" for b in range(BLOCKS)]
            table.add_row(f"…{member.peer_id[-6:]}", *held)
        errors.print(table)

    def end(self, result: p2pllm.GenerateResult, equal: bool) -> None:
        route = " → ".join(f"{hop.span} …{hop.peer_id[-6:]}" for hop in result.route)
        self.say(f"\n{result.steps_per_s:.1f} steps/s through {route}")
        verdict = "[green]the same tokens[/green]" if equal else "[red]other tokens[/red]"
        self.say(f"One process with the whole model computes {verdict}.")


def _as_json(result: p2pllm.GenerateResult, equal: bool, plug: _Plug, members: Sequence[Member]) -> dict[str, Any]:
    return {
        "text": result.text,
        "equal": equal,
        "steps_per_s": result.steps_per_s,
        "killed": plug.killed.peer_id if plug.killed is not None else None,
        "recovery_s": plug.recovery_s,
        "recoveries": result.recoveries,
        "servers": [
            {"peer_id": m.peer_id, "span": [m.span.start, m.span.end], "pid": m.process.pid}
            for m in members
            if m.span is not None
        ],
    }
