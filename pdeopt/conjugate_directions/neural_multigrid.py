"""Neural multigrid as a PETSc preconditioner: a symmetric V-cycle whose operators are chosen for each matrix."""

import dataclasses
import logging
import time
from collections.abc import Mapping
from typing import Any

from petsc4py import PETSc

import numpy as np
import numpy.typing as npt

from pdeopt.conjugate_directions.algebraic_body import AlgebraicMultigrid
from pdeopt.conjugate_directions.body import Body
from pdeopt.conjugate_directions.factor_body import Factors
from pdeopt.conjugate_directions.grid_body import GridMultigrid
from pdeopt.conjugate_directions.grid_cycle import CycleSettings
from pdeopt.conjugate_directions.grid_network import WeightsError
from pdeopt.conjugate_directions.matrix_check import check_matrix
from pdeopt.fem.forms import log_event
from pdeopt.fem.settings import check_choice, read_settings
from pdeopt.report import KSP_ADVICE, InputError, PdeoptError, SolveReport

__all__ = ["MultigridSettings", "NeuralMultigrid"]

_LOGGER = logging.getLogger(__name__)
_Reason = PETSc.KSP.ConvergedReason
# What a cycle that is not safe for every matrix may be to blame for.
_UNFIT = {
    int(_Reason.DIVERGED_INDEFINITE_PC): "indefinite cycle",
    int(_Reason.DIVERGED_BREAKDOWN): "breakdown",
    int(_Reason.DIVERGED_NANORINF): "NaN or Inf",
}
_TRIALS = 2  # failures of the fast cycle after which a pattern keeps the safe one


@dataclasses.dataclass(frozen=True)
class MultigridSettings:
    """Settings of `NeuralMultigrid`; its docstring says what they mean.

    Raises
    ------
    InputError
        If one is out of its range.
    """

    body: str = "auto"
    strength: str = "auto"
    threshold: float = -1.0
    descents: int = -1
    coarse_size: int = 500
    reuse_interpolation: bool = False
    small: int = 20_000
    weights: str = "learned"
    coordinates: object = dataclasses.field(default="", compare=False)

    def __post_init__(self) -> None:
        check_choice(self, "body", ("auto", "grid", "algebraic"))
        check_choice(self, "strength", ("auto", "symmetric", "evolution"))
        if self.coarse_size < 1:
            raise InputError(f"coarse_size is {self.coarse_size!r}: give a positive number of unknowns")
        if self.small < 0:
            raise InputError(f"small is {self.small!r}: give a number of unknowns, 0 or more")

    def constants(self) -> Mapping[str, Any]:
        """Return the fields of `Constants` that are set here."""
        given = {
            "strength": None if self.strength == "auto" else self.strength,
            "threshold": None if self.threshold < 0.0 else self.threshold,
            "descents": None if self.descents < 0 else self.descents,
            "coarse_size": self.coarse_size,
        }
        return {name: value for name, value in given.items() if value is not None}


