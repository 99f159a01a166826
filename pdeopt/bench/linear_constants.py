"""The best classical solvers of each group of families: found by `pdeopt.bench.linear_rivals.sweep`."""

from collections.abc import Mapping

CONSTANTS: Mapping[str, tuple[str, ...]] = {}
