"""Other packages on the Poisson control problem of `pdeopt.problems.PoissonControl`; all serial.

Every function starts at zero control, solves to the same accuracy and returns the same columns, judged by one measure:
the L2 error of the control against the known optimum, and the norm of the reduced gradient in the control's metric,
relative to that at zero control. Seconds include everything from the function spaces on, but not the mesh.
"""

import time
from types import ModuleType
from typing import TYPE_CHECKING, Any

from mpi4py import MPI
from petsc4py import PETSc

import dolfinx
import numpy as np
import numpy.typing as npt
import ufl

from pdeopt.bench.harness import Row
from pdeopt.fem import forms
from pdeopt.problems import PoissonControl
from pdeopt.report import InputError, MissingPackageError

if TYPE_CHECKING:
    import scipy.sparse

Array = npt.NDArray[np.float64]

GRADIENT_TOLERANCE = 1e-8
"""Norm of the reduced gradient, relative to that at zero control, at which every rival stops."""
_DEGREE = 6  # of the quadrature, as in PoissonControl
_DIRECT = {
    "ksp_type": "preonly",
    "pc_type": "lu",
    "pc_factor_mat_solver_type": "mumps",
    "ksp_error_if_not_converged": True,
}


def dolfinx_adjoint_lbfgsb(comm: MPI.Comm, cells: int, alpha: float, *, scaled: bool = True) -> Row:
    """Solve by dolfinx-adjoint's gradients and SciPy's L-BFGS-B with a memory of 20. Collective: one rank only.

    Parameters
    ----------
    comm
        Communicator of size 1.
    cells
        Cells a side of the unit square.
    alpha
        Regularisation, > 0.
    scaled
        Optimise in the variables D^(1/2) u, with D the lumped mass matrix, whose Euclidean norm is
        equivalent to the control's L2 norm on every mesh; else in the coefficients
        themselves, as pyadjoint.minimize does.

    Raises
    ------
    MissingPackageError
        If dolfinx-adjoint or SciPy is not installed.
    InputError
        If there is more than one rank.
    """
    pyadjoint = require_package("pyadjoint", "adjoint")
    require_package("dolfinx_adjoint", "adjoint")
    optimise = require_package("scipy.optimize", "rivals")
    mesh = _serial_mesh(comm, cells)
    started = time.perf_counter()
    with pyadjoint.stop_annotating(), pyadjoint.set_working_tape():
        functional, control, model = _record(mesh, alpha)
        test = ufl.TestFunction(control.function_space)
        root = np.sqrt(forms.assemble_vector(forms.compile_form(test * ufl.dx)).array_r)
        scale = root if scaled else np.ones_like(root)
        norms: list[float] = []  # of the gradient in the control's metric, at every evaluation

        def evaluate(variables: Array) -> tuple[float, Array]:
            point = control._ad_copy()
            point.x.array[:] = variables / scale
            value = float(functional(point))
            gradient = np.array(functional.derivative().x.array)
            norms.append(float(np.linalg.norm(gradient / root)))
            return value, gradient / scale

        def stop(intermediate_result: object) -> None:
            if norms[-1] <= GRADIENT_TOLERANCE * norms[0]:
                raise StopIteration

        result = optimise.minimize(
            evaluate, np.zeros_like(root), jac=True, method="L-BFGS-B", callback=stop,
            options={"maxcor": 20, "ftol": 0.0, "gtol": 0.0, "maxiter": 5000, "maxfun": 10_000, "maxls": 50},
        )  # fmt: skip
        del model  # until here, since the tape would rebuild it otherwise
    seconds = time.perf_counter() - started
    row: Row = {
        "method": "dolfinx-adjoint, L-BFGS-B" + (", scaled" if scaled else ""),
        "iterations": int(result.nit),
        "evaluations": len(norms),
        "seconds": seconds,
    }
    return row | _judge(mesh, alpha, result.x / scale)


