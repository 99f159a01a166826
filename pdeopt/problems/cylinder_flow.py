"""Flow past a cylinder in a channel, the DFG benchmarks 2D-1 and 2D-2: drag, lift, pressure drop, vortex shedding."""

import dataclasses
import time
from collections.abc import Mapping

from mpi4py import MPI
from petsc4py import PETSc

import basix.ufl
import numpy as np
import numpy.typing as npt
import ufl
from dolfinx import fem
from ufl.core.expr import Expr

from pdeopt.fem import forms
from pdeopt.fem.mesh import MeshData
from pdeopt.problems.cylinder_mesh import CENTRE, DIAMETER, HEIGHT
from pdeopt.problems.linear import check_range
from pdeopt.report import SNES_ADVICE, ConvergenceError, MeshError, SolveReport

VISCOSITY = 1e-3
"""Kinematic viscosity nu [m^2/s]; the density is 1 kg/m^3."""
_PRESSURE_POINTS = ((CENTRE[0] - DIAMETER / 2, CENTRE[1]), (CENTRE[0] + DIAMETER / 2, CENTRE[1]))
MUMPS: dict[str, object] = {"ksp_type": "preonly", "pc_type": "lu", "pc_factor_mat_solver_type": "mumps"}
_NEWTON: dict[str, object] = {"snes_type": "newtonls", "snes_linesearch_type": "bt", "snes_rtol": 1e-12}
_NEWTON |= {"snes_atol": 1e-14, "snes_stol": 0.0, "snes_max_it": 30}


@dataclasses.dataclass(frozen=True)
class Forces:
    """What the flow does to the cylinder.

    Parameters
    ----------
    drag, lift
        Coefficients c = 2 F / (rho U^2 D) with the mean inflow velocity U and the diameter D.
    pressure_drop
        Pressure at the foremost less that at the rearmost point of the cylinder [Pa].
    """

    drag: float
    lift: float
    pressure_drop: float


REFERENCE_RE20 = Forces(drag=5.57953523384, lift=0.010618948146, pressure_drop=0.11752016697)
"""Benchmark 2D-1 (Re 20, steady), computed by spectral elements: Nabh, PhD thesis, Heidelberg 1998, as printed by
featflow.de; the intervals of Schaefer and Turek (1996), table 4, hold these numbers."""


