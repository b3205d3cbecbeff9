"""The command tree, logging and exit codes: 0 done, 1 the swarm failed, 2 the user's mistake, 130 Ctrl-C.

Invariants: results go to stdout, everything else to stderr; a user's mistake is one line, never a traceback; each
command's code is imported only when it runs.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from p2pllm.cli import options
from p2pllm.errors import P2PLLMError, UserError

DESCRIPTION = """\
Run large language models over the Internet, on machines that nobody manages.

  p2pllm demo                                   see a whole swarm work on this machine
  p2pllm bootstrap                              start a swarm: prints the address that others join by
  p2pllm node MODEL --bootstrap ADDR            serve some blocks of a model
  p2pllm generate MODEL "Hello" --bootstrap ADDR
"""
MODEL_HELP = "folder in Hugging Face layout, hub id, or demo (the small model that ships with p2pllm)"


def build_parser() -> argparse.ArgumentParser:
    """The whole command tree."""
    parser = argparse.ArgumentParser(
        prog="p2pllm", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"p2pllm {version()}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, summary: str, *, model: bool = True, swarm: bool = True) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        sub.set_defaults(command=name)
        if model:
            sub.add_argument("model", metavar="MODEL", help=MODEL_HELP)
        if swarm:
            options.add_swarm(sub)
        options.add_common(sub)
        return sub

    demo = command(
        "demo", "a whole swarm on this machine, in separate processes, streaming text", model=False, swarm=False
    )
    demo.add_argument(
        "--servers", type=options.COUNT, default=3, metavar="N", help="cut the model into N spans (default: 3)"
    )
    demo.add_argument(
        "--replicas", type=options.COUNT, default=2, metavar="N", help="servers for each span (default: 2)"
    )
    demo.add_argument(
        "--kill",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="kill a server in mid-sentence and see the text go on (default: kill)",
    )
    demo.add_argument("--prompt", default="Once upon a time", metavar="TEXT", help="where the story begins")
    demo.add_argument(
        "--max-new-tokens", type=options.COUNT, default=96, metavar="N", help="length of the story (default: 96)"
    )
    demo.add_argument("--json", action="store_true", help="print one JSON object at the end instead of the show")

    boot = command("bootstrap", "a member without blocks, by whose address others join", model=False)
    _add_listen(boot, "/ip4/0.0.0.0/tcp/4001")

    node = command("node", "serve a span of a model's blocks")
    _add_listen(node, "/ip4/0.0.0.0/tcp/0")
    _add_node(node)

    generate = command("generate", "continue a prompt")
    generate.add_argument(
        "prompt", metavar="PROMPT", help="text; or token ids separated by commas, for a checkpoint without tokenizer"
    )
    generate.add_argument(
        "--json", action="store_true", help="print one JSON object at the end instead of streaming text"
    )
    generate.add_argument(
        "--num-beams", type=options.COUNT, default=1, metavar="K", help="search with K beams; the text comes at the end"
    )
    chat = command("chat", "talk with a model, turn by turn")
    for sub in (generate, chat):
        options.add_sampling(sub)
        options.add_client(sub)

    status = command("status", "who serves which blocks, how fast, and which blocks nobody serves", model=False)
    status.add_argument("model", metavar="MODEL", nargs="?", default="demo", help=MODEL_HELP + " (default: demo)")
    status.add_argument("--json", action="store_true", help="print JSON")

    doctor = command("doctor", "what this machine can do, and what to fix", model=False)
    doctor.add_argument("--json", action="store_true", help="print JSON")

    _add_bench(command("bench", "measure a swarm", model=False))
    return parser


def _add_listen(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument(
        "--listen",
        metavar="ADDR",
        action="append",
        default=[],
        help=f"multiaddr to listen on; repeatable (default: {default})",
    )
    parser.add_argument("--ready-file", metavar="FILE", help="write JSON {peer_id, addrs, span} here once serving")


def _add_node(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("serving")
    group.add_argument(
        "--blocks",
        type=options.blocks,
        metavar="auto|A:B",
        help="which blocks; auto takes the weakest of the swarm (default)",
    )
    group.add_argument(
        "--num-blocks",
        type=options.COUNT,
        metavar="N",
        help="how many, with --blocks auto (default: what memory holds)",
    )
    group.add_argument(
        "--device", default="auto", metavar="auto|cpu|cuda:N", help="where the blocks run (default: auto)"
    )
    group.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        default="auto",
        help="compute dtype (default: as stored; float32 on CPU)",
    )
    group.add_argument(
        "--cache-tokens",
        type=options.COUNT,
        metavar="N",
        help="attention cache, in tokens over all sessions (default: from memory)",
    )
    group.add_argument(
        "--memory",
        type=options.bytes_size,
        metavar="BYTES",
        help="use at most this much memory for blocks and cache, such as 6GB",
    )
    group.add_argument("--public-name", default="", metavar="NAME", help="shown in p2pllm status")
    group.add_argument(
        "--exact", action="store_true", help="results that do not depend on batching (slower; fp32 on CPU)"
    )
    group.add_argument(
        "--throughput",
        type=options.throughput,
        metavar="auto|FLOAT",
        help="tokens/s to announce; auto measures (default)",
    )


def _add_bench(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what", choices=("inference", "forward"), help="single tokens through caches, or whole sequences"
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument("--batch", type=options.COUNT, default=1, metavar="B", help="rows (default: 1)")
    parser.add_argument(
        "--seq-len", type=options.COUNT, default=128, metavar="S", help="tokens of each row (default: 128)"
    )
    parser.add_argument(
        "--steps", type=options.COUNT, default=64, metavar="N", help="steps or passes to time (default: 64)"
    )
    parser.add_argument(
        "--clients", type=options.COUNT, default=1, metavar="N", help="sessions at the same time (default: 1)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    options.add_client(parser)


def version() -> str:
    """The installed version."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        return installed("p2pllm")
    except PackageNotFoundError:
        return "0 (not installed)"


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line, with defaults from ``--config`` underneath it."""
    parser = build_parser()
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = parser.parse_args(arguments)
    if args.config:
        sub = _subparsers(parser)[args.command]
        sub.set_defaults(**_config_defaults(Path(args.config), args.command, sub))
        args = parser.parse_args(arguments)
    return args


def _subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    raise AssertionError("the command tree has no commands")


def _config_defaults(path: Path, command: str, parser: argparse.ArgumentParser) -> dict[str, Any]:
    """Flags from a TOML file: top-level keys for every command that has them, a table per command for its own."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--config {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"--config {path}: not TOML: {error}") from error
    flags = {a.dest: a for a in parser._actions if a.option_strings and a.dest not in ("help", "config")}
    shared = {key: value for key, value in data.items() if not isinstance(value, dict)}
    own = data.get(command, {})
    defaults: dict[str, Any] = {}
    for key, value in [*shared.items(), *own.items()]:
        action = flags.get(key.replace("-", "_"))
        if action is None:
            if key in own:
                names = ", ".join(sorted(d.replace("_", "-") for d in flags))
                raise UserError(f"--config {path}: [{command}] has no {key!r}; allowed: {names}")
            continue  # another command's flag
        defaults[action.dest] = _convert(path, key, value, action)
    return defaults


