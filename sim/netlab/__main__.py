"""``python -m sim.netlab``: labs from the command line; see README.md."""

from __future__ import annotations

import argparse
import code
import sys
import tomllib
from collections.abc import Sequence

from sim.netlab.doctor import examine
from sim.netlab.forwarder import control
from sim.netlab.lab import Lab
from sim.netlab.tools import LabError, collect

RUN_HELP = """CONFIG [--host H -- CMD...]: start a lab and all cmd= of CONFIG; stop when CMD (without it: every cmd) has
ended"""


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the command line says; gives the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    split = words.index("--") if "--" in words else len(words)
    args, command = _parser().parse_args(words[:split]), words[split + 1 :]
    try:
        if args.do == "doctor":
            return _doctor()
        if args.do == "gc":
            print(" ".join(collect()))
            return 0
        if args.do == "ctl":
            print(control(args.socket, " ".join(args.line)), end="")
            return 0
        return _play(args, command)
    except (LabError, OSError, tomllib.TOMLDecodeError) as exc:
        print(f"netlab: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m sim.netlab")
    commands = parser.add_subparsers(dest="do", required=True)
    run = commands.add_parser("run", help=RUN_HELP)
    run.add_argument("config")
    run.add_argument("--host")
    shell = commands.add_parser("shell", help="CONFIG: start a lab, control it by hand")
    shell.add_argument("config")
    commands.add_parser("doctor", help="say what is missing on this machine")
    commands.add_parser("gc", help="remove what a killed netlab left behind")
    tell = commands.add_parser("ctl", help="SOCKET COMMAND...: change a running lab (see forwarder/forwarder.h)")
    tell.add_argument("socket")
    tell.add_argument("line", nargs="+")
    return parser


def _play(args: argparse.Namespace, command: Sequence[str]) -> int:
    with Lab(args.config, quiet=False) as lab:
        print(f"netlab: {len(lab.hosts)} hosts, control socket {lab.control}", file=sys.stderr)
        jobs = [lab.popen(host.name, host.cmd) for host in lab.hosts.values() if host.cmd]
        if args.do == "shell":
            _shell(lab)
            return 0
        if args.host or command:
            if args.host not in lab.hosts or not command:
                raise LabError("usage: run CONFIG --host HOST -- COMMAND...")
            jobs = [lab.popen(args.host, command, start_new_session=False)]
        return max([job.wait() for job in jobs], default=0)


def _shell(lab: Lab) -> None:
    """A Python prompt with the methods of the lab at hand."""
    names = {name: getattr(lab, name) for name in ("popen", "run", "call", "addr", "set_link", "partition", "heal")}
    names |= {"lab": lab, "hosts": lab.hosts, "stats": lambda: print(lab.ctl("stats"), end="")}
    names["on"] = lambda host, command: lab.popen(host, command).wait()
    first = next(iter(lab.hosts))
    banner = f"netlab shell; try on('{first}', 'ip addr').\nNames: {', '.join(names)}"
    code.interact(banner, local=names, exitmsg="")


def _doctor() -> int:
    findings = examine()
    for found in findings:
        mark = "ok" if found.ok else "MISSING" if found.vital else "warning"
        print(f"{mark:8} {found.what}{': ' if found.why else ''}{found.why}")
    return 0 if all(found.ok or not found.vital for found in findings) else 1


if __name__ == "__main__":
    sys.exit(main())
