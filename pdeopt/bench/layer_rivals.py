"""Gradients of layers beside those of dolfinx-adjoint, on the same meshes and forms."""

from collections.abc import Callable, Mapping
from typing import Any

from mpi4py import MPI

import dolfinx
import numpy as np
import ufl
from dolfinx import fem

from pdeopt.fem import forms
from pdeopt.learn._torch import torch
from pdeopt.learn.pde_layer import PDELayer, TimeSteps

_DIRECT = {
    "ksp_type": "preonly",
    "pc_type": "lu",
    "pc_factor_mat_solver_type": "mumps",
    "ksp_error_if_not_converged": True,
}
_LINEAR: Mapping[str, Any] = {
    "petsc_options": _DIRECT,
    "adjoint_petsc_options": _DIRECT,
    "tlm_petsc_options": _DIRECT,
}
_NONLINEAR: Mapping[str, Any] = {**_LINEAR, "petsc_options": {**_DIRECT, "snes_rtol": 1e-12, "snes_atol": 1e-14}}


def compare(comm: MPI.Comm, name: str, cells: int) -> float:
    """Return the relative difference of two gradients by the control, in the Euclidean norm. Collective: yes."""
    import pyadjoint

    pyadjoint.set_working_tape(pyadjoint.Tape())
    pyadjoint.continue_annotation()
    try:
        taped = _PROBLEMS[name](comm, cells, True)
    finally:
        pyadjoint.pause_annotation()
        pyadjoint.set_working_tape(pyadjoint.Tape())
    ours = _PROBLEMS[name](comm, cells, False)
    difference = comm.allreduce(float(np.sum((ours - taped) ** 2))) ** 0.5
    return float(difference / comm.allreduce(float(np.sum(taped**2))) ** 0.5)


def _square(comm: MPI.Comm, cells: int) -> tuple[fem.FunctionSpace, Any, list[fem.DirichletBC]]:
    mesh = dolfinx.mesh.create_unit_square(comm, cells, cells)
    space = fem.functionspace(mesh, ("Lagrange", 1))
    mesh.topology.create_connectivity(1, 2)
    dofs = fem.locate_dofs_topological(space, 1, dolfinx.mesh.exterior_facet_indices(mesh.topology))
    return space, ufl.dx(mesh, metadata={"quadrature_degree": 4}), [fem.dirichletbc(0.0, dofs, space)]


def _start(function: fem.Function) -> None:
    function.interpolate(lambda x: 1.0 + np.sin(3.0 * x[0]) * x[1])


def _objective(u: Any, dx: Any) -> ufl.Form:
    x = ufl.SpatialCoordinate(dx.ufl_domain())
    return 0.5 * (u - x[0]) ** 2 * dx


def _by_layer(
    layer: PDELayer, control: fem.Function, u: fem.Function, dx: Any, comm: MPI.Comm
) -> np.typing.NDArray[np.float64]:
    """Return the gradient of the objective by the layer, its derivative by the state assembled."""
    tensor = torch.from_numpy(forms.owned_values(control).copy()).requires_grad_()
    output = layer(tensor)
    forms.set_function(u, output.detach().numpy())
    covector = forms.assemble_vector(fem.form(ufl.derivative(_objective(u, dx), u)))
    output.backward(torch.from_numpy(np.array(covector.array_r[: output.numel()])))
    covector.destroy()
    assert tensor.grad is not None
    return np.asarray(tensor.grad.numpy())


def _by_tape(objective: Any, control: Any) -> np.typing.NDArray[np.float64]:
    import pyadjoint

    functional = pyadjoint.ReducedFunctional(objective, pyadjoint.Control(control))
    derivative = functional.derivative()
    return np.array(forms.owned_values(derivative))


def _linear(comm: MPI.Comm, cells: int, taped: bool) -> np.typing.NDArray[np.float64]:
    """Diffusion with a source as the control."""
    space, dx, bcs = _square(comm, cells)
    v, trial = ufl.TestFunction(space), ufl.TrialFunction(space)
    x = ufl.SpatialCoordinate(space.mesh)
    if taped:
        import dolfinx_adjoint

        f, u = dolfinx_adjoint.Function(space), dolfinx_adjoint.Function(space)
        _start(f)
        a = (1.0 + x[0]) * ufl.inner(ufl.grad(trial), ufl.grad(v)) * dx
        problem = dolfinx_adjoint.LinearProblem(
            a, f * v * dx, u=u, bcs=bcs, petsc_options_prefix="rival_linear_", **_LINEAR
        )
        problem.solve()
        return _by_tape(dolfinx_adjoint.assemble_scalar(_objective(u, dx)), f)
    f, u = fem.Function(space), fem.Function(space)
    _start(f)
    residual = (1.0 + x[0]) * ufl.inner(ufl.grad(u), ufl.grad(v)) * dx - f * v * dx
    return _by_layer(PDELayer(residual, u, bcs, controls=[f]), f, u, dx, comm)


def _nonlinear(comm: MPI.Comm, cells: int, taped: bool) -> np.typing.NDArray[np.float64]:
    """Diffusion that depends on the state, its logarithm the control."""
    space, dx, bcs = _square(comm, cells)
    v = ufl.TestFunction(space)

    def residual(u: Any, m: Any) -> ufl.Form:
        return ufl.exp(m) * (1.0 + u**2) * ufl.inner(ufl.grad(u), ufl.grad(v)) * dx - 20.0 * v * dx

    if taped:
        import dolfinx_adjoint

        m, u = dolfinx_adjoint.Function(space), dolfinx_adjoint.Function(space)
        _start(m)
        problem = dolfinx_adjoint.NonlinearProblem(
            residual(u, m), u, bcs=bcs, petsc_options_prefix="rival_nonlinear_", **_NONLINEAR
        )
        problem.solve()
        return _by_tape(dolfinx_adjoint.assemble_scalar(_objective(u, dx)), m)
    m, u = fem.Function(space), fem.Function(space)
    _start(m)
    return _by_layer(PDELayer(residual(u, m), u, bcs, controls=[m]), m, u, dx, comm)


def _steps(comm: MPI.Comm, cells: int, taped: bool) -> np.typing.NDArray[np.float64]:
    """Five steps of a nonlinear heat equation, the source the control."""
    space, dx, bcs = _square(comm, cells)
    v, size, count = ufl.TestFunction(space), 0.05, 5

    def residual(u: Any, before: Any, f: Any) -> ufl.Form:
        return ((u - before) / size * v + (1.0 + u**2) * ufl.inner(ufl.grad(u), ufl.grad(v)) - f * v) * dx

    if taped:
        import dolfinx_adjoint

        f, u, before = (dolfinx_adjoint.Function(space) for _ in range(3))
        _start(f)
        problem = dolfinx_adjoint.NonlinearProblem(
            residual(u, before, f), u, bcs=bcs, petsc_options_prefix="rival_steps_", **_NONLINEAR
        )
        for _ in range(count):
            problem.solve()
            dolfinx_adjoint.assign(u, before)
        return _by_tape(dolfinx_adjoint.assemble_scalar(_objective(u, dx)), f)
    f, u, before = (fem.Function(space) for _ in range(3))
    _start(f)
    layer = PDELayer(residual(u, before, f), u, bcs, controls=[f], time_steps=TimeSteps(before, count))
    return _by_layer(layer, f, u, dx, comm)


_PROBLEMS: Mapping[str, Callable[[MPI.Comm, int, bool], np.typing.NDArray[np.float64]]] = {
    "linear diffusion": _linear,
    "nonlinear diffusion": _nonlinear,
    "time steps": _steps,
}
NAMES = tuple(_PROBLEMS)
