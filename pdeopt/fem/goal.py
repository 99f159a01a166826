"""Dual-weighted residuals: how wrong a functional of a discrete solution is, and which cells are to blame.

With the Lagrangian L(u, z) = J(u) - F(u; z), the discrete solution x_h = (u_h, z_h) and the solution x,

    J(u) - J(u_h) = L'(x_h)(x - i x) / 2 + R,

for any interpolation i, with a remainder R of third order in the error (Becker and Rannacher, Acta Numerica 10 (2001)
1-102, proposition 2.3). Where F is affine and J linear both halves are equal, and -F(u_h; z - i z) is the whole
estimate. The unknown x is found one degree higher, by one Newton step from x_h.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from mpi4py import MPI  # noqa: F401  MPI must be loaded before DOLFINx
from petsc4py import PETSc

import dolfinx
import numpy as np
import ufl
from ufl.algorithms import expand_derivatives, extract_arguments

from pdeopt.fem import forms
from pdeopt.fem.enrich import (
    Function,
    enriched_dirichlet,
    enriched_space,
    interpolate,
    interpolation_remainder,
)
from pdeopt.fem.mesh import Mesh
from pdeopt.report import KSP_ADVICE, ConvergenceError, InputError

Part = tuple[Function, Function, float]
_DIRECT: Mapping[str, object] = {
    "ksp_type": "preonly",
    "pc_type": "lu",
    "pc_factor_mat_solver_type": "mumps",
}


@dataclasses.dataclass(frozen=True)
class GoalEstimate:
    """What dual-weighted residuals say about a functional.

    Parameters
    ----------
    value
        The functional of the discrete solution.
    error
        Estimate of its true value minus ``value``, with its sign.
    indicators
        Contributions of the cells, cellwise constant and >= 0; their sum bounds ``abs(error)`` from above.
    """

    value: float
    error: float
    indicators: Function

    @property
    def corrected(self) -> float:
        """The value with the estimated error added; mostly much better, but then without an estimate of its own."""
        return self.value + self.error


def estimate_goal_error(
    goal: ufl.Form, residual: ufl.Form, solution: Function, bcs: Sequence[dolfinx.fem.DirichletBC] = ()
) -> GoalEstimate:
    """Estimate the error in a functional of a discrete solution.

    Needs one factorisation one degree higher, with four (plane) to eight (solid) times the unknowns where the degree
    was one, and for nonlinear problems another one in the solution's own space: by MUMPS unless PETSc options under
    ``goal_`` say otherwise. Dirichlet data are taken to be exact as interpolated, and the quadrature error of the forms
    is not seen.

    Parameters
    ----------
    goal
        J(u), a functional of the solution; need not be linear.
    residual
        F(u; v), linear in one test function of the solution's space, with the solution u in it; may be nonlinear.
    solution
        u_h with F(u_h; v) = 0 for all v that vanish at the Dirichlet degrees of freedom.
    bcs
        Dirichlet conditions of the solution, on Lagrange (sub)spaces.

    Returns
    -------
    GoalEstimate
        J(u_h), the estimate of J(u) - J(u_h), and the cells' contributions.

    Raises
    ------
    InputError
        If the forms do not fit together, or the space has no next degree.
    ConvergenceError
        If a linear solve fails.

    Collective: yes.
    """
    test = _check_forms(goal, residual, solution)
    space = solution.function_space
    above = enriched_space(space)
    solution_above = interpolate(solution, above)
    zero = dolfinx.fem.Function(above)
    bcs_above = enriched_dirichlet(bcs, space, zero)
    adjoint_above = dolfinx.fem.Function(above)
    fine_goal = ufl.replace(goal, {solution: solution_above})
    fine_residual = ufl.replace(residual, {solution: solution_above, test: adjoint_above})
    lagrangian = raise_quadrature_degree(fine_goal) - raise_quadrature_degree(fine_residual)
    with _factorised(lagrangian, adjoint_above, solution_above, bcs_above) as solver:
        # At z = 0 the derivative L_u is J'(u_h), and the matrix L_zu is -F'(u_h).
        gradient = ufl.derivative(lagrangian, solution_above, ufl.TestFunction(above))
        adjoint = _solve(solver, gradient, bcs_above, transposed=True)
        adjoint_weight = interpolation_remainder(adjoint, space)
        linear = not forms.depends_on(gradient, [solution_above])
        if not linear:
            defect = ufl.derivative(lagrangian, adjoint_above, ufl.TestFunction(above))
            step_weight = interpolation_remainder(_solve(solver, defect, bcs_above, transposed=False), space)
    parts: list[Part] = [(adjoint_above, adjoint_weight, 1.0)]
    if not linear:
        parts = [(adjoint_above, adjoint_weight, 0.5), (solution_above, step_weight, 0.5)]
        discrete_adjoint = dolfinx.fem.Function(space)
        coarse = goal - ufl.replace(residual, {test: discrete_adjoint})
        gradient = ufl.derivative(coarse, solution, ufl.TestFunction(space))
        with _factorised(coarse, discrete_adjoint, solution, bcs) as solver:
            discrete_adjoint.x.array[:] = _solve(solver, gradient, bcs, transposed=True).x.array
        adjoint_above.x.array[:] = interpolate(discrete_adjoint, above).x.array
    error, indicators = localise(lagrangian, parts, space.mesh)
    value = forms.assemble_scalar(forms.compile_form(goal))
    return GoalEstimate(value, error, indicators)


def localise(
    functional: ufl.Form,
    parts: Sequence[Part],
    mesh: Mesh,
    entity_maps: Sequence[dolfinx.mesh.EntityMap] | None = None,
) -> tuple[float, Function]:
    """Evaluate derivatives of a functional and share them out among the cells by a partition of unity.

    With the hat functions phi_i of the mesh's vertices, the residuals L'(x)(phi_i w) of Richter and Wick
    (J. Comput. Appl. Math. 279 (2015) 192-208) need neither integration by parts nor jumps. A cell gets its share of
    the absolute value at each of its vertices.

    Parameters
    ----------
    functional
        L, in which the functions of ``parts`` stand.
    parts
        (x, w, s): differentiate by the function x in the direction of the weight w, times the number s.
    mesh
        The mesh whose cells are meant; x and w may live on parts of it.
    entity_maps
        DOLFINx entity maps where the functional mixes meshes.

    Returns
    -------
    float, Function
        Sum of the s L'(x)(w), and the cellwise constant contributions, >= 0.

    Collective: yes.
    """
    hats = dolfinx.fem.functionspace(mesh, ("Lagrange", 1))
    hat = ufl.TestFunction(hats)
    residuals = dolfinx.fem.Function(hats)
    total = 0.0
    for unknown, weight, scale in parts:
        test = ufl.TestFunction(unknown.function_space)
        form = expand_derivatives(ufl.derivative(functional, unknown, test))
        if form.empty():
            continue
        form = ufl.replace(form, {test: hat * weight})
        vector = forms.assemble_vector(forms.compile_form(form, entity_maps))
        residuals.x.array[: vector.getLocalSize()] += scale * vector.array_r
        total += scale * vector.sum()
        vector.destroy()
    residuals.x.scatter_forward()
    owned = mesh.topology.index_map(mesh.topology.dim).size_local
    vertices = hats.dofmap.list[:owned]
    cells_around = dolfinx.fem.Function(hats)
    np.add.at(cells_around.x.array, vertices.ravel(), 1.0)
    cells_around.x.scatter_reverse(dolfinx.la.InsertMode.add)
    cells_around.x.scatter_forward()
    constants = dolfinx.fem.functionspace(mesh, ("DG", 0))
    indicators = dolfinx.fem.Function(constants, name="indicators")
    shares = np.abs(residuals.x.array) / np.maximum(cells_around.x.array, 1.0)
    indicators.x.array[constants.dofmap.list[:owned, 0]] = shares[vertices].sum(axis=1)
    indicators.x.scatter_forward()
    return float(total), indicators


def raise_quadrature_degree(form: ufl.Form, by: int = 3) -> ufl.Form:
    """Raise the quadrature degrees that measures prescribe: test, trial and hat function are each one degree more.

    Collective: no.
    """
    integrals = []
    for integral in form.integrals():
        metadata = dict(integral.metadata())
        if metadata.get("quadrature_degree", -1) not in (-1, None):
            metadata["quadrature_degree"] += by
        integrals.append(integral.reconstruct(metadata=metadata))
    return ufl.Form(integrals)


def _check_forms(goal: object, residual: object, solution: Function) -> ufl.Argument:
    """Return the residual's test function, after a check of what the user handed in. Collective: no."""
    if not isinstance(goal, ufl.Form) or extract_arguments(goal):
        raise InputError("the goal must be a functional: a UFL form without test and trial functions")
    if not isinstance(residual, ufl.Form) or len(extract_arguments(residual)) != 1:
        raise InputError("the residual must be a UFL form in one test function, with the solution (a Function) where "
                         "a linear problem has its TrialFunction")  # fmt: skip
    if not forms.depends_on(goal, [solution]) or not forms.depends_on(residual, [solution]):
        raise InputError(f"the solution '{solution.name}' must appear both in the goal and in the residual")
    test = extract_arguments(residual)[0]
    if test.ufl_function_space() != solution.function_space:
        raise InputError("the residual's test function is of another space than the solution: use the solution's")
    return test


