"""Equations as layers: a linear one, two nonlinear ones, a saddle point, time steps, and a network in the form."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from mpi4py import MPI

import basix.ufl
import dolfinx
import numpy as np
import numpy.typing as npt
import ufl
from dolfinx import fem

from pdeopt.control.sweep import Checkpoints
from pdeopt.fem import forms
from pdeopt.learn._torch import torch
from pdeopt.learn.layers import mlp
from pdeopt.learn.network_coefficient import NetworkCoefficient
from pdeopt.learn.pde_layer import PDELayer, TimeSteps

Array = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class LayerCase:
    """A layer, and a point of its controls that does not depend on the number of ranks.

    Parameters
    ----------
    layer
        The layer.
    tensors
        Its arguments.
    replicated
        For each of them, whether it is equal on all ranks.
    weight
        Derivative of the loss by the output, independent of the number of ranks, of the output's shape.
    parameters
        Of its network.
    keep
        What must live as long as the layer.
    """

    layer: PDELayer
    tensors: tuple[torch.Tensor, ...]
    replicated: tuple[bool, ...]
    weight: torch.Tensor
    parameters: tuple[torch.nn.Parameter, ...] = ()
    keep: tuple[Any, ...] = ()

    def loss(self, *tensors: torch.Tensor) -> torch.Tensor:
        """Return this rank's part of <w, u>. Collective: yes."""
        return (self.layer(*tensors) * self.weight).sum()


def _field(space: fem.FunctionSpace, value: Callable[[Array], Array]) -> torch.Tensor:
    function = fem.Function(space)
    function.interpolate(value)
    return torch.from_numpy(forms.owned_values(function).copy())


def _weight(space: fem.FunctionSpace) -> torch.Tensor:
    """Return the derivative of the integral of (1 + x) times all components, a covector."""
    mesh = space.mesh
    test = ufl.TestFunction(space)
    x = ufl.SpatialCoordinate(mesh)
    components = [test[index] if index else test for index in np.ndindex(*test.ufl_shape)]
    dx = ufl.dx(metadata={"quadrature_degree": 4})
    vector = forms.assemble_vector(fem.form(sum(((1.0 + x[0]) * one * dx for one in components), ufl.Form([]))))
    values = torch.from_numpy(np.array(vector.array_r[: forms.owned_size(space)]))
    vector.destroy()
    return values


def _boundary(space: fem.FunctionSpace) -> npt.NDArray[np.int32]:
    mesh = space.mesh
    last = mesh.topology.dim - 1
    mesh.topology.create_connectivity(last, last + 1)
    return fem.locate_dofs_topological(space, last, dolfinx.mesh.exterior_facet_indices(mesh.topology))


def poisson(comm: MPI.Comm, cells: int, **settings: Any) -> LayerCase:
    """-div(e^m grad u) = f s(x) with u = g on the boundary; controls m (cellwise), f (a number), g."""
    mesh = dolfinx.mesh.create_unit_square(comm, cells, cells)
    space, cellwise = fem.functionspace(mesh, ("Lagrange", 1)), fem.functionspace(mesh, ("DG", 0))
    u, v = fem.Function(space), ufl.TestFunction(space)
    m, g, f = fem.Function(cellwise), fem.Function(space), fem.Constant(mesh, 1.0)
    x = ufl.SpatialCoordinate(mesh)
    load = f * ufl.sin(3.0 * x[0]) * v
    residual = ufl.exp(m) * ufl.inner(ufl.grad(u), ufl.grad(v)) * ufl.dx - load * ufl.dx
    bc = fem.dirichletbc(g, _boundary(space))
    layer = PDELayer(residual, u, [bc], controls=[m, f, g], quadrature_degree=4, **settings)
    tensors = (
        _field(cellwise, lambda x: np.sin(2.0 * x[0]) * np.cos(3.0 * x[1])),
        torch.tensor([1.5], dtype=torch.float64),
        _field(space, lambda x: 0.2 * x[0] * x[1] + 0.1),
    )
    return LayerCase(layer, tensors, (False, True, False), _weight(space))


