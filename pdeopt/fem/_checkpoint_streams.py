"""Random streams and other values of a run state, as JSON."""

from collections.abc import Mapping
from typing import Any

from mpi4py import MPI

import numpy as np

from pdeopt.parallel import collective_errors
from pdeopt.report import InputError


def gather_streams(comm: MPI.Comm, streams: Mapping[str, np.random.Generator]) -> dict[str, list[Any]]:
    """Return the states of random streams: one if it is the same on all ranks, otherwise one a rank.

    Collective: yes.
    """
    gathered = {}
    for name, generator in streams.items():
        states = comm.allgather(_as_json(generator.bit_generator.state))
        gathered[name] = states[:1] if all(state == states[0] for state in states) else states
    return gathered


def find_streams(
    comm: MPI.Comm, saved: Mapping[str, list[Any]], streams: Mapping[str, np.random.Generator]
) -> dict[str, Any]:
    """Return this rank's saved states of random streams, which are not changed yet.

    Raises
    ------
    InputError
        On all ranks, if a stream was not saved, is of another type, or there is one per rank and the ranks are others.

    Collective: yes.
    """
    states = {}
    with collective_errors(comm):
        for name, generator in streams.items():
            if name not in saved:
                known = ", ".join(f"'{stream}'" for stream in saved) or "none at all"
                raise InputError(f"no random stream '{name}' was saved, but {known}")
            if len(saved[name]) not in (1, comm.size):
                raise InputError(
                    f"the random stream '{name}' has one state for each of {len(saved[name])} ranks, and this run has "
                    f"{comm.size}: leave it out and start a new one, or draw from a stream that all ranks share"
                )
            state = saved[name][comm.rank % len(saved[name])]
            kind, found = state["bit_generator"], type(generator.bit_generator).__name__
            if kind != found:
                raise InputError(f"the random stream '{name}' was a {kind}, not a {found}: make it with numpy's {kind}")
            states[name] = _from_json(state)
    return states


def _as_json(state: Any) -> Any:
    """Turn the arrays of a bit generator's state into lists that remember their type."""
    if isinstance(state, dict):
        return {name: _as_json(part) for name, part in state.items()}
    if isinstance(state, np.ndarray):
        return {"array": state.tolist(), "type": str(state.dtype)}
    return state.item() if isinstance(state, np.generic) else state


def _from_json(state: Any) -> Any:
    if not isinstance(state, dict):
        return state
    if state.keys() == {"array", "type"}:
        return np.array(state["array"], dtype=state["type"])
    return {name: _from_json(part) for name, part in state.items()}