@contextmanager
def _factorised(
    lagrangian: ufl.Form,
    adjoint: Function,
    solution: Function,
    bcs: Sequence[dolfinx.fem.DirichletBC],
) -> Iterator[PETSc.KSP]:
    """Hand out a solver with L_zu, freed at the end. Collective: yes."""
    test, trial = ufl.TestFunction(adjoint.function_space), ufl.TrialFunction(solution.function_space)
    form = ufl.derivative(ufl.derivative(lagrangian, adjoint, test), solution, trial)
    matrix = forms.assemble_matrix(forms.compile_form(form), bcs)
    try:
        with direct_solver(matrix) as solver:
            yield solver
    finally:
        matrix.destroy()


@contextmanager
def direct_solver(matrix: PETSc.Mat, options: Mapping[str, object] | None = None) -> Iterator[PETSc.KSP]:
    """Hand out MUMPS for a matrix, or what PETSc options under ``goal_`` ask for; freed at the end. Collective: yes."""
    solver = PETSc.KSP().create(matrix.getComm())
    try:
        solver.setOptionsPrefix("goal_")
        solver.setOperators(matrix)
        with forms.default_options("goal_", {**_DIRECT, **(options or {})}):
            solver.setFromOptions()
            solver.setUp()
        yield solver
    finally:
        solver.destroy()