class NeuralMultigrid:
    """One symmetric multigrid cycle, linear in the residual, for symmetric positive definite matrices.

    Switched on by ``-pc_type python -pc_python_type pdeopt.NeuralMultigrid``. It has two bodies:

    grid
        For linear elements on structured meshes, one unknown a point: operator-dependent coarsening of stencils, and
        incomplete factors as smoother, compiled (`GridMultigrid`). It needs the coordinates of the unknowns, whatever
        their numbering and partition. It computes in single precision: plain conjugate gradients reach relative
        residuals of 1e-8 with it.
    algebraic
        For any matrix of type aij: aggregates of strongly coupled unknowns, interpolation smoothed in one or two steps,
        Galerkin products, SOR forward down and backward up. A near-nullspace that is attached to the matrix is
        interpolated exactly. Of several unknowns a node on one rank, set-up and sweeps are compiled, and a sweep solves
        for a node's unknowns at once (`BlockCycle`). The constants (measure of strength, threshold, steps) follow from
        the class of the matrix: several unknowns a node, anisotropic, or the rest. It needs the extra ``multigrid``.

    On lattices in space a small network predicts at each point of each level what the smoother does with the couplings
    that it drops (`pdeopt.conjugate_directions.training`). Nothing else is predicted. With operators found for each
    matrix by gradient descent, the best that any network could do, the interpolation had nothing to gain in space; the
    algebraic body saved no iteration on jumps and a quarter of them on anisotropy, about a tenth of the total; and in
    the plane the grid body saved between nothing (anisotropy) and an eighth (jumps), with the price of the prediction
    (``pdeopt bench linear``).

    The fastest cycle of the grid body may be indefinite, with learned weights for a matrix unlike those of the
    training. If the Krylov method then ends with DIVERGED_INDEFINITE_PC, DIVERGED_BREAKDOWN or DIVERGED_NANORINF, the
    cycle is set up with the constants that are safe, and the solve goes on from the iterate that was reached. That is
    logged at INFO and counted in `report`; new values get the fast cycle again, after a second failure in a pattern the
    safe one.

    New values in the same pattern reuse what depends on the pattern alone: the grid body's lattice and partition.
    The algebraic body makes everything anew, unless it is to keep its interpolations.
    Matrices of other types, unsymmetric ones, and those that are seen to be indefinite or to have NaN are refused: the
    Krylov method ends with the reason DIVERGED_PCSETUP_FAILED, and the sentence is in the log and in `report`. Of a
    singular matrix (a null space is attached, or constants are in the kernel) a pseudo-inverse is taken on the coarsest
    level.

    Options, under the prefix of the preconditioner
    -----------------------------------------------
    ``-pc_nmg_body`` : auto (default), grid or algebraic
        auto takes the grid body where coordinates are known and the unknowns lie on a lattice, else the algebraic one;
        and no multigrid for a small matrix on one rank, see ``-pc_nmg_small``.
    ``-pc_nmg_coordinates`` : KEY
        Key of petsctools' application context: the scalar DOLFINx function space, or an array of shape (rows, 2 or 3)
        with the places of the owned unknowns, in any unit of length.
    ``-pc_nmg_weights`` : learned (default), constant or PATH
        Grid body: weights of the network that predicts from each point's stencil what the smoother keeps of dropped
        couplings: those that come with the package, where there are any for lattices of so many dimensions, none (in
        the plane all is kept, which is safe for every positive definite matrix; in space nothing is, which is faster,
        and what is safe stands behind it), or those of a file.
    ``-pc_nmg_strength`` : auto (default), symmetric or evolution
        Algebraic body: measure of strength, see `pdeopt.conjugate_directions.algebraic_hierarchy.Constants`.
    ``-pc_nmg_threshold`` : -1
        Algebraic body: its threshold; negative values leave it to the class.
    ``-pc_nmg_descents`` : -1
        Algebraic body: steps of interpolation towards the least energy; negative values leave them to the class.
    ``-pc_nmg_coarse_size`` : 500
        Algebraic body: unknowns at which the coarsest level is factorised.
    ``-pc_nmg_small`` : 20000
        With the body auto and on one rank: unknowns up to which factors, incomplete or complete, take the place of
        multigrid (`pdeopt.conjugate_directions.factor_body.Factors`).
    ``-pc_nmg_reuse_interpolation`` : false
        Algebraic body: keep the interpolations while only the values of the matrix change, as in a sequence of similar
        ones: an update takes a third of a set-up or less.
    ``-pc_nmg_mg_levels_...``, ``-pc_nmg_mg_up_...``, ``-pc_nmg_mg_coarse_...``, ``-pc_nmg_pc_mg_...``
        Algebraic body: options of PETSc's smoothers, down and up, of the coarse solver, and of the cycle; not where the
        sweeps are compiled.
    ``-pc_nmg_factors_pc_...``
        Options of the factors of small matrices.

    Parameters
    ----------
    settings
        The same from Python.

    Attributes
    ----------
    report
        What the last set-up did, and what a solve that diverged since tells of the matrix.
    error
        The exception that ended the last set-up.

    Raises
    ------
    OptionError
        If an option is unknown or its value unfit.
    """

    def __init__(self, settings: MultigridSettings | None = None) -> None:
        self.settings = settings or MultigridSettings()
        self.report: SolveReport | None = None
        self.error: Exception | None = None
        self._body: Body | None = None
        self._why = ""  # this body
        self._refused: object = None  # sizes of a matrix whose unknowns lie on no lattice
        self._failures = 0  # of the fast cycle in this pattern
        self._fallbacks: dict[str, int] = {}  # how often, by reason
        self._repeating = False
        self._strict: bool | None = None  # what the script wants of a solve that fails, while it is not told to PETSc
        self._event = PETSc.Log.Event("NeuralMultigrid cycle")

    # --- what PETSc calls ---------------------------------------------------------------------------------------------

    def setFromOptions(self, pc: PETSc.PC) -> None:
        """Read the options under the prefix of the preconditioner. Collective: no."""
        former = self.settings
        self.settings = read_settings(former, pc.getOptionsPrefix(), "pc_nmg_", inner=("mg_", "pc_mg_", "factors_"))
        if self.settings != former or self.settings.coordinates is not former.coordinates:
            self.reset()
            self._refused = None

    def setUp(self, pc: PETSc.PC) -> None:
        """Take the present values of the matrix. Collective: yes."""
        self.error = None
        began = time.perf_counter()
        try:
            with log_event("NeuralMultigrid set-up"):
                kept = self._set_up(pc)
        except PdeoptError as error:  # on all ranks alike: not for this matrix, so that another solver may try
            self.reset()
            self.error = error
            _LOGGER.warning("NeuralMultigrid: %s", error)
            pc.setFailedReason(PETSc.PC.FailedReason.SETUP_ERROR)
            self.report = SolveReport(method="NeuralMultigrid", converged=False, reason=-11, advice=str(error))
            return
        except Exception as error:
            self.error = error  # PETSc hands on no more than a number
            raise
        assert self._body is not None
        self.report = SolveReport(
            method=self._body.name,
            why=self._why,
            reason=2,
            seconds={"set-up" if not kept else "update": time.perf_counter() - began},
            quantities={
                **self._body.quantities(),
                "fallbacks": "; ".join(f"{count} x {why}" for why, count in self._fallbacks.items()) or "none",
            },
        )

    def apply(self, pc: PETSc.PC, x: PETSc.Vec, y: PETSc.Vec) -> None:
        """Apply one cycle. Collective: yes."""
        if self._body is None:
            y.set(float("nan"))
            return
        self._event.begin()
        self._body.apply(x, y)
        self._event.end()

    # The cycle is symmetric.
    applyTranspose = apply

    def preSolve(self, pc: PETSc.PC, ksp: PETSc.KSP, b: PETSc.Vec, x: PETSc.Vec) -> None:
        """Keep PETSc from raising before `postSolve` can stand behind the cycle. Collective: no."""
        if not self._repeating:  # the set-up is yet to come
            # Of a solve that an exception ended, as a monitor's, `postSolve` has not seen the end.
            self._strict = bool(self._strict) or bool(ksp.getErrorIfNotConverged())
            ksp.setErrorIfNotConverged(False)

    def postSolve(self, pc: PETSc.PC, ksp: PETSc.KSP, b: PETSc.Vec, x: PETSc.Vec) -> None:
        """Go on with the safe cycle where a fast one failed; report what a failure tells. Collective: yes."""
        if self._strict is not None:
            ksp.setErrorIfNotConverged(self._strict)
            self._strict = None
        reason = int(ksp.getConvergedReason())
        if reason in _UNFIT and self._fast() and np.isfinite(b.norm()):
            self._go_on(_UNFIT[reason], pc, ksp, b, x)
            reason = int(ksp.getConvergedReason())
        if self.report is not None and self._body is not None:
            advice = KSP_ADVICE.get(reason, "") if reason < 0 else ""
            self.report = dataclasses.replace(self.report, advice=advice)

    def view(self, pc: PETSc.PC, viewer: PETSc.Viewer) -> None:
        """Print the settings, what the set-up did, and the cycle. Collective: yes."""
        if viewer.getType() != PETSc.Viewer.Type.ASCII:
            return
        viewer.printfASCII(f"  body: {self.settings.body}\n")
        for label, value in self.report.rows() if self.report is not None else ():
            viewer.printfASCII(f"  {label}: {value}\n")
        if self._body is not None:
            self._body.view(viewer)

    def reset(self, pc: PETSc.PC | None = None) -> None:
        """Free the cycle. Collective: yes."""
        if self._body is not None:
            self._body.release()
        self._body = None

    def destroy(self, pc: PETSc.PC | None = None) -> None:
        """Free the cycle. Collective: yes."""
        self.reset()

    # ------------------------------------------------------------------------------------------------------------------

    def _fast(self) -> bool:
        """Whether there is a safer cycle than the present one."""
        return isinstance(self._body, GridMultigrid) and not self._body.safe

    def _go_on(self, why: str, pc: PETSc.PC, ksp: PETSc.KSP, b: PETSc.Vec, x: PETSc.Vec) -> None:
        """Solve again with the safe cycle, from the iterate that was reached."""
        self._failures += 1
        self._fallbacks[why] = self._fallbacks.get(why, 0) + 1
        _LOGGER.info("NeuralMultigrid: %s: going on with the constants that are safe", why)
        if not np.isfinite(x.norm()):
            x.set(0.0)
        starts_at_x = bool(ksp.getInitialGuessNonzero())
        ksp.setInitialGuessNonzero(True)
        self._repeating = True
        try:
            self.setUp(pc)
            before = ksp.getIterationNumber()
            ksp.solve(b, x)
            ksp.setIterationNumber(before + ksp.getIterationNumber())
        finally:
            self._repeating = False
            ksp.setInitialGuessNonzero(starts_at_x)

    def _set_up(self, pc: PETSc.PC) -> bool:
        """Make or update the body; return whether a former one was kept."""
        matrix = pc.getOperators()[1]
        singular = check_matrix(matrix).singular
        if isinstance(self._body, GridMultigrid):
            safe = self._repeating or self._failures >= _TRIALS
            fast = CycleSettings.of(len(self._body.layout.shape), self.settings.weights)
            self._body.settings = CycleSettings() if safe else fast
        if self._body is not None and self._body.update(matrix):
            return True
        self.reset()
        self._failures = 0
        prefix = f"{pc.getOptionsPrefix() or ''}pc_nmg_"
        self._body = (
            self._factors(matrix, prefix, singular)
            or self._grid(matrix)
            or AlgebraicMultigrid(
                matrix, self.settings.constants(), prefix, singular, self.settings.reuse_interpolation
            )
        )
        return False

    def _factors(self, matrix: PETSc.Mat, prefix: str, singular: bool) -> Factors | None:
        """Return factors where the matrix is small and on one rank."""
        alone = matrix.getComm().getSize() == 1
        if self.settings.body != "auto" or not alone or singular or matrix.getSize()[0] > self.settings.small:
            return None
        try:
            factors = Factors(matrix, prefix + "factors_")
            self._why = f"the matrix has no more than {self.settings.small} unknowns"
            return factors
        except PdeoptError:
            return None

    def _grid(self, matrix: PETSc.Mat) -> GridMultigrid | None:
        """Return the body for lattices where it is wanted and there is one."""
        if self.settings.body == "algebraic":
            self._why = "the algebraic body was asked for"
            return None
        if self._refused == _shape(matrix):
            return None
        try:
            grid = GridMultigrid(matrix, _places(self.settings.coordinates, matrix), weights=self.settings.weights)
            self._why = "the unknowns lie on a lattice, and nearest neighbours are coupled"
            return grid
        except PdeoptError as error:
            if self.settings.body == "grid" or isinstance(error, WeightsError):
                raise
            self._why, self._refused = str(error), _shape(matrix)
            return None


def _shape(matrix: PETSc.Mat) -> tuple[object, float]:
    """Return what tells the matrix's pattern from most others, the same on all ranks. Collective: yes."""
    return matrix.getSize(), matrix.getInfo(PETSc.Mat.InfoType.GLOBAL_SUM)["nz_used"]


def _places(given: object, matrix: PETSc.Mat) -> npt.NDArray[np.float64]:
    """Return the coordinates of the owned unknowns, shape (rows, 2 or 3). Collective: no."""
    if isinstance(given, str):
        what = f"nothing of the name {given!r} is in the application context" if given else "no coordinates are known"
        raise InputError(
            f"grid: {what}; give the function space, or the coordinates of the owned unknowns, as pc_nmg_coordinates"
        )
    if matrix.getBlockSize() > 1:
        raise InputError(f"grid: the matrix has blocks of {matrix.getBlockSize()} unknowns; use the algebraic body")
    if isinstance(given, np.ndarray):
        return given
    tabulate = getattr(given, "tabulate_dof_coordinates", None)
    if tabulate is None:
        raise InputError(f"grid: coordinates are of type {type(given).__name__}: give a function space or an array")
    return tabulate()[: matrix.getLocalSize()[0]]