def _convert(path: Path, key: str, value: Any, action: argparse.Action) -> Any:
    listed = isinstance(action.default, list)
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise UserError(f"--config {path}: {key!r} must be true or false")
        return value
    try:
        values = [
            action.type(str(v)) if callable(action.type) else str(v)
            for v in (value if isinstance(value, list) else [value])
        ]
    except argparse.ArgumentTypeError as error:
        raise UserError(f"--config {path}: {key!r}: {error}") from error
    if action.choices is not None and any(v not in action.choices for v in values):
        raise UserError(f"--config {path}: {key!r} must be one of {', '.join(map(str, action.choices))}")
    if not listed and len(values) != 1:
        raise UserError(f"--config {path}: {key!r} takes one value")
    return values if listed else values[0]


def leaves(error: BaseException) -> Iterator[BaseException]:
    """The single errors inside (nested) exception groups, as nurseries raise them."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from leaves(inner)
    else:
        yield error


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    try:
        args = parse(argv)
        logging.basicConfig(
            level=args.log_level.upper(),
            stream=sys.stderr,
            format="%(asctime)s %(levelname)s %(name)s: %(message)s",
            datefmt="%H:%M:%S",
        )
        return int(importlib.import_module(f"p2pllm.cli.{args.command}").run(args))
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output left; the interpreter would complain at exit
        return 1
    except BaseException as error:
        return _exit_code(error)


def _exit_code(error: BaseException) -> int:
    """Print what a user should read of an error; re-raise what is a bug."""
    found = list(leaves(error))
    if any(isinstance(e, KeyboardInterrupt) for e in found):
        return 130
    ours = [e for e in found if isinstance(e, P2PLLMError)]
    if len(ours) < len(found) or not ours:
        raise error
    mistakes = [e for e in ours if isinstance(e, UserError)]
    first = (mistakes or ours)[0]
    print(f"p2pllm: {' '.join(str(first).split())}", file=sys.stderr)
    return 2 if mistakes else 1


if __name__ == "__main__":
    sys.exit(main())