def _record(mesh: dolfinx.mesh.Mesh, alpha: float) -> tuple[Any, Any, Any]:
    """Return the taped functional, its control and the model problem, which the caller keeps alive."""
    import dolfinx_adjoint
    import pyadjoint

    space, bc, target, dx = _ingredients(mesh)
    trial, test = ufl.TrialFunction(space), ufl.TestFunction(space)
    control, state = dolfinx_adjoint.Function(space), dolfinx_adjoint.Function(space)
    stiffness = ufl.inner(ufl.grad(trial), ufl.grad(test)) * dx
    pyadjoint.continue_annotation()
    model = dolfinx_adjoint.LinearProblem(
        stiffness, control * test * dx, u=state, bcs=[bc], petsc_options=_DIRECT, adjoint_petsc_options=_DIRECT
    )
    model.solve()
    cost = 0.5 * (state - target) ** 2 * dx + 0.5 * alpha * control**2 * dx
    functional = pyadjoint.ReducedFunctional(dolfinx_adjoint.assemble_scalar(cost), pyadjoint.Control(control))
    pyadjoint.pause_annotation()
    return functional, control, model


def ipopt(comm: MPI.Comm, cells: int, alpha: float) -> Row:
    """Solve by IPOPT in the space of states and controls, exact Jacobian and Hessian. Collective: one rank only.

    The variables are the free degrees of freedom of the state and all of the control; the constraints are the discrete
    state equation. Both matrices are constant, and IPOPT is told so.

    Parameters
    ----------
    comm
        Communicator of size 1.
    cells
        Cells a side of the unit square.
    alpha
        Regularisation, > 0.

    Raises
    ------
    MissingPackageError
        If cyipopt or SciPy is not installed.
    InputError
        If there is more than one rank.
    """
    cyipopt = require_package("cyipopt", "rivals")
    require_package("scipy.sparse", "rivals")
    mesh = _serial_mesh(comm, cells)
    started = time.perf_counter()
    program = _QuadraticProgram(mesh, alpha)
    size, constraints = program.linear.size, program.free.size
    solver = cyipopt.Problem(
        n=size,
        m=constraints,
        problem_obj=program,
        lb=np.full(size, -np.inf),
        ub=np.full(size, np.inf),
        cl=np.zeros(constraints),
        cu=np.zeros(constraints),
    )
    options: dict[str, object] = {
        # IPOPT measures entries of the gradient, which shrink with the mesh: a fixed tolerance would be met at once.
        "tol": GRADIENT_TOLERANCE * float(np.abs(program.linear).max()),
        "acceptable_iter": 0,
        "nlp_scaling_method": "none",
        "jac_c_constant": "yes",
        "hessian_constant": "yes",
        "linear_solver": "mumps",
        "print_level": 0,
        "sb": "yes",
        "max_iter": 500,
    }
    for name, value in options.items():
        solver.add_option(name, value)
    solution, info = solver.solve(np.zeros(size))
    seconds = time.perf_counter() - started
    row: Row = {
        "method": "IPOPT, full space",
        "iterations": program.iterations,
        "evaluations": program.evaluations,
        "seconds": seconds,
    }
    row |= _judge(mesh, alpha, solution[constraints:])
    return row | {"converged": bool(row["converged"]) and info["status"] == 0}


class _QuadraticProgram:
    """z'Qz/2 - b'z + c subject to Az = 0 for z = (free state, control), in the calls that cyipopt makes."""

    def __init__(self, mesh: dolfinx.mesh.Mesh, alpha: float) -> None:
        import scipy.sparse as sparse

        space, bc, target, dx = _ingredients(mesh)
        trial, test = ufl.TrialFunction(space), ufl.TestFunction(space)
        stiffness = _to_scipy(
            forms.assemble_matrix(forms.compile_form(ufl.inner(ufl.grad(trial), ufl.grad(test)) * dx))
        )
        mass = _to_scipy(forms.assemble_matrix(forms.compile_form(trial * test * dx)))
        load = forms.assemble_vector(forms.compile_form(target * test * dx)).array_r
        self.free = np.setdiff1d(np.arange(load.size), forms.owned_dirichlet_dofs([bc]))
        self._matrix = sparse.block_diag([mass[self.free][:, self.free], alpha * mass], format="csr")
        self.linear = np.concatenate([load[self.free], np.zeros(load.size)])
        self._constant = 0.5 * forms.assemble_scalar(forms.compile_form(target**2 * dx))
        self._constraints = sparse.hstack([stiffness[self.free][:, self.free], -mass[self.free]], format="coo")
        self._lower = sparse.tril(self._matrix, format="coo")
        self.iterations = self.evaluations = 0

    def objective(self, z: Array) -> float:
        self.evaluations += 1
        return float(0.5 * z @ (self._matrix @ z) - self.linear @ z + self._constant)

    def gradient(self, z: Array) -> Array:
        return np.asarray(self._matrix @ z - self.linear)

    def constraints(self, z: Array) -> Array:
        return np.asarray(self._constraints @ z)

    def jacobianstructure(self) -> tuple[Array, Array]:
        return self._constraints.row, self._constraints.col

    def jacobian(self, z: Array) -> Array:
        return np.asarray(self._constraints.data)

    def hessianstructure(self) -> tuple[Array, Array]:
        return self._lower.row, self._lower.col

    def hessian(self, z: Array, multipliers: Array, factor: float) -> Array:
        return np.asarray(factor * self._lower.data)

    def intermediate(self, mode: int, iteration: int, *numbers: float) -> bool:
        self.iterations = iteration
        return True