class CylinderFlow:
    """Incompressible flow past a cylinder in a channel, on Taylor-Hood elements of degree 2 and 1.

    For all (v, q) that vanish where the velocity is prescribed,

        nu (grad u, grad v) + ((u . grad) u, v) - (p, div v) - (q, div u) = 0,

    with a parabolic inflow of mean velocity U = Re nu / D, u = 0 on the walls, nu du/dn = p n at the outflow, and on
    the cylinder the velocity of its own rotation. nu = 1e-3 m^2/s, D = 0.1 m.

    Parameters
    ----------
    mesh_data
        `cylinder_mesh`, or another mesh of that channel with the groups "inflow", "walls" and "cylinder" of facets.
    reynolds
        Re = U D / nu, > 0: 20 in benchmark 2D-1, 100 in 2D-2 and 2D-3.

    Attributes
    ----------
    space
        The mixed space of velocity and pressure.
    solution
        The flow (u, p), a function of that space [m/s, m^2/s^2]; at rest until `solve`.
    residual
        The form above, at ``solution``.
    bcs
        The Dirichlet conditions by group.
    mean_inflow
        U [m/s].

    Raises
    ------
    InputError
        If the Reynolds number is not positive, or the mesh lacks a group (`MeshError`).

    Collective: yes.

    References
    ----------
    Schaefer, Turek, Durst, Krause and Rannacher, Benchmark computations of laminar flow around a cylinder, Notes on
    Numerical Fluid Mechanics 52 (1996) 547-566.
    """

    def __init__(self, mesh_data: MeshData, reynolds: float = 20.0) -> None:
        check_range("reynolds", reynolds, 0.0)
        mesh = mesh_data.mesh
        self.mesh_data, self.reynolds = mesh_data, float(reynolds)
        self.mean_inflow = reynolds * VISCOSITY / DIAMETER
        cell = mesh.basix_cell()
        velocity_element = basix.ufl.element("Lagrange", cell, 2, shape=(2,))
        pressure_element = basix.ufl.element("Lagrange", cell, 1)
        self.space = fem.functionspace(mesh, basix.ufl.mixed_element([velocity_element, pressure_element]))
        self.solution = fem.Function(self.space, name="flow")
        # Exact for the convective term on straight cells; on the curved ones at the cylinder 1e-7 of the drag.
        self.dx = ufl.dx(mesh, metadata={"quadrature_degree": 6})
        self.residual = self.spatial_residual(*ufl.split(self.solution)) + self.convection(self.velocity, self.velocity)
        velocities, _ = self.space.sub(0).collapse()
        self._surface_velocity = fem.Function(velocities)
        inflow = fem.Function(velocities)
        points = velocities.element.interpolation_points
        inflow.interpolate(fem.Expression(self.undisturbed(ufl.SpatialCoordinate(mesh)), points))
        # Where inflow and walls meet the parabola is zero, too.
        given = {"inflow": inflow, "walls": fem.Function(velocities), "cylinder": self._surface_velocity}
        self.bcs = {
            group: fem.dirichletbc(value, self._dofs(group, velocities), self.space.sub(0))
            for group, value in given.items()
        }
        self._compiled_residual = forms.compile_form(self.residual)
        self._force_dofs = [self._owned_force_dofs(component) for component in (0, 1)]
        self._pressure_dofs = self._locate_pressure_points()

    @property
    def velocity(self) -> Expr:
        """The velocity in forms."""
        return ufl.split(self.solution)[0]

    def spatial_residual(self, velocity: Expr, pressure: Expr) -> ufl.Form:
        """Return the linear terms of the residual: viscosity, pressure and continuity. Collective: no."""
        velocity_test, pressure_test = ufl.TestFunctions(self.space)
        form = VISCOSITY * ufl.inner(ufl.grad(velocity), ufl.grad(velocity_test)) * self.dx
        form -= (pressure * ufl.div(velocity_test) + pressure_test * ufl.div(velocity)) * self.dx
        return form

    def convection(self, by: Expr, of: Expr) -> ufl.Form:
        """Return ((by . grad) of, v), the convection of one velocity by another. Collective: no."""
        return ufl.inner(ufl.dot(ufl.grad(of), by), ufl.TestFunctions(self.space)[0]) * self.dx

    def undisturbed(self, x: Expr) -> Expr:
        """Return the parabolic velocity of the inflow, at coordinates of shape (2,), for forms. Collective: no."""
        mean = fem.Constant(self.space.mesh, self.mean_inflow)
        return ufl.as_vector([6.0 * mean * x[1] * (HEIGHT - x[1]) / HEIGHT**2, 0.0])

    def rotate_cylinder(self, angular_velocity: float) -> None:
        """Prescribe the rotation of the cylinder, anticlockwise [rad/s]. Collective: yes."""
        self._surface_velocity.interpolate(lambda x: angular_velocity * np.stack([CENTRE[1] - x[1], x[0] - CENTRE[0]]))

    def solve(self, petsc_options: Mapping[str, object] | None = None) -> SolveReport:
        """Find the steady flow by Newton's method, from the present values of ``solution``. Collective: yes.

        Parameters
        ----------
        petsc_options
            Options of the SNES and its KSP, without prefix, beside or instead of the defaults: Newton's method
            with backtracking, LU by MUMPS. Options under ``cylinder_`` in PETSc's database win over both.

        Raises
        ------
        ConvergenceError
            If Newton's method does not converge; for Reynolds numbers above 100 start from the flow at a lower one.
        """
        started = time.perf_counter()
        conditions = list(self.bcs.values())
        for bc in conditions:
            bc.set(self.solution.x.array)
        self.solution.x.scatter_forward()
        fixed = forms.owned_dirichlet_dofs(conditions)
        jacobian = forms.compile_form(ufl.derivative(self.residual, self.solution))

        def assemble_residual(_: PETSc.SNES, unknowns: PETSc.Vec, out: PETSc.Vec) -> None:
            forms.set_function(self.solution, unknowns.array_r)
            covector = forms.assemble_vector(self._compiled_residual)
            out.array[:] = covector.array_r[: out.getLocalSize()]
            out.array[fixed] = 0.0
            covector.destroy()

        def assemble_jacobian(_: PETSc.SNES, unknowns: PETSc.Vec, matrix: PETSc.Mat, __: PETSc.Mat) -> None:
            forms.set_function(self.solution, unknowns.array_r)
            forms.reassemble_matrix(matrix, jacobian, conditions)

        matrix = forms.assemble_matrix(jacobian, conditions)
        unknowns, residual = matrix.createVecs()
        unknowns.array[:] = forms.owned_values(self.solution)
        snes = PETSc.SNES().create(self.space.mesh.comm)
        snes.setOptionsPrefix("cylinder_")
        snes.setFunction(assemble_residual, residual)
        snes.setJacobian(assemble_jacobian, matrix)
        snes.setConvergenceHistory()
        with forms.default_options("cylinder_", {**MUMPS, **_NEWTON, **(petsc_options or {})}):
            snes.setFromOptions()
            snes.solve(None, unknowns)
        forms.set_function(self.solution, unknowns.array_r)
        reason, history = snes.getConvergedReason(), snes.getConvergenceHistory()[0]
        report = SolveReport(
            method=f"{snes.getType()} + {snes.getKSP().getType()} + {snes.getKSP().getPC().getType()}",
            converged=reason > 0,
            reason=reason,
            iterations=snes.getIterationNumber(),
            linear_iterations=0 if snes.getKSP().getType() == "preonly" else snes.getLinearSolveIterations(),
            residuals=tuple(float(norm) for norm in history),
            seconds={"total": time.perf_counter() - started},
            quantities={"unknowns": int(matrix.getSize()[0]), "Reynolds number": self.reynolds},
        )
        for item in (snes, matrix, unknowns, residual):
            item.destroy()
        if reason <= 0:
            raise ConvergenceError(
                f"the steady flow at Reynolds number {self.reynolds:g} was not found (reason {reason}): "
                f"{SNES_ADVICE.get(reason, 'see cylinder_snes_converged_reason')}",
                report,
            )
        return report

    def forces(self) -> Forces:
        """Return drag, lift and pressure drop of the present flow, as a steady one. Collective: yes."""
        covector = forms.assemble_vector(self._compiled_residual)
        forces = self.forces_from(covector)
        covector.destroy()
        return forces

    def forces_from(self, residual: PETSc.Vec) -> Forces:
        """Return drag, lift and pressure drop from the residual at the present flow. Collective: yes.

        The force in a direction e is - R(u, p; v) for any v that is e on the cylinder and 0 on the rest of the
        boundary; since R vanishes for test functions inside, it is a sum over the degrees of freedom of the cylinder.
        It converges twice as fast as the integral of the stress, which takes derivatives of the flow at the surface.

        Parameters
        ----------
        residual
            The assembled residual, Dirichlet rows included; with the time derivative if the flow is unsteady.

        References
        ----------
        John and Matthies, Int. J. Numer. Meth. Fluids 37 (2001) 885-903, section 3; Babuska and Miller, Int. J.
        Numer. Meth. Engng. 20 (1984) 1085-1109.
        """
        values = residual.array_r
        local = [-float(np.sum(values[dofs])) for dofs in self._force_dofs]
        pressures = [float(np.sum(self.solution.x.array[dofs])) for dofs in self._pressure_dofs]
        drag, lift, front, rear = self.space.mesh.comm.allreduce(np.array([*local, *pressures]), op=MPI.SUM)
        scale = 2.0 / (self.mean_inflow**2 * DIAMETER)
        return Forces(float(scale * drag), float(scale * lift), float(front - rear))

    def vorticity(self) -> fem.Function:
        """Return dv/dx - du/dy of the present flow, projected to continuous functions of degree 2 [1/s].

        Collective: yes.
        """
        space = fem.functionspace(self.space.mesh, ("Lagrange", 2))
        vorticity = fem.Function(space, name="vorticity")
        trial, test = ufl.TrialFunction(space), ufl.TestFunction(space)
        gradient = ufl.grad(self.velocity)
        mass = forms.assemble_matrix(forms.compile_form(trial * test * self.dx))
        moments = forms.assemble_vector(forms.compile_form((gradient[1, 0] - gradient[0, 1]) * test * self.dx))
        ksp = PETSc.KSP().create(self.space.mesh.comm)
        ksp.setOperators(mass)
        ksp.setType("cg")
        ksp.getPC().setType("jacobi")
        ksp.setTolerances(rtol=1e-10)
        values = mass.createVecRight()
        ksp.solve(moments, values)
        forms.set_function(vorticity, values.array_r)
        for item in (ksp, mass, moments, values):
            item.destroy()
        return vorticity

    def _dofs(self, group: str, velocities: fem.FunctionSpace) -> npt.NDArray[np.int32]:
        tags = self.mesh_data.facet_tags
        if tags is None:
            raise MeshError("the mesh has no facet tags: it needs the groups 'inflow', 'walls' and 'cylinder'")
        facets = tags.find(self.mesh_data.tag(group))
        return fem.locate_dofs_topological((self.space.sub(0), velocities), 1, facets)

    def _owned_force_dofs(self, component: int) -> npt.NDArray[np.int32]:
        assert self.mesh_data.facet_tags is not None
        facets = self.mesh_data.facet_tags.find(self.mesh_data.tag("cylinder"))
        dofs = fem.locate_dofs_topological(self.space.sub(0).sub(component), 1, facets)
        return dofs[dofs < forms.owned_size(self.space)]

    def _locate_pressure_points(self) -> list[npt.NDArray[np.int32]]:
        """Return the owned degree of freedom of the pressure at each of the two points, on the rank that has it."""
        pressures, _ = self.space.sub(1).collapse()
        found = []
        for point in _PRESSURE_POINTS:
            there = fem.locate_dofs_geometrical(
                (self.space.sub(1), pressures),
                lambda x, point=point: np.hypot(x[0] - point[0], x[1] - point[1]) < 1e-9,
            )[0]
            found.append(there[there < forms.owned_size(self.space)])
        counts = self.space.mesh.comm.allreduce(np.array([dofs.size for dofs in found]))
        if np.any(counts != 1):
            raise MeshError(f"the points {_PRESSURE_POINTS} of the pressure drop are no vertices of the mesh")
        return found