def nonlinear_diffusion(comm: MPI.Comm, cells: int, **settings: Any) -> LayerCase:
    """-div(e^m (1 + u^2) grad u) = f, u = 0 on the boundary; controls m and f, both continuous."""
    mesh = dolfinx.mesh.create_unit_square(comm, cells, cells)
    space = fem.functionspace(mesh, ("Lagrange", 1))
    u, v, m, f = fem.Function(space), ufl.TestFunction(space), fem.Function(space), fem.Function(space)
    residual = ufl.exp(m) * (1.0 + u**2) * ufl.inner(ufl.grad(u), ufl.grad(v)) * ufl.dx - f * v * ufl.dx
    bc = fem.dirichletbc(0.0, _boundary(space), space)
    layer = PDELayer(residual, u, [bc], controls=[m, f], quadrature_degree=4, **settings)
    tensors = (
        _field(space, lambda x: 0.5 * np.sin(4.0 * x[0] + x[1])),
        _field(space, lambda x: 20.0 * (1.0 + x[0] * x[1])),
    )
    return LayerCase(layer, tensors, (False, False), _weight(space))


def hyperelasticity(comm: MPI.Comm, cells: int, **settings: Any) -> LayerCase:
    """Bend a neo-Hookean beam, clamped on the left, by a body force; controls log of the modulus, and the force."""
    mesh = dolfinx.mesh.create_rectangle(comm, [[0.0, 0.0], [2.0, 1.0]], [2 * cells, cells])
    space, cellwise = fem.functionspace(mesh, ("Lagrange", 1, (2,))), fem.functionspace(mesh, ("DG", 0))
    u, v = fem.Function(space), ufl.TestFunction(space)
    m, force = fem.Function(cellwise), fem.Constant(mesh, np.zeros(2))
    gradient = ufl.variable(ufl.Identity(2) + ufl.grad(u))
    determinant = ufl.det(gradient)
    energy = 0.5 * (ufl.tr(gradient.T * gradient) - 2.0) - ufl.ln(determinant) + ufl.ln(determinant) ** 2
    residual = ufl.inner(ufl.exp(m) * ufl.diff(energy, gradient), ufl.grad(v)) * ufl.dx - ufl.inner(force, v) * ufl.dx
    left = dolfinx.mesh.locate_entities_boundary(mesh, 1, lambda x: np.isclose(x[0], 0.0))
    bc = fem.dirichletbc(np.zeros(2), fem.locate_dofs_topological(space, 1, left), space)
    layer = PDELayer(residual, u, [bc], controls=[m, force], quadrature_degree=4, **settings)
    tensors = (
        _field(cellwise, lambda x: 0.5 * np.cos(3.0 * x[0])),
        torch.tensor([0.01, -0.08], dtype=torch.float64),
    )
    return LayerCase(layer, tensors, (False, True), _weight(space))


def stokes(comm: MPI.Comm, cells: int, **settings: Any) -> LayerCase:
    """Stokes flow through a channel by Taylor-Hood elements; controls log of the viscosity, and the inflow."""
    mesh = dolfinx.mesh.create_rectangle(comm, [[0.0, 0.0], [2.0, 1.0]], [2 * cells, cells])
    cell = mesh.basix_cell()
    velocity = basix.ufl.element("Lagrange", cell, 2, shape=(2,))
    space = fem.functionspace(mesh, basix.ufl.mixed_element([velocity, basix.ufl.element("Lagrange", cell, 1)]))
    cellwise = fem.functionspace(mesh, ("DG", 0))
    w, test = fem.Function(space), ufl.TestFunction(space)
    (u, p), (v, q) = ufl.split(w), ufl.split(test)
    m = fem.Function(cellwise)
    residual = 2.0 * ufl.exp(m) * ufl.inner(ufl.sym(ufl.grad(u)), ufl.grad(v)) * ufl.dx
    residual -= p * ufl.div(v) * ufl.dx + q * ufl.div(u) * ufl.dx
    part, _ = space.sub(0).collapse()
    inflow, rest = fem.Function(part), fem.Function(part)
    left = dolfinx.mesh.locate_entities_boundary(mesh, 1, lambda x: np.isclose(x[0], 0.0))
    walls = dolfinx.mesh.locate_entities_boundary(mesh, 1, lambda x: np.isclose(x[1], 0.0) | np.isclose(x[1], 1.0))
    bcs = [
        fem.dirichletbc(value, fem.locate_dofs_topological((space.sub(0), part), 1, facets), space.sub(0))
        for value, facets in ((inflow, left), (rest, walls))
    ]
    layer = PDELayer(residual, w, bcs, controls=[m, inflow], quadrature_degree=4, **settings)
    tensors = (
        _field(cellwise, lambda x: np.sin(2.0 * x[0] + x[1])),
        _field(part, lambda x: np.stack([4.0 * x[1] * (1.0 - x[1]), 0.1 * np.sin(np.pi * x[1])])),
    )
    return LayerCase(layer, tensors, (False, False), _weight(space), keep=(part,))


