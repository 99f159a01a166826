"""Diffusion and elasticity problems on which `pdeopt bench certificates` measures effectivities."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

from mpi4py import MPI

import dolfinx
import numpy as np
import numpy.typing as npt
import ufl
from dolfinx import fem
from ufl.core.expr import Expr

from pdeopt.fem import estimate_solvers, forms
from pdeopt.fem.estimate import DualNorm, elasticity_norm, poisson_norm
from pdeopt.parallel import random_stream
from pdeopt.report import ConvergenceError

Field = npt.NDArray[np.float64]
NONLINEAR = ("semilinear diffusion", "finite elasticity")


class EllipticProblem:
    """A nonlinear problem with its energy norm and solution.

    Parameters
    ----------
    comm
        Communicator.
    name
        ``"semilinear diffusion"``: -div k grad u + u^3 = f, k one and one thousand on a chequerboard;
        ``"finite elasticity"``: a St Venant-Kirchhoff block, mu = 1, lambda = 1.5, clamped at x = 0, under its weight.
    cells
        Cells a side of the unit square; a multiple of four.
    """

    def __init__(self, comm: MPI.Comm, name: str, cells: int) -> None:
        self.mesh = mesh = dolfinx.mesh.create_unit_square(comm, cells, cells)
        self.load = fem.Constant(mesh, 1.0)
        diffusion = name == "semilinear diffusion"
        space = fem.functionspace(mesh, ("Lagrange", 1) if diffusion else ("Lagrange", 2, (2,)))
        self.state = u = fem.Function(space)
        v = ufl.TestFunction(space)
        held = fem.locate_dofs_geometrical(
            space, lambda x: np.isclose(x[0] * (1 - x[0]) * x[1] * (1 - x[1]), 0) if diffusion else np.isclose(x[0], 0)
        )
        bcs = [fem.dirichletbc(fem.Function(space), held)]
        x = ufl.SpatialCoordinate(mesh)
        if diffusion:
            coefficient = chequerboard(mesh)
            self.residual = (
                ufl.inner(coefficient * ufl.grad(u), ufl.grad(v)) + (u**3 - self.load * 60.0 * ufl.exp(x[0])) * v
            ) * ufl.dx
            self.make_norm: Callable[..., DualNorm] = functools.partial(
                poisson_norm, space, bcs, coefficient=coefficient
            )
        else:
            gradient = ufl.grad(u)
            strain = ufl.sym(gradient) + 0.5 * gradient.T * gradient
            stress = 2.0 * strain + 1.5 * ufl.tr(strain) * ufl.Identity(2)
            deformation = ufl.Identity(2) + gradient
            weight = ufl.inner(self.load * ufl.as_vector([0.0, -0.1]), v)
            self.residual = (ufl.inner(deformation * stress, ufl.grad(v)) - weight) * ufl.dx
            self.make_norm = functools.partial(elasticity_norm, space, bcs, mu=1.0, lame=1.5)
        self.norm = self.make_norm()
        self.jacobian = ufl.derivative(self.residual, u)
        self._compiled = self.norm.space.compile_bilinear(self.jacobian)

    def solve(self) -> Field:
        """Solve by Newton's method from the present state and return the owned values. Collective: yes."""
        space = self.norm.space
        for _ in range(20):
            right = self.norm.residual(self.residual)
            right.array[:] = space.free_values(right)
            matrix = space.matrix(self._compiled)
            ksp = estimate_solvers.factorise(matrix, "estimate_elliptic_")
            update = matrix.createVecRight()
            ksp.solve(right, update)
            forms.set_function(self.state, forms.owned_values(self.state) - update.array_r)
            size = update.norm() / self.state.x.petsc_vec.norm()
            for item in (right, matrix, ksp, update):
                item.destroy()
            if size < 1e-10:
                return forms.owned_values(self.state).copy()
        raise ConvergenceError("the elliptic problem did not converge in 20 Newton steps")

    def errors(self, seed: int) -> Iterator[tuple[str, Field]]:
        """Yield kinds of error and proposals; the state must be the solution. Collective: yes."""
        exact = forms.owned_values(self.state).copy()
        size = self.norm.error_norm(exact)
        generator = random_stream("certificates.elliptic", seed)
        noise = random_stream("certificates.elliptic.noise", seed, self.mesh.comm)
        function = fem.Function(self.state.function_space)
        components = function.function_space.dofmap.index_map_bs
        for amplitude in (1e-1, 1e-2, 1e-4):
            for _ in range(3):
                weights = generator.standard_normal((components, 4, 4))
                function.interpolate(lambda x, weights=weights: _smooth(x, weights))
                direction = forms.owned_values(function).copy()
                direction[self.norm.space.constrained] = 0.0
                yield "smooth", exact + direction * (amplitude * size / self.norm.error_norm(direction))
            direction = noise.standard_normal(exact.size)
            direction[self.norm.space.constrained] = 0.0
            yield "noise", exact + direction * (amplitude * size / self.norm.error_norm(direction))
        for factor in (0.5, 0.9, 1.1, 1.3):
            forms.set_function(self.state, exact)
            self.load.value[...] = factor
            proposal = self.solve()
            self.load.value[...] = 1.0
            yield "load", proposal
        forms.set_function(self.state, exact)


