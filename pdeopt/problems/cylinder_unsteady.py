"""Vortex shedding behind the cylinder in time: a linearly implicit midpoint rule, and what it says of the forces."""

import dataclasses
import itertools
import math
from collections.abc import Mapping

from petsc4py import PETSc

import numpy as np
import numpy.typing as npt
import ufl
from dolfinx import fem

from pdeopt.fem import forms
from pdeopt.problems.cylinder_flow import MUMPS, CylinderFlow
from pdeopt.problems.cylinder_mesh import DIAMETER
from pdeopt.problems.linear import check_range
from pdeopt.report import KSP_ADVICE, ConvergenceError, InputError

Array = npt.NDArray[np.float64]
_EULER_STEPS = 2  # each of two half steps


@dataclasses.dataclass(frozen=True)
class Shedding:
    """Periodic forces on the cylinder, over whole periods.

    Parameters
    ----------
    drag_max, lift_max, lift_min
        Extreme coefficients.
    strouhal
        f D / U with the frequency f of the lift.
    pressure_drop
        Half a period after the largest lift [Pa], where the benchmark asks for it.
    drift
        Largest change of the extreme lift from one period to the next, relative: 0 when the flow is periodic.
    """

    drag_max: float
    lift_max: float
    lift_min: float
    strouhal: float
    pressure_drop: float
    drift: float