def burgers(comm: MPI.Comm, cells: int, steps: int = 8, checkpoints: int = 3, **settings: Any) -> LayerCase:
    """u_t + u u_x = nu u_xx + f(t, x), implicit Euler; controls the initial state, log nu, and f in each step."""
    mesh = dolfinx.mesh.create_unit_interval(comm, 4 * cells)
    space = fem.functionspace(mesh, ("Lagrange", 1))
    u, before, f = fem.Function(space), fem.Function(space), fem.Function(space)
    v, nu = ufl.TestFunction(space), fem.Constant(mesh, 0.0)
    size, clock = 0.5 / steps, fem.Constant(mesh, 0.0)
    residual = ((u - before) / size * v + u * u.dx(0) * v + ufl.exp(nu) * u.dx(0) * v.dx(0)) * ufl.dx
    residual -= (1.0 + clock) * f * v * ufl.dx
    bc = fem.dirichletbc(0.0, _boundary(space), space)
    times = TimeSteps(
        before, steps, size=size, clock=clock, per_step=[f], output="all", checkpoints=Checkpoints(checkpoints)
    )
    layer = PDELayer(residual, u, [bc], controls=[before, nu, f], quadrature_degree=4, time_steps=times, **settings)
    source = _field(space, lambda x: np.sin(np.pi * x[0]))
    tensors = (
        _field(space, lambda x: np.sin(2.0 * np.pi * x[0])),
        torch.tensor([-2.5], dtype=torch.float64),
        torch.stack([source * (1.0 + 0.3 * step) for step in range(steps)]),
    )
    weight = torch.stack([_weight(space) * (1.0 + step) for step in range(steps)])
    return LayerCase(layer, tensors, (False, True, False), weight)


def network_diffusion(comm: MPI.Comm, cells: int, **settings: Any) -> LayerCase:
    """-div(k(u, |grad u|^2) grad u) = f with a network k; control f; the network has parameters."""
    mesh = dolfinx.mesh.create_unit_square(comm, cells, cells)
    space = fem.functionspace(mesh, ("Lagrange", 1))
    u, v, f = fem.Function(space), ufl.TestFunction(space), fem.Function(space)
    network = torch.nn.Sequential(mlp(2, 1, width=8, depth=2, seed=1), torch.nn.Softplus())
    k = NetworkCoefficient(network, [u, ufl.inner(ufl.grad(u), ufl.grad(u))], quadrature_degree=4)
    residual = k * ufl.inner(ufl.grad(u), ufl.grad(v)) * ufl.dx - f * v * ufl.dx
    bc = fem.dirichletbc(0.0, _boundary(space), space)
    layer = PDELayer(residual, u, [bc], controls=[f], **settings)
    tensors = (_field(space, lambda x: 4.0 * (1.0 + x[0] * x[1])),)
    return LayerCase(layer, tensors, (False,), _weight(space), tuple(k.parameters), (network,))


CASES: Mapping[str, Callable[..., LayerCase]] = {
    "Poisson": poisson,
    "Burgers, time steps": burgers,
    "hyperelasticity": hyperelasticity,
    "Stokes": stokes,
    "nonlinear diffusion": nonlinear_diffusion,
    "diffusion with a network": network_diffusion,
}
