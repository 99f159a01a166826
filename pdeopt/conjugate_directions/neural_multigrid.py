"""Neural multigrid as a PETSc preconditioner: a symmetric V-cycle whose operators are chosen for each matrix."""

import dataclasses
import logging
import time

from petsc4py import PETSc

from pdeopt.conjugate_directions.algebraic_cycle import AlgebraicCycle
from pdeopt.conjugate_directions.algebraic_hierarchy import Constants, build_hierarchy, choose_constants
from pdeopt.fem.forms import log_event
from pdeopt.fem.settings import read_settings
from pdeopt.report import InputError, SolveReport

__all__ = ["MultigridSettings", "NeuralMultigrid"]

_LOGGER = logging.getLogger(__name__)
_BODIES = ("algebraic",)


@dataclasses.dataclass(frozen=True)
class MultigridSettings:
    """Settings of `NeuralMultigrid`; its docstring says what they mean.

    Raises
    ------
    InputError
        If one is out of its range.
    """

    body: str = "algebraic"
    strength: str = "auto"
    threshold: float = -1.0
    descents: int = -1
    coarse_size: int = 500

    def __post_init__(self) -> None:
        if self.body not in _BODIES:
            raise InputError(f"body is {self.body!r}: choose {' or '.join(_BODIES)}")
        if self.strength not in ("auto", "symmetric", "evolution"):
            raise InputError(f"strength is {self.strength!r}: choose auto, symmetric or evolution")
        if self.coarse_size < 1:
            raise InputError(f"coarse_size is {self.coarse_size!r}: give a positive number of unknowns")

    def constants(self, chosen: Constants) -> Constants:
        """Return a class's constants with those that are set here in their place."""
        given = {
            "strength": None if self.strength == "auto" else self.strength,
            "threshold": None if self.threshold < 0.0 else self.threshold,
            "descents": None if self.descents < 0 else self.descents,
        }
        values = {name: value for name, value in given.items() if value is not None}
        return dataclasses.replace(chosen, coarse_size=self.coarse_size, **values)  # type: ignore[arg-type]


class NeuralMultigrid:
    """One symmetric multigrid V-cycle, linear in the residual, for symmetric positive definite matrices.

    Switched on by ``-pc_type python -pc_python_type pdeopt.NeuralMultigrid``. The algebraic body takes any matrix of
    type aij: aggregates of strongly coupled unknowns, interpolation smoothed in one or two steps, Galerkin products,
    SOR forward down and backward up. A near-nullspace that is attached to the matrix is interpolated exactly. The
    constants (measure of strength, threshold, steps) follow from the class of the matrix: several unknowns a node,
    anisotropic, or the rest.

    No network chooses the interpolation: weights found for each matrix by gradient descent, the best that any network
    could predict, saved no iteration on jumps and a quarter of them on anisotropy, less than 0.8 of the total with
    the price of the prediction (``pdeopt bench linear``).

    Options, under the prefix of the preconditioner
    -----------------------------------------------
    ``-pc_nmg_body`` : algebraic
        What makes the operators.
    ``-pc_nmg_strength`` : auto (default), symmetric or evolution
        Measure of strength, see `pdeopt.conjugate_directions.algebraic_hierarchy.Constants`.
    ``-pc_nmg_threshold`` : -1
        Its threshold; negative values leave it to the class.
    ``-pc_nmg_descents`` : -1
        Steps of interpolation towards the least energy; negative values leave them to the class.
    ``-pc_nmg_coarse_size`` : 500
        Unknowns at which the coarsest level is factorised.
    ``-pc_nmg_mg_levels_...``, ``-pc_nmg_mg_up_...``, ``-pc_nmg_mg_coarse_...``
        Options of PETSc's smoothers, down and up, and of the coarse solver.

    Parameters
    ----------
    settings
        The same from Python.

    Attributes
    ----------
    report
        What the last set-up did.
    error
        The exception that ended the last set-up; the Krylov method then ends with the reason DIVERGED_PCSETUP_FAILED.

    Raises
    ------
    OptionError
        If an option is unknown or its value unfit.
    """

    def __init__(self, settings: MultigridSettings | None = None) -> None:
        self.settings = settings or MultigridSettings()
        self.report: SolveReport | None = None
        self.error: Exception | None = None
        self._cycle: AlgebraicCycle | None = None
        self._event = PETSc.Log.Event("NeuralMultigrid cycle")

    # --- what PETSc calls ---------------------------------------------------------------------------------------------

    def setFromOptions(self, pc: PETSc.PC) -> None:
        """Read the options under the prefix of the preconditioner. Collective: no."""
        self.settings = read_settings(self.settings, pc.getOptionsPrefix(), "pc_nmg_", inner=("mg_",))

    def setUp(self, pc: PETSc.PC) -> None:
        """Make the hierarchy for the present values of the matrix. Collective: yes."""
        self.reset()
        self.error = None
        began = time.perf_counter()
        try:
            with log_event("NeuralMultigrid set-up"):
                kind = self._set_up(pc)
        except InputError as error:  # on all ranks alike: a matrix that this is not for, so another solver may try
            self.error = error
            _LOGGER.warning("NeuralMultigrid: %s", error)
            pc.setFailedReason(PETSc.PC.FailedReason.SETUP_ERROR)
            self.report = SolveReport(method="multigrid by aggregation", converged=False, reason=-11, advice=str(error))
            return
        except Exception as error:
            self.error = error  # PETSc hands on no more than a number
            raise
        assert self._cycle is not None
        self.report = SolveReport(
            method="multigrid by aggregation",
            why=f"class of the matrix: {kind}",
            reason=2,
            seconds={"set-up": time.perf_counter() - began},
            quantities={
                "levels": len(self._cycle.sizes),
                "unknowns": "/".join(str(size) for size in self._cycle.sizes),
                "operator complexity": self._cycle.complexity,
            },
        )

    def apply(self, pc: PETSc.PC, x: PETSc.Vec, y: PETSc.Vec) -> None:
        """Apply one cycle. Collective: yes."""
        if self._cycle is None:
            y.set(float("nan"))
            return
        self._event.begin()
        self._cycle.apply(x, y)
        self._event.end()

    # The cycle is symmetric.
    applyTranspose = apply

    def view(self, pc: PETSc.PC, viewer: PETSc.Viewer) -> None:
        """Print the settings, what the set-up did, and PETSc's cycle. Collective: yes."""
        if viewer.getType() != PETSc.Viewer.Type.ASCII:
            return
        viewer.printfASCII(f"  body: {self.settings.body}\n")
        for label, value in self.report.rows() if self.report is not None else ():
            viewer.printfASCII(f"  {label}: {value}\n")
        if self._cycle is not None:
            self._cycle.view(viewer)

    def reset(self, pc: PETSc.PC | None = None) -> None:
        """Free the hierarchy. Collective: yes."""
        if self._cycle is not None:
            self._cycle.release()
        self._cycle = None

    def destroy(self, pc: PETSc.PC | None = None) -> None:
        """Free the hierarchy. Collective: yes."""
        self.reset()

    # ------------------------------------------------------------------------------------------------------------------

    def _set_up(self, pc: PETSc.PC) -> str:
        matrix = pc.getOperators()[1]
        if "aij" not in matrix.getType():
            raise InputError(f"the matrix is of type {matrix.getType()}: multigrid by aggregation takes aij matrices")
        kind, constants = choose_constants(matrix)
        levels = build_hierarchy(matrix, self.settings.constants(constants))
        self._cycle = AlgebraicCycle(levels, f"{pc.getOptionsPrefix() or ''}pc_nmg_")
        return kind
