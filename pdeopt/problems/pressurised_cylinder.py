"""The thick-walled cylinder under internal pressure, with the limit load in closed form."""

import math
from typing import Any

from mpi4py import MPI

import dolfinx
import numpy as np
import ufl
from dolfinx import fem

from pdeopt.fem import forms
from pdeopt.fem.kinematics import PlaneStrain, virtual_strain
from pdeopt.fem.materials import VonMisesMaterial
from pdeopt.fem.quasi_static import NewtonEquilibrium, QuasiStatic
from pdeopt.problems.linear import Mesh, check_range
from pdeopt.report import InputError

# With a Poisson's ratio of 0.3 elastic compression delays the plateau a little but does not move it.
PERFECTLY_PLASTIC = VonMisesMaterial(200e9, 0.3, 250e6, 250e6)


class PressurisedCylinder:
    """A quarter of a long cylinder in plane strain, elastic and perfectly plastic, its inner wall pushed outwards.

    The displacement of the inner wall is prescribed and the pressure follows from the work that it does: so the solver
    walks along the plateau at the limit load, where a prescribed pressure has no or many solutions. Until flow begins,
    p = u E (R_e^2 - R_i^2) / ((1 + nu) R_i ((1 - 2 nu) R_i^2 + R_e^2)); the limit is 2/sqrt(3) sigma_0 ln(R_e / R_i).

    Linear triangles lock; quadratic ones with three points per cell do not.

    Parameters
    ----------
    comm
        Communicator to distribute the mesh over.
    cells
        Squares, of two triangles each, across the wall and along the quarter.
    radii
        R_i < R_e [m].
    material
        The law; the closed forms hold for perfect plasticity.

    Attributes
    ----------
    u
        Displacement [m].
    residual, bcs, internal
        The weak form, its boundary conditions and the internal variables.
    driver
        What steps through "time", the displacement of the inner wall in parts of R_i.

    Raises
    ------
    InputError
        If the radii are not in order, or a number of cells is not positive.

    References
    ----------
    R. Hill, The Mathematical Theory of Plasticity, Oxford 1950, chapter V.

    Collective: yes.
    """

    def __init__(
        self,
        comm: MPI.Comm,
        cells: tuple[int, int] = (16, 24),
        *,
        radii: tuple[float, float] = (1.0, 2.0),
        material: VonMisesMaterial = PERFECTLY_PLASTIC,
        prefix: str = "cylinder_",
        **options: object,
    ) -> None:
        inner, outer = radii
        check_range("the inner radius", inner, 0.0, outer)
        if min(cells) < 1:
            raise InputError(f"cells = {cells}: give at least 1 in both directions")
        self.radii, self.material = radii, material
        mesh: Mesh = dolfinx.mesh.create_rectangle(comm, [(inner, 0.0), (outer, math.pi / 2.0)], cells)
        radius, angle = mesh.geometry.x[:, 0].copy(), mesh.geometry.x[:, 1].copy()
        mesh.geometry.x[:, 0], mesh.geometry.x[:, 1] = radius * np.cos(angle), radius * np.sin(angle)
        self.mesh = mesh
        self.space = fem.functionspace(mesh, ("Lagrange", 2, (2,)))
        self.u: fem.Function[Any] = fem.Function(self.space, name="displacement")
        dx = ufl.dx(mesh, metadata={"quadrature_degree": 2, "quadrature_rule": "default"})
        kinematics = PlaneStrain()
        stress, self.internal = material.at_points(self.u, kinematics, 2)
        self.residual = ufl.inner(stress, virtual_strain(kinematics, self.u, ufl.TestFunction(self.space))) * dx
        self._wall: fem.Function[Any] = fem.Function(self.space)
        self._outwards: fem.Function[Any] = fem.Function(self.space)
        self.bcs = self._conditions()
        self.solver = NewtonEquilibrium(self.residual, self.internal, self.bcs, prefix=prefix, **options)
        self.driver = QuasiStatic(self.solver, self.set_load)
        self._work = forms.compile_form(ufl.replace(self.residual, {self.residual.arguments()[0]: self._outwards}))

    @property
    def limit_pressure(self) -> float:
        """Limit load 2/sqrt(3) sigma_0 ln(R_e / R_i) [Pa]."""
        inner, outer = self.radii
        assert isinstance(self.material.yield_stress, int | float)
        return 2.0 / math.sqrt(3.0) * self.material.yield_stress * math.log(outer / inner)

    def elastic_pressure(self, displacement: float) -> float:
        """Return the pressure [Pa] of a displacement of the inner wall, in parts of R_i, before flow begins."""
        inner, outer = self.radii
        young, poisson = self.material.young, self.material.poisson
        assert isinstance(young, int | float)
        assert isinstance(poisson, int | float)
        stiffness = young * (outer**2 - inner**2) / ((1 + poisson) * ((1 - 2 * poisson) * inner**2 + outer**2))
        return displacement * stiffness

    def set_load(self, time: float) -> None:
        """Set the displacement of the inner wall, in parts of R_i. Collective: no."""
        self._wall.x.array[:] = time * self.radii[0] * self._outwards.x.array

    def pressure(self) -> float:
        """Return the pressure [Pa] from the work on a unit displacement of the wall. Collective: yes.

        The internal variables are still those of the step: after `driver.step` the history is in their place, and the
        elastic trial state of a step of length zero is the state itself.
        """
        work = forms.assemble_scalar(self._work)
        return work / (0.5 * math.pi * self.radii[0])

    def solve_limit(self, displacement: float = 0.02, steps: int = 20) -> tuple[list[float], list[float]]:
        """Return displacements of the inner wall, in parts of R_i, and the pressures [Pa]. Collective: yes."""
        self.driver.reset()
        displacements = [displacement * (step + 1) / steps for step in range(steps)]
        pressures = []
        for value in displacements:
            self.driver.step(value)
            pressures.append(self.pressure())
        return displacements, pressures

    def _conditions(self) -> list[fem.DirichletBC[Any]]:
        mesh, inner = self.mesh, self.radii[0]
        outer = self.radii[1]
        zero = np.asarray(0.0)
        conditions = []
        for axis in (0, 1):  # symmetry: no displacement across the planes x = 0 and y = 0
            facets = dolfinx.mesh.locate_entities_boundary(
                mesh, 1, lambda x, axis=axis: np.abs(x[axis]) < 1e-10 * outer
            )
            dofs = fem.locate_dofs_topological(self.space.sub(axis), 1, facets)
            conditions.append(fem.dirichletbc(zero, dofs, self.space.sub(axis)))
        facets = dolfinx.mesh.locate_entities_boundary(mesh, 1, lambda x: np.hypot(x[0], x[1]) < inner * (1.0 + 1e-10))
        dofs = fem.locate_dofs_topological(self.space, 1, facets)
        direction: fem.Function[Any] = fem.Function(self.space)
        # Nodes in the middle of an edge lie inside the circle; all move by the same length.
        direction.interpolate(lambda x: x[:2] / np.maximum(np.hypot(x[0], x[1]), 0.1 * inner))
        unrolled = np.concatenate([2 * dofs, 2 * dofs + 1])
        self._outwards.x.array[unrolled] = direction.x.array[unrolled]
        self._outwards.x.scatter_forward()
        conditions.append(fem.dirichletbc(self._wall, dofs))
        return conditions
