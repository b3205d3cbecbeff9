"""``p2pllm doctor``: what this machine can do, and what to fix."""

from __future__ import annotations

import argparse
from dataclasses import asdict

import trio
from rich.table import Table

from p2pllm.cli.running import out, print_json
from p2pllm.node.checkup import Finding, examine

MARKS = {"good": "[green]✓[/green]", "note": "[yellow]•[/yellow]", "bad": "[red]✗[/red]"}


def run(args: argparse.Namespace) -> int:
    """Print the findings; exit code 1 when one of them keeps p2pllm from working."""
    findings = trio.run(examine, tuple(args.bootstrap), args.cache_dir, args.threads, args.preset)
    if args.json:
        print_json({"findings": [asdict(finding) for finding in findings]})
    else:
        draw(findings)
    return 1 if any(finding.verdict == "bad" for finding in findings) else 0


def draw(findings: list[Finding]) -> None:
    """One line per finding; what to do about it below."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for finding in findings:
        table.add_row(MARKS[finding.verdict], finding.what, finding.found)
        if finding.advice:
            table.add_row("", "", f"[dim]→ {finding.advice}[/dim]")
    out.print(table, highlight=False)
