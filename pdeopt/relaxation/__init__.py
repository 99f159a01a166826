"""Solvers that choose themselves: bandits, relaxation, and options for scripts that stay as they are."""
