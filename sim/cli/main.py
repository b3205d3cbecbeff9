"""The command tree of the simulator, and its exit codes: 0 done, 1 a gate or a promise failed, 2 the user's mistake,
130 Ctrl-C.

Invariants: results go to stdout, everything else to stderr; a user's mistake is one line, never a traceback; code of a
command, and what it needs, is imported only when it runs.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Sequence

from p2pllm.errors import P2PLLMError, UserError

STACKS = ("ports", "libp2p", "real")
COMMANDS = {
    "list": "sim.cli.listing",
    "run": "sim.cli.running",
    "check": "sim.cli.checking",
    "report": "sim.cli.reporting",
    "all": "sim.cli.everything",
    "keys": "sim.cli.explaining",
    "side": "sim.cli.side",
}
DESCRIPTION = """\
The production node in virtual time, and the paper's experiments repeated.

  python -m sim list                               scenarios, one line each
  python -m sim run failover --seed 7              play one: tables, gates, trace hash
  python -m sim run my.toml --out results          a copied and changed scenario; JSON, CSV and PNG into a folder
  python -m sim check failover --seeds 0:100       many seeds, each twice; prints the line that repeats a failure
  python -m sim all --out results                  everything, and the report
  python -m sim failover kill@37 --push            one generation, with a fault at one of its messages
"""
EXITS = "Exit codes: 0 done; 1 a gate failed or a promise was broken; 2 your mistake, in one line; 130 Ctrl-C."


def build_parser() -> argparse.ArgumentParser:
    """The whole command tree, but for ``failover``, which has a parser of its own."""
    parser = argparse.ArgumentParser(
        prog="python -m sim", description=DESCRIPTION, epilog=EXITS, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, summary: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=summary, description=summary, epilog=EXITS, allow_abbrev=False)
        sub.set_defaults(command=name)
        sub.add_argument(
            "--log-level", choices=("debug", "info", "warning", "error", "critical"), default="critical",
            help="what the simulated nodes may say on stderr (default: critical; failures are expected here)",
        )  # fmt: skip
        return sub

    listing = command("list", "scenarios, one line each")
    listing.add_argument("--json", action="store_true", help="print JSON")
    _add_run(command("run", "play a scenario"))
    _add_check(command("check", "play a scenario with many seeds, each twice, and compare"))
    report = command("report", "one HTML page of a folder of results, with CSV and JSON beside it")
    report.add_argument("folder", metavar="DIR", help="what --out was given")
    _add_markdown(report)
    _add_all(command("all", "play every scenario of the catalogue, then report"))
    keys = command("keys", "what may stand in a scenario, kind by kind")
    keys.add_argument("kind", metavar="KIND", nargs="?", help="one kind only")
    keys.add_argument("--update", metavar="FILE", help="rewrite the reference inside this Markdown file")
    _add_side(commands.add_parser("side"))
    commands.add_parser("failover", help="one generation with faults at chosen messages", add_help=False)
    return parser


def _add_scenario(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("scenario", metavar="SCENARIO", help="a name from 'python -m sim list', or a TOML file")
    parser.add_argument("--stack", choices=STACKS, help="what lies under the nodes (default: the scenario's first)")
    parser.add_argument("--quick", action="store_true", help="a reduced version, for a first look")
    parser.add_argument("--json", action="store_true", help="print one JSON object per result instead of tables")


def _add_run(parser: argparse.ArgumentParser) -> None:
    _add_scenario(parser)
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="same seed, same trace hash (default: 0)")
    parser.add_argument("--out", metavar="DIR", help="write JSON, CSV and PNG files there")
    parser.add_argument("--faults", metavar="TEXT", help="these faults, separated by spaces, instead of drawn ones")
    _add_processes(parser)


def _add_check(parser: argparse.ArgumentParser) -> None:
    _add_scenario(parser)
    parser.add_argument("--seeds", type=seeds, required=True, metavar="A:B", help="seeds A to B-1, or one seed")
    parser.add_argument("--shrink", action=argparse.BooleanOptionalAction, default=True,
                        help="make the faults of a failing seed fewer and simpler (default: shrink)")  # fmt: skip


def _add_side(parser: argparse.ArgumentParser) -> None:
    """What ``check`` starts twice; not in the list of commands."""
    parser.set_defaults(command="side", log_level="critical")
    _add_scenario(parser)
    parser.add_argument("--seeds", type=int, nargs="+", required=True)
    parser.add_argument("--record", metavar="FILE")


def _add_all(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", metavar="DIR", required=True, help="where results and the report go")
    parser.add_argument("--only", metavar="NAME", nargs="+", help="some scenarios only")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of all of them (default: 0)")
    parser.add_argument("--quick", action="store_true", help="reduced versions")
    _add_markdown(parser)
    _add_processes(parser)


def _add_markdown(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--markdown", metavar="FILE", help="the report as Markdown, too, with plots beside it")


def _add_processes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--processes", type=count, default=os.cpu_count() or 1, metavar="N",
                        help="how many may compute at once (default: as many as there are cores)")  # fmt: skip


def count(text: str) -> int:
    """A number from 1 on."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def seeds(text: str) -> range:
    """``A:B`` as a range; a single number is a range of one."""
    start, colon, stop = text.partition(":")
    try:
        found = range(int(start), int(stop) if colon else int(start) + 1)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not A:B, such as 0:100") from None
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} holds no seed: B must be larger than A")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        if words[:1] == ["failover"]:
            from sim import failover

            return failover.main(words[1:])
        args = build_parser().parse_args(words)
        logging.basicConfig(
            level=args.log_level.upper(), stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s"
        )
        # The order in which threads add up floats must not decide about tokens; pools of processes use the cores.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        os.environ.setdefault("MKL_NUM_THREADS", "1")
        code: int = importlib.import_module(COMMANDS[args.command]).run(args)
        return code
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output left; the interpreter would complain at exit
        return 1
    except BaseException as error:
        return _exit_code(error)


def _exit_code(error: BaseException) -> int:
    """Print what a user should read of an error; re-raise what is a bug."""
    from p2pllm.cli.main import leaves

    found = list(leaves(error))
    if any(isinstance(one, KeyboardInterrupt) for one in found):
        return 130
    ours = [one for one in found if isinstance(one, P2PLLMError)]
    if not ours or len(ours) < len(found):
        raise error
    mistakes = [one for one in ours if isinstance(one, UserError)]
    print(f"sim: {' '.join(str((mistakes or ours)[0]).split())}", file=sys.stderr)
    return 2 if mistakes else 1