def require_package(name: str, extra: str) -> ModuleType:
    """Import an optional package, or raise `MissingPackageError` that names the extra with it. Collective: no."""
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        rest = " and `python -m pip install --no-deps -r requirements-nodeps.txt`" if extra == "adjoint" else ""
        raise MissingPackageError(
            f"this rival needs {error.name}: run `python -m pip install pdeopt[{extra}]`{rest}"
        ) from error


def _serial_mesh(comm: MPI.Comm, cells: int) -> dolfinx.mesh.Mesh:
    if comm.size > 1:
        raise InputError(f"this rival is serial and was started on {comm.size} ranks: start it on one")
    return dolfinx.mesh.create_unit_square(comm, cells, cells)


def _ingredients(
    mesh: dolfinx.mesh.Mesh,
) -> tuple[dolfinx.fem.FunctionSpace, dolfinx.fem.DirichletBC, ufl.core.expr.Expr, ufl.Measure]:
    """Return space, Dirichlet condition, target and measure, as in PoissonControl."""
    space = dolfinx.fem.functionspace(mesh, ("Lagrange", 1))
    mesh.topology.create_connectivity(1, 2)
    facets = dolfinx.mesh.exterior_facet_indices(mesh.topology)
    bc = dolfinx.fem.dirichletbc(0.0, dolfinx.fem.locate_dofs_topological(space, 1, facets), space)
    x = ufl.SpatialCoordinate(mesh)
    target = ufl.sin(ufl.pi * x[0]) * ufl.sin(ufl.pi * x[1]) / (2 * ufl.pi**2)
    return space, bc, target, ufl.dx(mesh, metadata={"quadrature_degree": _DEGREE})


def _to_scipy(matrix: PETSc.Mat) -> "scipy.sparse.csr_array":
    import scipy.sparse as sparse

    pointers, columns, values = matrix.getValuesCSR()
    return sparse.csr_array((values, columns, pointers), shape=matrix.getSize())


def _judge(mesh: dolfinx.mesh.Mesh, alpha: float, values: Array) -> Row:
    """Return what a control is worth, by pdeopt's own state and adjoint solves."""
    case = PoissonControl(mesh, alpha=alpha)
    functional = case.problem.reduced_functional()
    control, gradient, zero = functional.create_vector(), functional.create_vector(), functional.create_vector()
    weights = functional.inner_product().getDiagonal()
    weights.sqrtabs()

    def norm(point: PETSc.Vec) -> float:
        functional.derivative(point, gradient)
        gradient.pointwiseDivide(gradient, weights)
        return float(gradient.norm())

    reference = norm(zero)
    control.array[:] = values
    relative = norm(control) / reference
    functional.set_control(control)
    exact = 0.5 / (1.0 + 4.0 * alpha * np.pi**4)  # L2 norm of the optimal control
    row: Row = {
        "control error": case.errors()["control"],
        "relative control error": case.errors()["control"] / exact,
        "objective": case.problem.objective_value(),
        "relative gradient": relative,
        "converged": relative <= 1.001 * GRADIENT_TOLERANCE,  # rivals add up the same norm in another order
    }
    functional.destroy()
    case.problem.destroy()
    return row
