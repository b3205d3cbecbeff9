"""Benchmarks: each prints a table and writes JSON, and compares with a baseline measured in the same run.

These machines are noisy: read ratios, never one run against another. ``python -m benchmarks`` runs
all of them, ``python -m benchmarks.NAME --help`` explains one.
"""