def solve_checked(solver: PETSc.KSP, right: PETSc.Vec, out: PETSc.Vec, *, transposed: bool = False) -> None:
    """Solve with a matrix or its transpose.

    Raises
    ------
    ConvergenceError
        If the solver does not converge.

    Collective: yes.
    """
    (solver.solveTranspose if transposed else solver.solve)(right, out)
    reason = solver.getConvergedReason()
    if reason <= 0:
        advice = KSP_ADVICE.get(reason, "see goal_ksp_converged_reason")
        raise ConvergenceError(f"the solve for the weights of the estimate failed (reason {reason}): {advice}")


def _solve(
    solver: PETSc.KSP, right_hand_side: ufl.Form, bcs: Sequence[dolfinx.fem.DirichletBC], *, transposed: bool
) -> Function:
    """Return minus the inverse of the matrix times a covector, zero at Dirichlet conditions. Collective: yes."""
    (argument,) = extract_arguments(right_hand_side)
    result = dolfinx.fem.Function(argument.ufl_function_space())
    vector = forms.assemble_vector(forms.compile_form(right_hand_side))
    vector.array[forms.owned_dirichlet_dofs(bcs)] = 0.0
    vector.scale(-1.0)
    unknown = vector.duplicate()
    solve_checked(solver, vector, unknown, transposed=transposed)
    forms.set_function(result, unknown.array_r[: vector.getLocalSize()])
    vector.destroy()
    unknown.destroy()
    return result
