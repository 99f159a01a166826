"""Solvers for saddle points and elasticity: PETSc options, and what cannot travel as an option.

A function here returns a `SolverSetup` for a KSP or SNES of your own or of DOLFINx:

    problem = dolfinx.fem.petsc.NonlinearProblem(F, w, bcs=bcs, petsc_options_prefix="flow_")
    saddle.navier_stokes(w.function_space, ufl.split(w)[0], viscosity=nu).attach(problem.solver)
    problem.solve()

The boundary conditions, the sign of the second equation and a pressure that is fixed only up to a constant are read off
the assembled matrix.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal

from petsc4py import PETSc

import dolfinx
from ufl.core.expr import Expr

from pdeopt.fem import forms
from pdeopt.fem.saddle_blocks import BlockTriangular
from pdeopt.fem.saddle_fields import Fields, Spaces, near_nullspace_arrays, nullspace_of
from pdeopt.fem.saddle_pcd import PressureConvectionDiffusion, check_continuous
from pdeopt.fem.saddle_schur import (
    AugmentedLagrangian,
    Coefficient,
    DiscreteLaplacian,
    LeastSquaresCommutator,
    PressureMass,
)
from pdeopt.report import InputError, OptionError

NAVIER_STOKES_METHODS = ("pcd", "lsc", "augmented_lagrangian")

# With GAMG's default threshold iterations of quadratic elements grow with refinement; with 0.02 they do not.
_MULTIGRID: dict[str, object] = {
    "pc_type": "gamg",
    "pc_gamg_threshold": 0.02,
    "mg_levels_ksp_type": "chebyshev",
    "mg_levels_pc_type": "jacobi",
}
# Chebyshev smoothing assumes a positive spectrum and Gauss-Seidel diverges where convection leads; ILU does neither.
# Galerkin operators of coarse grids are unstable: a direct solve takes over while the grid still resolves the flow.
_CONVECTION: dict[str, object] = {
    "pc_type": "gamg",
    "pc_gamg_threshold": 0.02,
    "pc_gamg_coarse_eq_limit": 3000,
    "mg_levels_ksp_type": "richardson",
    "mg_levels_pc_type": "bjacobi",
    "mg_levels_sub_pc_type": "ilu",
    "mg_coarse_pc_type": "lu",
    "mg_coarse_pc_factor_mat_solver_type": "mumps",
}
_FLEXIBLE: dict[str, object] = {"ksp_type": "fgmres", "ksp_gmres_restart": 100, "ksp_max_it": 500, "pc_type": "python"}
_MASS: dict[str, object] = {"ksp_type": "cg", "ksp_rtol": 1e-2, "ksp_max_it": 20, "pc_type": "jacobi"}
_CYCLES: dict[str, object] = {"ksp_type": "richardson", "ksp_max_it": 1, "ksp_norm_type": "none"}


def _check_positive(name: str, value: Coefficient) -> None:
    if isinstance(value, int | float) and not value > 0.0:
        raise InputError(f"{name} = {value} is out of range: it must be positive")


def _under(name: str, options: dict[str, object]) -> dict[str, object]:
    return {f"{name}_{key}": value for key, value in options.items()}


@dataclasses.dataclass(frozen=True)
class SolverSetup:
    """PETSc options of a solver, and the objects that belong to it.

    Parameters
    ----------
    options
        PETSc options without prefix, a dictionary that may be changed before `attach`. Inner solvers have names of
        their own: ``velocity_pc_type``, ``mass_ksp_rtol``.
    method
        What it is, for reports.
    """

    options: dict[str, object]
    method: str
    _fields: Fields | None = None
    _make_context: Callable[[dict[str, object], bool], BlockTriangular] | None = None
    _displacement: dolfinx.fem.FunctionSpace | None = None

    def attach(self, solver: PETSc.KSP | PETSc.SNES, *, adjoint: bool = False) -> None:
        """Configure a KSP, or the KSP inside a SNES, before its first solve.

        What the user set in PETSc's options under the solver's prefix wins over `options`. Nothing is left behind in
        PETSc's options.

        Parameters
        ----------
        solver
            With its matrix set, assembled or not: ``problem.solver`` of DOLFINx's LinearProblem or NonlinearProblem.
        adjoint
            Whether its matrix is the transpose of the one that the setup was made for.

        Collective: yes.
        """
        nonlinear = isinstance(solver, PETSc.SNES)
        ksp = solver.getKSP() if nonlinear else solver
        pc = ksp.getPC()
        if self._displacement is not None:
            matrix = solver.getJacobian()[1] if nonlinear else ksp.getOperators()[1]
            nullspace = nullspace_of(matrix, near_nullspace_arrays(self._displacement, rotations=True))
            matrix.setNearNullSpace(nullspace)
            nullspace.destroy()
        context = None
        if self._make_context is not None:
            assert self._fields is not None
            self._fields.check_layout(solver.getJacobian()[1] if nonlinear else ksp.getOperators()[1])
            context = self._make_context(self.options, adjoint)
        with forms.default_options(ksp.getOptionsPrefix() or "", self.options):
            if context is not None:
                pc.setType(PETSc.PC.Type.PYTHON)
                pc.setPythonContext(context)
            ksp.setFromOptions()


def stokes(
    spaces: Spaces, viscosity: Coefficient = 1.0, *, reaction: Coefficient = 0.0, symmetric_gradient: bool = False
) -> SolverSetup:
    """Return a solver for Stokes' equations: block triangle, multigrid for the velocity, mass matrix for the pressure.

    Parameters
    ----------
    spaces
        A space on a mixed element (velocity, pressure), or the two spaces of a form in blocks.
    viscosity
        Factor of (grad u, grad v), or half the factor of (eps(u), eps(v)); the pressure enters with the factor one.
    reaction
        Factor of (u, v), for time steps.
    symmetric_gradient
        Whether the form has the symmetric gradient, so that rotations cost no energy either.

    Raises
    ------
    InputError
        If the viscosity is not positive, or a reaction meets a discontinuous pressure.

    Collective: yes.
    """
    _check_positive("viscosity", viscosity)
    fields = Fields(spaces)
    options = _FLEXIBLE | {"ksp_rtol": 1e-8} | _under("velocity", _CYCLES | _MULTIGRID) | _under("mass", _MASS)
    steady = isinstance(reaction, int | float) and reaction == 0.0
    if not steady:
        check_continuous(fields.second)
        options |= _under("laplacian", _CYCLES | _MULTIGRID)

    def make(chosen: dict[str, object], adjoint: bool) -> BlockTriangular:
        schur = (
            PressureMass(fields, 1.0 / viscosity)
            if steady
            else PressureConvectionDiffusion(fields, viscosity, None, reaction, adjoint)
        )
        modes = near_nullspace_arrays(fields.first, symmetric_gradient)
        return BlockTriangular(fields, schur, chosen, "velocity", modes)

    return SolverSetup(options, "FGMRES, block triangle with pressure mass", fields, make)


def navier_stokes(
    spaces: Spaces,
    wind: Expr,
    viscosity: Coefficient,
    *,
    method: Literal["pcd", "lsc", "augmented_lagrangian"] = "pcd",
    reaction: Coefficient = 0.0,
    augmentation: float = 1.0,
    symmetric_gradient: bool = False,
) -> SolverSetup:
    """Return a solver for the linear systems of Picard's or Newton's method for the Navier-Stokes equations.

    Parameters
    ----------
    spaces
        A space on a mixed element (velocity, pressure), or the two spaces of a form in blocks.
    wind
        The velocity that convects: ``ufl.split(w)[0]`` of the solution, or a function that holds the last iterate.
    viscosity
        Factor of (grad u, grad v).
    method
        "pcd" (pressure convection-diffusion), "lsc" (least-squares commutator, whose iterations grow with refinement)
        or "augmented_lagrangian" (few iterations, but its velocity block is factorised).
    reaction
        Factor of (u, v), for time steps; used by "pcd".
    augmentation
        Of "augmented_lagrangian", in units of the viscosity; of the size of |wind| times length.
    symmetric_gradient
        Whether the form has the symmetric gradient.

    Raises
    ------
    OptionError
        If the method is unknown.
    InputError
        If viscosity or augmentation are not positive, the wind is no vector, or "pcd" meets a discontinuous pressure.

    Collective: yes.
    """
    if method not in NAVIER_STOKES_METHODS:
        raise OptionError(f"method {method!r} is unknown: choose one of {', '.join(NAVIER_STOKES_METHODS)}")
    _check_positive("viscosity", viscosity)
    _check_positive("augmentation", augmentation)
    fields = Fields(spaces)
    dimension = fields.mesh.geometry.dim
    if wind.ufl_shape != (dimension,):
        raise InputError(f"the wind has shape {wind.ufl_shape}: it must be a vector of {dimension} components")
    if method == "pcd":
        check_continuous(fields.second)
    options = _FLEXIBLE | {"ksp_rtol": 1e-6}
    if method == "augmented_lagrangian":
        direct: dict[str, object] = {"ksp_type": "preonly", "pc_type": "lu", "pc_factor_mat_solver_type": "mumps"}
        options |= _under("velocity", direct) | _under("mass", _MASS)
    else:
        options |= _under("velocity", _CYCLES | _CONVECTION) | _under("laplacian", _CYCLES | _MULTIGRID)
        if method == "pcd":
            options |= _under("mass", _MASS)

    def make(chosen: dict[str, object], adjoint: bool) -> BlockTriangular:
        modes = near_nullspace_arrays(fields.first, symmetric_gradient)
        if method == "augmented_lagrangian":
            return AugmentedLagrangian(fields, chosen, "velocity", modes, viscosity, augmentation)
        schur = (
            LeastSquaresCommutator(fields)
            if method == "lsc"
            else PressureConvectionDiffusion(fields, viscosity, wind, reaction, adjoint)
        )
        return BlockTriangular(fields, schur, chosen, "velocity", modes)

    return SolverSetup(options, f"FGMRES, block triangle with {method}", fields, make)


def mixed_poisson(spaces: Spaces) -> SolverSetup:
    """Return a solver for (s, t) / k - (u, div t) - (v, div s) in H(div) times L2: a mass matrix and a Laplacian.

    Parameters
    ----------
    spaces
        A space on a mixed element (flux, potential), for instance Raviart-Thomas and discontinuous Lagrange, or the two
        spaces of a form in blocks. The coefficient k is read off the matrix.

    Collective: yes.
    """
    fields = Fields(spaces)
    options = _FLEXIBLE | {"ksp_rtol": 1e-8} | _under("flux", _MASS) | _under("laplacian", _CYCLES | _MULTIGRID)

    def make(chosen: dict[str, object], adjoint: bool) -> BlockTriangular:
        return BlockTriangular(fields, DiscreteLaplacian(), chosen, "flux", ())

    return SolverSetup(options, "FGMRES, block triangle with the discrete Laplacian", fields, make)


def elasticity(space: dolfinx.fem.FunctionSpace) -> SolverSetup:
    """Return a solver for elasticity in displacements: CG and multigrid that knows the rigid-body modes.

    Good up to a Poisson ratio of about 0.45; above it take `mixed_elasticity`.

    Parameters
    ----------
    space
        The vector-valued space of the displacement.

    Raises
    ------
    InputError
        If the space is not vector-valued.

    Collective: yes.
    """
    if space.value_shape != (space.mesh.geometry.dim,):
        raise InputError(f"a space of value shape {space.value_shape} is none of displacements: give a vector space")
    options: dict[str, object] = {"ksp_type": "cg", "ksp_rtol": 1e-8, "ksp_max_it": 500} | _MULTIGRID
    return SolverSetup(options, "CG, multigrid with rigid-body modes", _displacement=space)


def mixed_elasticity(spaces: Spaces, shear_modulus: Coefficient, lame: Coefficient) -> SolverSetup:
    """Return a solver for 2 mu (eps(u), eps(v)) - (p, div v) - (q, div u) - (p, q) / lambda, robust as lambda grows.

    Parameters
    ----------
    spaces
        A space on a mixed element (displacement, pressure), inf-sup stable as Taylor-Hood is, or the two spaces of a
        form in blocks.
    shear_modulus, lame
        mu and lambda.

    Raises
    ------
    InputError
        If one of them is not positive.

    Collective: yes.
    """
    _check_positive("shear_modulus", shear_modulus)
    _check_positive("lame", lame)
    fields = Fields(spaces)
    options = _FLEXIBLE | {"ksp_rtol": 1e-8} | _under("displacement", _CYCLES | _MULTIGRID) | _under("mass", _MASS)

    def make(chosen: dict[str, object], adjoint: bool) -> BlockTriangular:
        schur = PressureMass(fields, 0.5 / shear_modulus + 1.0 / lame)
        return BlockTriangular(fields, schur, chosen, "displacement", near_nullspace_arrays(fields.first, True))

    return SolverSetup(options, "FGMRES, block triangle with pressure mass", fields, make)
