"""The bodies of multigrid as preconditioners and as solvers of sequences, for the parts of the bench that use both."""

from collections.abc import Callable, Mapping
from typing import Any

from petsc4py import PETSc

import numpy as np
import numpy.typing as npt

from pdeopt.bench.linear_outcome import MAX_IT, RTOL, Options, Outcome
from pdeopt.bench.linear_sequence_arms import SequenceArm
from pdeopt.bench.linear_worker import timed_ksp_solve
from pdeopt.conjugate_directions import (
    DeepConjugateDirections,
    DirectionSettings,
    MultigridSettings,
    NeuralMultigrid,
)

type Coordinates = npt.NDArray[np.float64]

BODIES = ("grid", "algebraic")


def multigrid(body: str, coordinates: Coordinates) -> NeuralMultigrid:
    """Return a new preconditioner of this body, one of `BODIES`, or "auto". Collective: no."""
    return NeuralMultigrid(MultigridSettings(body=body, coordinates=coordinates))


def solver(A: PETSc.Mat, context: Any, loop: DeepConjugateDirections | None = None) -> PETSc.KSP:
    """Return conjugate gradients, or the loop of directions, with this preconditioner. Collective: yes."""
    ksp = PETSc.KSP().create(A.getComm())
    ksp.setOperators(A)
    if loop is None:
        ksp.setType(PETSc.KSP.Type.CG)
        ksp.setNormType(PETSc.KSP.NormType.UNPRECONDITIONED)
    else:
        ksp.setType(PETSc.KSP.Type.PYTHON)
        ksp.setPythonContext(loop)
    ksp.getPC().setType(PETSc.PC.Type.PYTHON)
    ksp.getPC().setPythonContext(context)
    return ksp


def solve_by_body(A: PETSc.Mat, b: PETSc.Vec, body: str, coordinates: Coordinates) -> Outcome:
    """Solve a system by conjugate gradients with a new preconditioner of this body. Collective: yes."""
    ksp = solver(A, multigrid(body, coordinates))
    outcome = Outcome.of_record(f"{body}: CG", timed_ksp_solve(ksp, b, RTOL, MAX_IT))
    ksp.destroy()
    return outcome


class BodyArm(SequenceArm):
    """Solves a sequence by conjugate gradients, or by directions with a recycled space, with one of the bodies.

    The grid body keeps its lattice from one matrix to the next, the algebraic one its interpolations.

    Parameters
    ----------
    name
        Of the arm.
    body
        One of `BODIES`.
    coordinates
        Places of the owned unknowns.
    recycle
        Directions that are kept for the next matrix; 0 stands for conjugate gradients.
    """

    def __init__(self, name: str, body: str, coordinates: Coordinates, recycle: int = 0) -> None:
        super().__init__(name, {}, keep=True)
        self._body, self._coordinates, self._recycle = body, coordinates, recycle

    def _make(self, A: PETSc.Mat) -> PETSc.KSP:
        # Seconds do not count, so that another job on the machine changes no decision.
        loop = DeepConjugateDirections(DirectionSettings(recycle=self._recycle, price=0.0)) if self._recycle else None
        settings = MultigridSettings(body=self._body, coordinates=self._coordinates, reuse_interpolation=True)
        ksp = solver(A, NeuralMultigrid(settings), loop)
        ksp.setOptionsPrefix(self._prefix)
        return ksp


class RecyclingArm(SequenceArm):
    """Solves a sequence by directions with a classical preconditioner and a recycled space.

    Parameters
    ----------
    name
        Of the arm.
    options
        Of the PC without prefix; a ``ksp_type`` among them does not count.
    recycle
        Directions that are kept for the next matrix.
    """

    def __init__(self, name: str, options: Options, recycle: int) -> None:
        super().__init__(name, {key: value for key, value in options.items() if key != "ksp_type"}, keep=True)
        self._recycle = recycle

    def _make(self, A: PETSc.Mat) -> PETSc.KSP:
        ksp = super()._make(A)
        ksp.setType(PETSc.KSP.Type.PYTHON)
        # Not by its name: reading ``ksp_python_type`` again, as each solve does, makes a new loop without a space.
        ksp.setPythonContext(DeepConjugateDirections(DirectionSettings(recycle=self._recycle, price=0.0)))
        return ksp


def body_arms(coordinates: Coordinates, recycle: int) -> Mapping[str, Callable[[], SequenceArm]]:
    """Return how to make the arms of both bodies, and of one with a recycled space, by name. Collective: no."""
    kept = f"multigrid, grid, {recycle} recycled"
    return {
        "multigrid, grid": lambda: BodyArm("multigrid, grid", "grid", coordinates),
        "multigrid, algebraic": lambda: BodyArm("multigrid, algebraic", "algebraic", coordinates),
        kept: lambda: BodyArm(kept, "grid", coordinates, recycle),
    }