@dataclasses.dataclass(frozen=True)
class ForceHistory:
    """Forces over time.

    Parameters
    ----------
    times
        Shape (steps,), increasing [s].
    drag, lift
        Coefficients, shape (steps,).
    pressure_drop
        Shape (steps,) [Pa].
    mean_inflow
        The velocity U of the coefficients [m/s].
    """

    times: Array
    drag: Array
    lift: Array
    pressure_drop: Array
    mean_inflow: float

    def shedding(self, periods: int = 2) -> Shedding:
        """Evaluate the last periods, from one upward crossing of the mean lift to another. Collective: no.

        Parameters
        ----------
        periods
            Whole periods to evaluate, >= 1.

        Raises
        ------
        InputError
            If the history holds fewer periods.
        """
        crossings = self._upward_crossings()
        if periods < 1 or crossings.size < periods + 1:
            raise InputError(
                f"periods = {periods} are to be evaluated, and the lift has {max(crossings.size - 1, 0)} whole ones up "
                f"to {self.times[-1] if self.times.size else 0.0:g} s: advance further"
            )
        crossings = crossings[-periods - 1 :]
        highest, lowest, when = [], [], 0.0
        for begin, end in itertools.pairwise(crossings):
            when, lift = _peak(self.times, self.lift, begin, end)
            highest.append(lift)
            lowest.append(-_peak(self.times, -self.lift, begin, end)[1])
        period = float(np.mean(np.diff(crossings)))
        after = when + 0.5 * period if when + 0.5 * period <= self.times[-1] else when - 0.5 * period
        changes = np.abs(np.concatenate([np.diff(highest), np.diff(lowest)]))
        return Shedding(
            drag_max=_peak(self.times, self.drag, crossings[0], crossings[-1])[1],
            lift_max=max(highest),
            lift_min=min(lowest),
            strouhal=DIAMETER / (self.mean_inflow * period),
            pressure_drop=float(np.interp(after, self.times, self.pressure_drop)),
            drift=float(changes.max() / max(highest)) if changes.size else np.nan,
        )

    def _upward_crossings(self) -> Array:
        """Return when the lift rises through the middle of its range in the second half, shape (crossings,) [s]."""
        if self.times.size < 4:
            return np.empty(0)
        late = self.lift[self.lift.size // 2 :]
        shifted = self.lift - 0.5 * (late.max() + late.min())
        before = np.flatnonzero((shifted[:-1] < 0.0) & (shifted[1:] >= 0.0))
        share = shifted[before] / (shifted[before] - shifted[before + 1])
        return self.times[before] + share * (self.times[before + 1] - self.times[before])


def _peak(times: Array, values: Array, begin: float, end: float) -> tuple[float, float]:
    """Return time and value of the maximum in an interval, by the parabola through its three largest samples."""
    inside = np.flatnonzero((times >= begin) & (times <= end))
    top = int(inside[np.argmax(values[inside])])
    if not 0 < top < times.size - 1:
        return float(times[top]), float(values[top])
    a, b, c = np.polyfit(times[top - 1 : top + 2] - times[top], values[top - 1 : top + 2], 2)
    shift = -b / (2.0 * a) if a < 0.0 else 0.0
    return float(times[top] + shift), float(c - b**2 / (4.0 * a)) if a < 0.0 else float(values[top])


class UnsteadyCylinderFlow:
    """Advance the flow past the cylinder in time by the implicit midpoint rule, one linear system a step.

    With the flow m in the middle of the step from u to 2 m - u, for all test functions,

        (m - u, v) / (dt / 2) + nu (grad m, grad v) + (c(m), v) - (p, div v) - (q, div m) = 0,

    where the convection (m . grad) m is linearised about the extrapolation w = (3 u - u') / 2 from the last two flows,

        c(m) = (w . grad) m + (m . grad) w - (w . grad) w,

    which leaves out only ((m - w) . grad)(m - w), of fourth order in dt. The first two steps are four half steps of
    backward Euler, since nothing else damps what a start with rough data leaves behind. Forces are those at m.

    Parameters
    ----------
    flow
        The flow; the motion starts at its ``solution``, which then holds the flow in the middle of the last step.
    time_step
        dt > 0 [s]; at Reynolds number 100 a period takes 0.33 s.
    petsc_options
        Options of the KSP, without prefix, beside or instead of LU by MUMPS. Options under ``cylinder_step_`` in
        PETSc's database win.

    Attributes
    ----------
    time
        At the end of the last step [s].

    Raises
    ------
    InputError
        If the step is not positive.

    Collective: yes.

    References
    ----------
    Rannacher, Numer. Math. 43 (1984) 309-327: the damped start.
    """

    def __init__(self, flow: CylinderFlow, time_step: float, petsc_options: Mapping[str, object] | None = None) -> None:
        check_range("time_step", time_step, 0.0)
        self.flow, self.time_step, self.time, self._steps = flow, float(time_step), 0.0, 0
        self._records: list[tuple[float, float, float, float]] = []
        space, mesh = flow.space, flow.space.mesh
        self._last, self._older = fem.Function(space), fem.Function(space)
        self._extrapolation = fem.Constant(mesh, np.zeros(2))
        last, older = (ufl.split(function)[0] for function in (self._last, self._older))
        middle, test = flow.velocity, ufl.TestFunctions(space)[0]
        extrapolated = self._extrapolation[0] * last + self._extrapolation[1] * older
        rate = fem.Constant(mesh, 2.0 / self.time_step)  # a number in the form would be compiled anew for every step
        velocity, pressure = ufl.TrialFunctions(space)
        self._bilinear = forms.compile_form(
            rate * ufl.inner(velocity, test) * flow.dx
            + flow.spatial_residual(velocity, pressure)
            + flow.convection(extrapolated, velocity)
            + flow.convection(velocity, extrapolated)
        )
        residual = flow.residual + rate * ufl.inner(middle - last, test) * flow.dx
        self._residual = forms.compile_form(residual)
        self._linearised = forms.compile_form(residual - flow.convection(middle - extrapolated, middle - extrapolated))
        self._bcs = list(flow.bcs.values())
        self._fixed = forms.owned_dirichlet_dofs(self._bcs)
        self._matrix = forms.assemble_matrix(self._bilinear, self._bcs)
        self._change = self._matrix.createVecRight()
        self._ksp = PETSc.KSP().create(mesh.comm)
        self._ksp.setOptionsPrefix("cylinder_step_")
        self._ksp.setOperators(self._matrix)
        with forms.default_options("cylinder_step_", {**MUMPS, **(petsc_options or {})}):
            self._ksp.setFromOptions()
            self._ksp.setUp()
        for function in (self._last, self._older):
            function.x.array[:] = flow.solution.x.array

    def advance(self, steps: int) -> None:
        """Make a number of steps, and record the forces of each. Collective: yes.

        Raises
        ------
        ConvergenceError
            If a linear system is not solved, or the flow is NaN or Inf.
        """
        solution = self.flow.solution
        for _ in range(steps):
            half = 0.5 * self.time_step
            if self._steps < _EULER_STEPS:
                for _ in range(2):
                    self._solve_middle(1.0, 0.0)
                    self.time += half
                    self._record(self.time)
                    self._older.x.array[:], self._last.x.array[:] = self._last.x.array, solution.x.array
            else:
                # The last two flows are half a step apart after Euler's, and a step apart from then on.
                self._solve_middle(*((2.0, -1.0) if self._steps == _EULER_STEPS else (1.5, -0.5)))
                self._record(self.time + half)
                self.time += self.time_step
                self._older.x.array[:] = self._last.x.array
                self._last.x.array[:] = 2.0 * solution.x.array - self._last.x.array
            self._steps += 1

    def _solve_middle(self, *weights: float) -> None:
        """Find the flow in the middle of the step. Collective: yes."""
        solution = self.flow.solution
        self._extrapolation.value = np.array(weights)
        for bc in self._bcs:
            bc.set(solution.x.array)
        solution.x.scatter_forward()
        forms.reassemble_matrix(self._matrix, self._bilinear, self._bcs)
        right = forms.assemble_vector(self._linearised)
        right.array[self._fixed] = 0.0
        self._ksp.solve(right, self._change)
        right.destroy()
        reason = self._ksp.getConvergedReason()
        if reason <= 0:
            raise ConvergenceError(
                f"the step from {self.time:g} s was not solved (reason {reason}): "
                f"{KSP_ADVICE.get(reason, 'see cylinder_step_ksp_converged_reason')}"
            )
        forms.set_function(solution, forms.owned_values(solution) - self._change.array_r)

    def _record(self, time: float) -> None:
        residual = forms.assemble_vector(self._residual)
        forces = self.flow.forces_from(residual)
        residual.destroy()
        if not math.isfinite(forces.drag):
            raise ConvergenceError(f"the flow is NaN or Inf at {time:g} s: take a smaller time_step, or another start")
        self._records.append((time, forces.drag, forces.lift, forces.pressure_drop))

    def history(self) -> ForceHistory:
        """Return the forces so far, of the middle of each step. Collective: no."""
        times, drag, lift, pressure_drop = np.array(self._records).reshape(-1, 4).T.copy()
        return ForceHistory(times, drag, lift, pressure_drop, self.flow.mean_inflow)

    def destroy(self) -> None:
        """Free the PETSc objects. Collective: yes."""
        for item in (self._ksp, self._matrix, self._change):
            item.destroy()
