"""Sweeps forward and backward in time, with every state kept, or few of them and the rest computed anew."""

import dataclasses
import pathlib
import shutil
import tempfile
from typing import Protocol

from mpi4py import MPI

import checkpoint_schedules
import numpy as np
import numpy.typing as npt
from checkpoint_schedules import CheckpointSchedule, Copy, EndForward, EndReverse, Forward, Move, Reverse, StorageType

from pdeopt.parallel import on_root
from pdeopt.report import InputError

State = tuple[npt.NDArray[np.float64], ...]
"""What a step starts from: arrays of owned values that nobody changes."""


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """How many states a backward sweep may find stored; the others are computed anew from them.

    The schedule is that of Griewank and Walther's revolve (ACM Trans. Math. Softw. 26 (2000) 19-45), extended to two
    kinds of storage by Stumm and Walther (SIAM J. Sci. Comput. 31 (2009) 1946-1967), from the package
    checkpoint_schedules: no other computes fewer steps anew.

    Parameters
    ----------
    in_memory, on_disk
        Numbers of checkpoints; at least one in all.
    folder
        Where a folder for those on disk is made and removed again; the system's for temporary files if None.

    Raises
    ------
    InputError
        If a number is negative or both are zero.
    """

    in_memory: int
    on_disk: int = 0
    folder: str | pathlib.Path | None = None

    def __post_init__(self) -> None:
        if min(self.in_memory, self.on_disk) < 0 or self.in_memory + self.on_disk < 1:
            raise InputError(
                f"checkpoints: {self.in_memory} in memory and {self.on_disk} on disk; ask for at least one in all"
            )


class Model(Protocol):
    """What a sweep moves through time. Step k leads from state k to state k + 1."""

    def start(self) -> State:
        """Return state 0. Collective: yes."""

    def forward(self, step: int, state: State, first_time: bool) -> State:
        """Return the state after a step; the same in every bit, however often it is called. Collective: yes."""

    def reverse(self, step: int, before: State, after: State) -> None:
        """Take the adjoint step. Collective: yes."""


class Sweep:
    """One sweep forward and, after it, one backward.

    Parameters
    ----------
    model
        What is moved.
    steps
        Number of steps.
    checkpoints
        How many states to keep; all of them if None.
    comm
        Communicator of the model.

    Attributes
    ----------
    forward_steps
        Steps computed so far, repeated ones included.
    peak_in_memory, peak_on_disk
        Most checkpoints that were stored at one time.
    peak_bytes
        Most memory on this rank in states that were kept, the running one included.
    """

    def __init__(self, model: Model, steps: int, checkpoints: Checkpoints | None, comm: MPI.Comm) -> None:
        self._model, self._steps, self._comm = model, steps, comm
        self._memory: dict[int, State] = {}
        self._disk: dict[int, pathlib.Path] = {}
        self._links: dict[int, tuple[State, State]] = {}  # step -> the states before and after it
        self._state: State = ()
        self.forward_steps = self.peak_in_memory = self.peak_on_disk = self.peak_bytes = 0
        self._folder: pathlib.Path | None = None
        self._checkpoints = checkpoints
        self._actions = _schedule(steps, checkpoints)
        self._forward_done = False

    def forward(self) -> None:
        """Compute all steps once. Collective: yes."""
        self._state = self._model.start()
        self._run(until=EndForward)
        self._forward_done = True

    def reverse(self) -> None:
        """Take all adjoint steps, from the last to the first; `forward` comes before. Collective: yes."""
        self._run(until=EndReverse)

    def _run(self, until: type) -> None:
        for action in self._actions:
            if isinstance(action, until):
                break
            if isinstance(action, Forward):
                self._advance(action)
            elif isinstance(action, Reverse):
                for step in range(action.n1 - 1, action.n0 - 1, -1):
                    before, after = self._links[step]
                    self._model.reverse(step, before, after)
                    if action.clear_adj_deps:
                        del self._links[step]
            elif isinstance(action, Copy | Move):
                self._restore(action)
            self._measure()

    def _advance(self, action: Forward) -> None:
        if action.write_ics:
            self._store(action.n0, action.storage)
        if action.write_adj_deps and action.storage != StorageType.WORK:
            raise RuntimeError("this schedule stores what adjoint steps need outside the working memory")
        if action.n1 > self._steps:  # that schedule learns the number of steps when they are done
            self._actions.finalize(self._steps)
        for step in range(action.n0, min(action.n1, self._steps)):
            after = self._model.forward(step, self._state, not self._forward_done)
            self.forward_steps += 1
            if action.write_adj_deps:
                self._links[step] = (self._state, after)
            self._state = after

    def _store(self, step: int, storage: StorageType) -> None:
        if storage == StorageType.RAM:
            self._memory[step] = self._state
            return
        if self._folder is None:
            assert self._checkpoints is not None
            place = self._checkpoints.folder
            self._folder = on_root(
                self._comm, lambda: pathlib.Path(tempfile.mkdtemp(prefix="pdeopt-checkpoints-", dir=place))
            )
        path = self._folder / f"state-{step}-rank-{self._comm.rank}.npy"
        np.save(path, np.stack(self._state), allow_pickle=False)
        self._disk[step] = path

    def _restore(self, action: Copy | Move) -> None:
        moved = isinstance(action, Move)
        if action.from_storage == StorageType.RAM:
            self._state = self._memory.pop(action.n) if moved else self._memory[action.n]
            return
        path = self._disk.pop(action.n) if moved else self._disk[action.n]
        self._state = tuple(np.load(path, allow_pickle=False))
        if moved:
            path.unlink()

    def _measure(self) -> None:
        self.peak_in_memory = max(self.peak_in_memory, len(self._memory))
        self.peak_on_disk = max(self.peak_on_disk, len(self._disk))
        states = [self._state, *self._memory.values(), *(state for pair in self._links.values() for state in pair)]
        unique = {id(array): array.nbytes for state in states for array in state}
        self.peak_bytes = max(self.peak_bytes, sum(unique.values()))

    def release(self) -> None:
        """Forget all states and remove the folder. Collective: yes."""
        self._memory.clear()
        self._links.clear()
        self._disk.clear()
        self._comm.barrier()  # no rank may still be writing there
        if self._folder is not None and self._comm.rank == 0:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._folder = None


def _schedule(steps: int, checkpoints: Checkpoints | None) -> CheckpointSchedule:
    """Return an iterator over the actions of a schedule."""
    if checkpoints is None:
        return checkpoint_schedules.SingleMemoryStorageSchedule()
    return checkpoint_schedules.MultistageCheckpointSchedule(
        steps, min(checkpoints.in_memory, steps), min(checkpoints.on_disk, steps)
    )
