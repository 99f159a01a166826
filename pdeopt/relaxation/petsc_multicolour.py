"""SOR by colours as a PETSc type."""

import dataclasses

from petsc4py import PETSc

import numpy as np

from pdeopt.fem.settings import check_choice, read_settings
from pdeopt.relaxation.multicolour import SWEEPS, MulticolourSweep
from pdeopt.report import InputError, OptionError

# Krylov methods that take a preconditioner for symmetric.
SYMMETRIC_METHODS = ("cg", "fcg", "pipecg", "groppcg", "minres", "symmlq", "cr", "stcg", "nash", "gltr", "chebyshev")


@dataclasses.dataclass(frozen=True)
class MulticolourSettings:
    """Settings of `MulticolourSOR`; its docstring says what they mean."""

    omega: float = 1.0
    sweep: str = "forward"
    labels: object = ""

    def __post_init__(self) -> None:
        if not 0.0 < self.omega < 2.0:
            raise InputError(f"omega is {self.omega}: relaxation converges for omega between 0 and 2 only")
        check_choice(self, "sweep", SWEEPS)
        if isinstance(self.labels, str) and self.labels:
            raise InputError(f"labels is {self.labels!r}: give an array of integers through the application context")


class MulticolourSOR:
    """Successive over-relaxation in the order of a colouring of the rows, the same on any number of ranks.

    Switched on by ``-pc_type python -pc_python_type pdeopt.MulticolourSOR``. With ``-ksp_type richardson`` it is SOR
    as a solver of its own, with the convergence test of every iteration that PETSc leaves out for its own ``sor``;
    symmetric sweeps precondition conjugate gradients, though `BanditSOR` needs fewer iterations there, as ordering by
    colours makes SSOR weaker. Matrices that two colours are enough for, such as five-point stencils, are relaxed red
    and black, so Young's theory of the best omega holds.

    Options, under the prefix of the preconditioner
    -----------------------------------------------
    ``-pc_multicolour_omega`` : 1
        Between 0 and 2.
    ``-pc_multicolour_sweep`` : forward (default), backward or symmetric
        Order of the colours.
    ``-pc_multicolour_labels`` : key of petsctools' application context
        Integers of the owned rows that tell them apart on any number of ranks, such as `point_labels`; they make the
        colours, and so the iterations, the same for any numbering of the rows.

    Parameters
    ----------
    settings
        The same from Python.

    Attributes
    ----------
    sweep
        What relaxes, once it is set up; its `count` is the number of colours.

    Raises
    ------
    OptionError
        If an option is unknown or its value unfit, or the Krylov method needs a symmetric preconditioner and the sweep
        is not.
    InputError
        If the matrix is not a square one of type ``aij``, or its diagonal has a zero.
    """

    def __init__(self, settings: MulticolourSettings | None = None) -> None:
        self.settings = settings or MulticolourSettings()
        self.sweep: MulticolourSweep | None = None
        self._event = PETSc.Log.Event("MulticolourSOR sweep")

    def setFromOptions(self, pc: PETSc.PC) -> None:
        """Read the options under the prefix of the preconditioner. Collective: no."""
        self.settings = read_settings(self.settings, pc.getOptionsPrefix(), "pc_multicolour_")

    def setUp(self, pc: PETSc.PC) -> None:
        """Colour the matrix, or take its new values. Collective: yes."""
        matrix = pc.getOperators()[1]
        if self.sweep is not None and not self.sweep.update(matrix):
            self.sweep.destroy()
            self.sweep = None
        if self.sweep is None:
            labels = None if isinstance(self.settings.labels, str) else np.asarray(self.settings.labels)
            self.sweep = MulticolourSweep(matrix, labels)

    def preSolve(self, pc: PETSc.PC, ksp: PETSc.KSP, b: PETSc.Vec, x: PETSc.Vec) -> None:
        """Refuse what cannot work. Collective: no."""
        if self.settings.sweep != "symmetric" and ksp.getType() in SYMMETRIC_METHODS:
            option = f"-{pc.getOptionsPrefix() or ''}pc_multicolour_sweep symmetric"
            raise OptionError(f"ksp_type {ksp.getType()} needs a symmetric preconditioner: set {option}")

    def apply(self, pc: PETSc.PC, x: PETSc.Vec, y: PETSc.Vec) -> None:
        """Relax from zero. Collective: yes."""
        assert self.sweep is not None
        self._event.begin()
        y.array_w[:] = self.sweep.apply(x.array_r, self.settings.omega, self.settings.sweep)
        self._event.end()

    def view(self, pc: PETSc.PC, viewer: PETSc.Viewer) -> None:
        """Print the settings and the number of colours. Collective: yes."""
        if viewer.getType() != PETSc.Viewer.Type.ASCII:
            return
        viewer.printfASCII(f"  omega = {self.settings.omega:g}, {self.settings.sweep} sweep\n")
        if self.sweep is not None:
            viewer.printfASCII(f"  colours: {self.sweep.count}\n")

    def destroy(self, pc: PETSc.PC) -> None:
        """Free the blocks. Collective: yes."""
        if self.sweep is not None:
            self.sweep.destroy()
            self.sweep = None
