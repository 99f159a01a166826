"""Optimisers for programs with constraints, and the randomised linear solvers that are theirs."""
