"""What every command needs: running trio with signals, ready files, progress bars, JSON lines, console."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import trio
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from p2pllm.errors import UserError

if TYPE_CHECKING:
    from trio_typing import TaskStatus  # its stubs, which libp2p installs, shadow trio's own types

errors = Console(stderr=True)
out = Console()


def print_json(value: dict[str, Any]) -> None:
    """One JSON object, one line, on stdout."""
    print(json.dumps(value, ensure_ascii=False), flush=True)


def client_options(args: argparse.Namespace) -> dict[str, Any]:
    """The keyword arguments of ``p2pllm.connect`` from flags."""
    return {
        "bootstrap": args.bootstrap,
        "activations": args.activations,
        "exact": args.exact,
        "push": args.push,
        "patience": args.patience,
        "allow_servers": args.allow_server,
        "identity": args.identity,
        "cache_dir": args.cache_dir,
        "threads": args.threads,
        "config": args.preset,
    }


def sampling_options(args: argparse.Namespace) -> dict[str, Any]:
    """The keyword arguments of ``generate`` and ``stream`` from flags."""
    return {
        "max_new_tokens": args.max_new_tokens,
        "temperature": args.temperature,
        "top_k": args.top_k,
        "top_p": args.top_p,
        "min_p": args.min_p,
        "repetition_penalty": args.repetition_penalty,
        "seed": args.seed,
        "stop": args.stop,
    }


class Loading:
    """A bar on stderr for (bytes so far, bytes in all); nothing where nobody watches. Call it, then ``stop`` it."""

    def __init__(self, title: str) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        self._bar = Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal)
        self._task = self._bar.add_task(title, total=None, visible=False)

    def __call__(self, done: int, total: int) -> None:
        self._bar.update(self._task, completed=done, total=total, visible=True)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *details: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Take the bar away, so that others may print."""
        self._bar.stop()


def write_ready(path: str | None, peer_id: str, addrs: tuple[str, ...], span: tuple[int, int] | None) -> None:
    """Tell whoever started us that we serve: the whole file appears at once.

    Raises:
        UserError: the file cannot be written.
    """
    if path is None:
        return
    text = json.dumps({"peer_id": peer_id, "addrs": list(addrs), "span": list(span) if span else None})
    try:
        with tempfile.NamedTemporaryFile("w", dir=Path(path).parent, delete=False) as file:
            file.write(text)
        os.replace(file.name, path)
    except OSError as error:
        raise UserError(f"--ready-file {path}: {error.strerror}") from error


class Signals:
    """SIGTERM and Ctrl-C for servers: the first one begins an orderly leave, a second one leaves at once.

    ``with signals.starting():`` around everything makes the first one end what still starts; ``wait`` then makes it a
    thing to wait for.
    """

    def __init__(self) -> None:
        self._first = trio.Event()
        self._serving = False
        self._scope = trio.CancelScope()

    def starting(self) -> trio.CancelScope:
        return self._scope

    async def wait(self) -> None:
        """From here on a signal does not interrupt but is waited for."""
        self._serving = True
        await self._first.wait()

    async def watch(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Runs beside the server."""
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            task_status.started()
            async for number in signals:
                if self._first.is_set():
                    sys.stderr.write("p2pllm: leaving at once\n")
                    sys.stderr.flush()
                    os._exit(128 + number)
                self._first.set()
                if not self._serving:
                    self._scope.cancel()


async def serve_until_signal(serve: Callable[[Signals], Awaitable[None]]) -> None:
    """Run ``serve(signals)``; see ``Signals``."""
    signals = Signals()
    async with trio.open_nursery() as nursery:
        await nursery.start(signals.watch)
        with signals.starting():
            await serve(signals)
        nursery.cancel_scope.cancel()