def discretisation(comm: MPI.Comm, name: str, cells: int) -> tuple[float, float]:
    """Return eta over a richer test space, and the true energy error of a finite element solution. Collective: yes.

    Parameters
    ----------
    comm
        Communicator.
    name
        ``"diffusion"`` (linear elements, k = 1 + x) or ``"elasticity, nu = ..."`` (quadratic elements).
    cells
        Cells a side of the unit square.
    """
    mesh = dolfinx.mesh.create_unit_square(comm, cells, cells)
    x = ufl.SpatialCoordinate(mesh)
    mesh.topology.create_connectivity(1, 2)
    facets = dolfinx.mesh.exterior_facet_indices(mesh.topology)
    wave = ufl.sin(ufl.pi * x[0]) * ufl.sin(2.0 * ufl.pi * x[1])
    shape: tuple[int, ...] = ()
    if name == "diffusion":
        degree = 1
        exact: Expr = wave
        coefficient = 1.0 + x[0]

        def energy(u: Expr, v: Expr) -> Expr:
            return coefficient * ufl.inner(ufl.grad(u), ufl.grad(v))

        source = -ufl.div(coefficient * ufl.grad(exact))
    else:
        degree, shape = 2, (2,)
        ratio = float(name.rpartition("=")[2])
        mu, lame = 0.5 / (1.0 + ratio), ratio / ((1.0 + ratio) * (1.0 - 2.0 * ratio))
        # Without divergence: a solution whose size does not depend on lambda.
        bubble = (ufl.sin(ufl.pi * x[0]) * ufl.sin(ufl.pi * x[1])) ** 2
        exact = ufl.as_vector([bubble.dx(1), -bubble.dx(0)])

        def energy(u: Expr, v: Expr) -> Expr:
            strain = ufl.inner(ufl.sym(ufl.grad(u)), ufl.sym(ufl.grad(v)))
            return 2.0 * mu * strain + lame * ufl.div(u) * ufl.div(v)

        strain = ufl.sym(ufl.grad(exact))
        source = -ufl.div(2.0 * mu * strain + lame * ufl.tr(strain) * ufl.Identity(2))
    dx = ufl.dx(metadata={"quadrature_degree": 8})
    norms: list[DualNorm] = []
    for order in (degree, degree + 1):
        space: Any = fem.functionspace(mesh, ("Lagrange", order, shape))
        bcs = [fem.dirichletbc(fem.Function(space), fem.locate_dofs_topological(space, 1, facets))]
        prefix = f"estimate_degree_{order}_"
        norms.append(
            poisson_norm(space, bcs, coefficient=coefficient, options_prefix=prefix)
            if name == "diffusion"
            else elasticity_norm(space, bcs, mu=mu, lame=lame, options_prefix=prefix)
        )
    coarse, fine = norms
    load = coarse.residual(ufl.inner(source, coarse.space.tests()[0]) * dx)
    coarse.norm(load)  # the Riesz representative of the load is the solution
    u = coarse.representative[0]
    v = fine.space.tests()[0]
    eta = fine.estimate((ufl.inner(source, v) - energy(u, v)) * dx).eta
    true = forms.assemble_scalar(forms.compile_form(energy(u - exact, u - exact) * dx))
    load.destroy()
    for norm in norms:
        norm.destroy()
    return eta, float(np.sqrt(true))


def chequerboard(mesh: dolfinx.mesh.Mesh) -> fem.Function[Any]:
    """Return one and one thousand on alternating quarters of the unit square, constant in every cell."""
    coefficient = fem.Function(fem.functionspace(mesh, ("Discontinuous Lagrange", 0)))
    coefficient.interpolate(lambda x: np.where((x[0] > 0.5) == (x[1] > 0.5), 1000.0, 1.0))
    return coefficient


def _smooth(x: Field, weights: Field) -> Field:
    """Return sums of sine waves with the given weights, shape (components, points) or (points,) for one component."""
    waves = [np.sin(np.pi * (i + 1) * s) for s in x[:2] for i in range(weights.shape[1])]
    along, across = np.stack(waves[: weights.shape[1]]), np.stack(waves[weights.shape[1] :])
    values = np.einsum("cij,ip,jp->cp", weights, along, across)
    return values[0] if weights.shape[0] == 1 else values
