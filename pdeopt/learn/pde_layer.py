"""A DOLFINx solve as a torch function, differentiated by its adjoint."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from mpi4py import MPI

import dolfinx
import numpy as np
import numpy.typing as npt
import ufl

from pdeopt.fem import forms
from pdeopt.learn._arguments import Arguments
from pdeopt.learn._autograd import Solve, TakeSteps
from pdeopt.learn._equation import Equation
from pdeopt.learn._inputs import make_inputs
from pdeopt.learn._second_order import SecondOrder
from pdeopt.learn._time_steps import March, TimeSteps
from pdeopt.learn._torch import torch
from pdeopt.learn.adjoint_tolerance import NoiseTolerance, ToleranceControl
from pdeopt.learn.network_coefficient import network_coefficients
from pdeopt.report import InputError, SolveReport

__all__ = ["NoiseTolerance", "PDELayer", "TimeSteps"]

Array = npt.NDArray[np.float64]
Control = dolfinx.fem.Function | dolfinx.fem.Constant


class PDELayer(torch.nn.Module):
    """u(m) with F(u, m; v) = 0 for all v: a solve on finite elements as a torch function of the controls m.

    ::

        layer = pdeopt.PDELayer(F, u, bcs, controls=[m, f])
        u_tensor = layer(m_tensor, f_tensor)

    Forward is a solve by PETSc's SNES. Backward solves the adjoint equation J^T p = w at the solution, with the
    preconditioner that Newton's method left, refined where that is stale, and returns -p^T F_m: one transposed solve
    and one assembly of the matrix, none if the matrix is the same. F and its derivatives are integrated by one rule.

    A field's tensor holds the owned degrees of freedom of this rank, shape (owned,), float64; a constant's its numbers,
    equal on all ranks. A leading axis is a batch, solved one by one; controls without it are the same for all. Under
    MPI every rank calls the layer, and backward, in the same order. The gradient by a field is this rank's part of it,
    that by numbers or by the parameters of a network coefficient is whole on every rank.

    Nothing wrong is returned: a solve that fails, forward or backward, is an exception on all ranks.

    Parameters
    ----------
    residual
        F, linear in one test function.
    state
        u; its values at creation are where every solve starts.
    bcs
        Dirichlet conditions; a function or constant that gives their values may be a control.
    controls
        m: functions of any space and constants, in the order of the layer's arguments. The parameters of
        `NetworkCoefficient` objects in F need not be named.
    quadrature_degree
        Degree for integrals whose measure has none; estimated from F if None.
    time_steps
        How F is repeated in time, see `TimeSteps`; None for a steady problem.
    petsc_options
        Options of the SNES, its KSP and PC, without prefix. By default Newton's method with LU by MUMPS.
    petsc_options_prefix
        Prefix under which users may overrule them; unique if None.
    adjoint_rtol
        Relative residual of the adjoint equation, about the relative error of the gradient; or a `NoiseTolerance`.
    kernel
        Functions that span the kernel of a singular equation, such as a constant for pure Neumann conditions. Data are
        checked for compatibility, and u has no component along it.
    entity_maps
        Of forms on several meshes.

    Raises
    ------
    InputError
        If an argument does not fit; when called also for tensors of another size, NaN, numbers that differ between
        ranks, or data that violate a compatibility condition.
    ConvergenceError
        From calls, if a forward or an adjoint solve fails.

    Collective: yes, like all its methods and like backward.
    """

    _numbers = itertools.count()

    def __init__(
        self,
        residual: ufl.Form,
        state: dolfinx.fem.Function,
        bcs: Sequence[dolfinx.fem.DirichletBC] = (),
        *,
        controls: Sequence[Control] = (),
        quadrature_degree: int | None = None,
        time_steps: TimeSteps | None = None,
        petsc_options: Mapping[str, object] | None = None,
        petsc_options_prefix: str | None = None,
        adjoint_rtol: float | NoiseTolerance = 1e-10,
        kernel: Sequence[dolfinx.fem.Function] = (),
        entity_maps: Sequence[dolfinx.mesh.EntityMap] | None = None,
    ) -> None:
        super().__init__()
        _check_form(residual, state)
        space = state.function_space
        self.comm: MPI.Comm = space.mesh.comm
        residual = _fix_degree(residual, quadrature_degree)
        clock = time_steps.clock if time_steps else None
        for index, one in enumerate(controls):
            if one is state or one is clock or one in network_coefficients(residual):
                raise InputError(
                    f"control {index} is the state, the clock or a network coefficient, which the layer sets itself"
                )
        self._times = time_steps
        extra = [] if time_steps is None or _among(time_steps.previous, controls) else [time_steps.previous]
        inputs = make_inputs([*controls, *extra], space.mesh)
        self._inputs = inputs[: len(controls)]
        self._per_step = [time_steps is not None and _among(c, time_steps.per_step) for c in controls]
        self._arguments = Arguments(self._inputs, time_steps.count if time_steps else 0, self._per_step, self.comm)
        self._initial: int | None = None  # which control is the initial state
        if time_steps is not None:
            self._check_time_steps(time_steps, controls, space)
            previous = next(one for one in inputs if one.function is time_steps.previous)
            self._initial = next((i for i, one in enumerate(self._inputs) if one is previous), None)
            inputs = (*(one for one in inputs if one is not previous), previous)
            self._first_state = previous.values()
        prefix = petsc_options_prefix or f"layer_{next(PDELayer._numbers)}_"
        self._equation = Equation(residual, state, bcs, inputs, prefix, petsc_options or {}, kernel, entity_maps)
        self._tolerance = ToleranceControl(adjoint_rtol, self.comm)
        self._second: SecondOrder | None = None
        self.networks = torch.nn.ModuleList([one.network for one in network_coefficients(residual)])

    def _check_time_steps(
        self, times: TimeSteps, controls: Sequence[Control], space: dolfinx.fem.FunctionSpace
    ) -> None:
        if times.previous.function_space != space:
            raise InputError("the previous state of the time steps lives in another space than the state")
        for index, one in enumerate(times.per_step):
            if not _among(one, controls):
                raise InputError(f"per_step names a function (number {index}) that is not among the controls")
            if one is times.previous:
                raise InputError("per_step names the previous state: as a control it is the initial state")

    @property
    def adjoint_rtol(self) -> float:
        """Relative residual of the next adjoint equation."""
        return self._tolerance.rtol

    @adjoint_rtol.setter
    def adjoint_rtol(self, setting: float | NoiseTolerance) -> None:
        self._tolerance = ToleranceControl(setting, self.comm)

    @property
    def state_size(self) -> int:
        """Degrees of freedom of the state that this rank owns."""
        return self._equation.size

    @property
    def report(self) -> SolveReport:
        """What was spent since the layer was made; seconds are this rank's."""
        counts = self._equation.counts
        return SolveReport(
            method=f"PDE layer, {self._equation.matrix.getSize()[0]} unknowns",
            converged=True,
            reason=1,
            iterations=counts.newton,
            linear_iterations=counts.krylov,
            seconds=dict(counts.seconds),
            quantities={
                "forward solves": counts.solves,
                "adjoint solves": counts.adjoints,
                "preconditioners made for adjoints": counts.setups,
                "adjoint tolerance": self.adjoint_rtol,
            },
        )

    # --- torch --------------------------------------------------------------------------------------------------------

    def forward(self, *controls: torch.Tensor) -> torch.Tensor:
        """Return the state, shape (owned,) or (steps, owned), a batch's axis in front. Collective: yes."""
        batch = self._arguments.check(controls)
        parameters = [p for network in self._equation.networks for p in network.parameters]
        if batch is None:
            return self._solve_one(self._arguments.shaped(controls), parameters)
        rows = []
        for row in range(batch):
            chosen = [t[row] if self._arguments.batched(i, t) else t for i, t in enumerate(controls)]
            rows.append(self._solve_one(self._arguments.shaped(chosen), parameters))
        return torch.stack(rows)

    def _solve_one(self, controls: Sequence[torch.Tensor], parameters: Sequence[torch.Tensor]) -> torch.Tensor:
        function: Any = Solve if self._times is None else TakeSteps
        result: torch.Tensor = function.apply(self, *controls, *parameters)
        return result

    # --- arrays -------------------------------------------------------------------------------------------------------

    def _steady(self, values: Sequence[Array], state: Array | None) -> Array:
        """Solve, or put the equation at a solution that is known."""
        equation = self._equation
        equation.load(values)
        if state is None:
            equation.start_from()
            return equation.solve()
        equation.set_state(state)
        equation.linearise()
        return state

    def _adjoint_pass(
        self, values: Sequence[Array], state: Array, cotangent: Array, wanted: Sequence[bool], parameters: bool
    ) -> tuple[Array, list[Array | None], list[torch.Tensor | None]]:
        """Return the adjoint, the gradients by the inputs, and those by the networks' parameters."""
        equation = self._equation
        self._steady(values, state)
        adjoint = equation.solve_adjoint(cotangent, self.adjoint_rtol)
        gradients = equation.gradients(cotangent, adjoint, wanted)
        by_parameters: list[torch.Tensor | None] = []
        if parameters:
            parts = equation.parameter_gradients(adjoint)
            by_parameters = list(self._sum([part for group in parts for part in group]))
        self._observe(gradients, by_parameters)
        return adjoint, gradients, by_parameters

    def _march(self, values: list[Array]) -> March:
        """Return the sweep that belongs to values of the controls."""
        assert self._times is not None
        kept = [index for index in range(len(values)) if index != self._initial]
        initial = self._first_state if self._initial is None else values[self._initial]
        return March(
            self._equation,
            self._times,
            [self._per_step[index] for index in kept],
            [values[index] for index in kept],
            np.array(initial),
        )

    def _march_back(
        self, march: March, cotangent: Array, wanted: Sequence[bool]
    ) -> tuple[list[Array | None], list[torch.Tensor | None]]:
        """Return the gradients by the controls, and those by the networks' parameters."""
        kept = [index for index in range(len(self._inputs)) if index != self._initial]
        by_start = march.backward_sweep(cotangent, [wanted[index] for index in kept], self.adjoint_rtol)
        gradients: list[Array | None] = [None] * len(self._inputs)
        for index, part in zip(kept, march.gradients, strict=True):
            gradients[index] = part if wanted[index] else None
        if self._initial is not None:
            gradients[self._initial] = by_start
        by_parameters = list(self._sum([part for group in march.parameter_gradients for part in group]))
        self._observe(gradients, by_parameters)
        return gradients, list(by_parameters)

    def _observe(self, gradients: Sequence[Array | None], by_parameters: Sequence[torch.Tensor | None]) -> None:
        if not self._tolerance.adapts:
            return
        whole = 1.0 / self.comm.size**0.5  # what is equal on all ranks counts once
        flat = [
            np.ravel(part) * (whole if one.replicated else 1.0)
            for one, part in zip(self._inputs, gradients[: len(self._inputs)], strict=True)
            if part is not None
        ]
        flat += [part.detach().numpy().ravel() * whole for part in by_parameters if part is not None]
        self._tolerance.observe(np.concatenate([np.zeros(0), *flat]))

    def _sum(self, parts: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Add up gradients of parameters over the ranks, in one message. Collective: yes."""
        if self.comm.size == 1 or not parts:
            return list(parts)
        flat = torch.cat([part.detach().reshape(-1).to(dtype=torch.float64, device="cpu") for part in parts]).numpy()
        total = np.empty_like(flat)
        self.comm.Allreduce(flat, total, op=MPI.SUM)
        pieces = torch.split(torch.from_numpy(total), [part.numel() for part in parts])
        return [piece.reshape(part.shape).to(part) for piece, part in zip(pieces, parts, strict=True)]

    def _second_order(self) -> SecondOrder:
        if self._second is None:
            self._second = SecondOrder(self._equation)
        return self._second

    def destroy(self) -> None:
        """Free the PETSc objects. Collective: yes."""
        self._equation.destroy()


def _check_form(residual: ufl.Form, state: dolfinx.fem.Function) -> None:
    if not isinstance(residual, ufl.Form) or len(residual.arguments()) != 1:
        raise InputError("the residual has to be a form with one test function: write F(u; v) = 0, all on one side")
    if residual.arguments()[0].ufl_function_space() != state.function_space:
        raise InputError("test function and state of the layer live in different spaces")
    if not forms.depends_on(residual, [state]):
        raise InputError(f"the residual does not contain the state {state.name!r}")


def _fix_degree(residual: ufl.Form, degree: int | None) -> ufl.Form:
    """Give measures without a degree the one asked for, or that of a network coefficient, or the estimated one."""
    networks = network_coefficients(residual)
    degrees = {network.quadrature_degree for network in networks}
    if len(degrees) > 1:
        raise InputError(f"network coefficients of one layer have quadrature degrees {sorted(degrees)}: use one")
    if degree is None and degrees:
        degree = degrees.pop()
    if degree is not None:
        integrals = [
            integral.reconstruct(metadata={"quadrature_degree": degree, **integral.metadata()})
            for integral in residual.integrals()
        ]
        residual = ufl.Form(integrals)
    for integral in residual.integrals():
        for network in network_coefficients(ufl.Form([integral])):
            given = integral.metadata()["quadrature_degree"]
            if integral.integral_type() != "cell" or given != network.quadrature_degree:
                raise InputError(
                    f"{network.name!r} has quadrature degree {network.quadrature_degree} and stands in a "
                    f"{integral.integral_type()} integral of degree {given}: it needs cell integrals of its degree"
                )
    return forms.fix_quadrature_degree(residual)


def _among(one: Control, others: Sequence[Control]) -> bool:
    return any(one is other for other in others)
