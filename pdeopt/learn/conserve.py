"""Exact conservation: projections onto what must hold, as plain functions and as torch layers.

- `FluxProjection`: the nearest flux whose divergence is given in every cell;
- `divergence_free`: the same with zero;
- `LinearConstraints`: the nearest field with given values of linear functionals, such as mass and moments;
- `MassAndEnergy`: the nearest field with given mass and energy.

The projections are exact up to rounding whatever is projected, so a network in front of them can be wrong about
anything but what is conserved. Only the torch layers need torch.
"""

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from mpi4py import MPI

import numpy as np
import ufl
from dolfinx import fem
from ufl.core.expr import Expr

from pdeopt.fem.forms import owned_size, set_function
from pdeopt.learn._conserve_cells import CellMatrices, Coefficient
from pdeopt.learn._conserve_facets import FacetSystem
from pdeopt.learn._conserve_hybrid import HybridSolver
from pdeopt.learn._conserve_input import check_values, prescribed_facets
from pdeopt.learn._conserve_integrals import LinearConstraints, MassAndEnergy
from pdeopt.report import InputError, SolveReport

if TYPE_CHECKING:
    from pdeopt.learn._torch import torch

__all__ = ["Defect", "FluxProjection", "LinearConstraints", "MassAndEnergy", "divergence_free"]

# The jump between two cells that may be left before both sides are averaged, over the flux through a section of the
# domain, which is about the largest flux of a facet times the number of facets in a section.
_JUMP = 7e-15
_SMALLEST_JUMP = 1e-13
# Of the sum of the sizes of all sources: more than rounding may leave in the balance of the whole domain.
_IMBALANCE = 1e-10

type Prescribed = fem.Function | tuple[np.ndarray, fem.Function]


class Defect(NamedTuple):
    """How far a flux is from the balance of the cells.

    Parameters
    ----------
    absolute
        Largest of all cells' integrals of div q - f.
    relative
        The same over the largest sum of a cell's source and of its fluxes, all taken positive.
    """

    absolute: float
    relative: float


class FluxProjection:
    r"""The nearest flux whose divergence is the source in every cell.

    For a given :math:`\hat q` it solves

    .. math::

        \min_q \tfrac12 \int_\Omega w \, |q - \hat q|^2 \, dx \quad \text{subject to} \quad
        \int_T (\operatorname{div} q - f) \, v \, dx = 0, \qquad q \cdot n = g \text{ on prescribed facets},

    for all cells :math:`T` and all :math:`v` that are divergences of the space. It is hybridised: cells are eliminated,
    and multigrid solves for one multiplier a facet. Matrices, factors and the multigrid hierarchy are made once.

    Parameters
    ----------
    space
        Conforming H(div) space: "RT" or "BDM" of any degree, on triangles, quadrilaterals, tetrahedra or hexahedra.
    source
        Divergence f: a number, or a UFL expression whose coefficients are read at each projection.
    inverse_permeability
        Weight w, a positive scalar or a symmetric positive definite tensor, read once; None is one.
    prescribed
        A function of the space whose normal flux is imposed on the whole boundary, or (facets, function) for some
        facets of the boundary, numbered as on this rank. The function is read at each projection. On the other facets
        of the boundary the flux is free.
    petsc_options
        Options of the multipliers' KSP, without prefix. They win over pdeopt's choice, CG and GAMG.

    Raises
    ------
    InputError
        If the element is not H(div) conforming, a facet is not on the boundary, or what is handed in has NaN.

    Notes
    -----
    With the flux prescribed on the whole boundary the sources have to add up to it, or there is no such flux; each
    projection checks that. The domain has to be connected then.

    Collective: yes, as are all methods.
    """

    def __init__(
        self,
        space: fem.FunctionSpace,
        *,
        source: Coefficient = 0.0,
        inverse_permeability: Coefficient | None = None,
        prescribed: Prescribed | None = None,
        petsc_options: Mapping[str, object] | None = None,
    ) -> None:
        start = time.perf_counter()
        self.space = space
        self.comm = space.mesh.comm
        marked, self._boundary_flux = prescribed_facets(space, prescribed)
        self._cells = CellMatrices(space, inverse_permeability)
        check_values(self.comm, "the mass matrix weighted by inverse_permeability", self._cells.mass)
        self._facets = FacetSystem(self._cells, marked, petsc_options)
        topology = space.mesh.topology
        section = topology.index_map(topology.dim).size_global ** (1.0 - 1.0 / topology.dim)
        self._solver = HybridSolver(self._cells, self._facets, max(_SMALLEST_JUMP, _JUMP * section))
        self._fixed_dofs = np.flatnonzero(self._cells.add_up(self._facets.copies_on(marked)) > 0.0)
        test = ufl.TestFunction(self._cells.pressure_space)
        expression = source if isinstance(source, Expr) else fem.Constant(space.mesh, float(source))
        self._source_form = fem.form(ufl.inner(expression, test) * ufl.dx)
        self._seconds_setup = time.perf_counter() - start
        self._report: SolveReport | None = None

    @property
    def source_space(self) -> fem.FunctionSpace:
        """The discontinuous space of all divergences: that of a source handed to the layer as a tensor."""
        return self._cells.pressure_space

    @property
    def report(self) -> SolveReport:
        """Report of the last solve, forward or backward; its residuals are the largest jumps between cells."""
        if self._report is None:
            raise InputError("there is no report yet: nothing has been projected")
        return self._report

    def project(self, q_hat: fem.Function, out: fem.Function | None = None) -> fem.Function:
        """Return the nearest flux that satisfies the constraints.

        Parameters
        ----------
        q_hat
            Function of the space.
        out
            Where to put the result; may be ``q_hat`` itself. None makes a new function.

        Raises
        ------
        InputError
            If a value is NaN or Inf, the function is of another space, or source and prescribed flux do not add up.
        ConvergenceError
            If the solver does not reach its tolerance.

        Collective: yes.
        """
        size = owned_size(self.space)
        fits = q_hat.function_space.element == self.space.element and q_hat.x.array.size >= size
        check_values(self.comm, "q_hat", q_hat.x.array[:size] if fits else np.empty(0), size)
        result = fem.Function(self.space) if out is None else out
        set_function(result, self._forward(q_hat.x.array[:size], None, False))
        return result

    def __call__(self, q_hat: "torch.Tensor", source: "torch.Tensor | None" = None) -> "torch.Tensor":
        """Project tensors; gradients and second derivatives come from the same solver.

        Parameters
        ----------
        q_hat
            Values of the degrees of freedom that this rank owns, shape (owned,) or (batch, owned).
        source
            Degrees of freedom in `source_space` of a source that takes the place of the given one, shape (owned,) or
            (batch, owned); None takes the given one.

        Returns
        -------
        torch.Tensor
            Double precision, the shape of ``q_hat``.

        Collective: yes, forward and backward, one solve for each entry of the batch.
        """
        from pdeopt.learn._conserve_torch import project_in_torch

        return project_in_torch(self, q_hat, source)

    def layer(self) -> "torch.nn.Module":
        """Return the projection as a torch module, to stand behind a network. It has no parameters."""
        from pdeopt.learn._conserve_layer import ProjectionLayer

        return ProjectionLayer(self)

    def imbalance(self, flux: fem.Function) -> np.ndarray:
        """Return the integral of div q - f over each owned cell, shape (cells,). Collective: yes."""
        return self._imbalances(flux.x.array, self._given_balance())[0]

    def defect(self, flux: fem.Function) -> Defect:
        """Return the largest imbalance of a cell, absolute and relative. Collective: yes."""
        local, sizes = self._imbalances(flux.x.array, self._given_balance())
        both = np.array([np.max(np.abs(local), initial=0.0), np.max(sizes, initial=0.0)])
        self.comm.Allreduce(MPI.IN_PLACE, both, op=MPI.MAX)
        return Defect(float(both[0]), float(both[0] / both[1]) if both[1] > 0.0 else 0.0)

    def destroy(self) -> None:
        """Free PETSc's objects. Collective: yes."""
        self._facets.destroy()

    # --- on arrays ----------------------------------------------------------------------------------------------------

    def _given_balance(self) -> np.ndarray:
        """Return the integrals of the source against the cells' test functions, shape (cells, m)."""
        vector = fem.assemble_vector(self._source_form)
        balance = vector.array[self._cells.pressure_dofs]
        check_values(self.comm, "the source", balance)
        return balance

    def _imbalances(self, values: np.ndarray, balance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the cells' integrals of div q - f, and the sums of sizes of what they are made of."""
        outflow = np.einsum("cm,cmn->cn", self._cells.constant, self._cells.divergence) * self._cells.copies(values)
        source = np.einsum("cm,cm->c", self._cells.constant, balance)
        return np.sum(outflow, axis=1) - source, np.sum(np.abs(outflow), axis=1) + np.abs(source)

    def _forward(self, guess: np.ndarray, source: np.ndarray | None, homogeneous: bool) -> np.ndarray:
        """Return the projection of owned values; ``homogeneous`` leaves out the given source and boundary flux."""
        start = time.perf_counter()
        cells, facets = self._cells, self._facets
        check_values(self.comm, "q_hat", guess, owned_size(self.space))
        if source is not None:
            check_values(self.comm, "the source", source, owned_size(cells.pressure_space))
            source = self._balanced(source) if homogeneous else source
            balance = np.einsum("cij,cj->ci", cells.pressure_mass, source[cells.pressure_dofs])
        elif homogeneous:
            balance = np.zeros(cells.pressure_dofs.shape)
        else:
            balance = self._given_balance()
        boundary = np.zeros(self._fixed_dofs.size)
        if self._boundary_flux is not None and not homogeneous:
            given = self._boundary_flux.x.array[: guess.size]
            boundary = cells.with_ghosts(given)[self._fixed_dofs]
            check_values(self.comm, "the prescribed flux", boundary)

        values = cells.with_ghosts(guess)
        change = np.zeros_like(values)
        change[self._fixed_dofs] = boundary - values[self._fixed_dofs]
        if facets.singular and not homogeneous:
            self._check_total(balance, boundary)
        left = balance - np.einsum("cij,cj->ci", cells.divergence, cells.copies(values))
        jump = facets.jump(cells.copies(change)) if self._boundary_flux is not None else None
        iterations = facets.iterations
        solution = self._solver.solve(balance=left, jump=jump, size=self._largest(values))
        values = values + cells.average(solution.flux)
        values[self._fixed_dofs] = boundary
        imbalance = float(np.max(np.abs(self._imbalances(values, balance)[0]), initial=0.0))
        quantities = {"largest imbalance of a cell": self.comm.allreduce(imbalance, op=MPI.MAX)}
        self._write_report(start, facets.iterations - iterations, solution.jumps, quantities)
        return values[: guess.size].copy()

    def _adjoint(self, cotangent: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the cotangents of guess and source: the saddle-point matrix is its own transpose."""
        start = time.perf_counter()
        cells, facets = self._cells, self._facets
        check_values(self.comm, "the cotangent", cotangent, owned_size(self.space))
        shared = cells.share(self._without_fixed(cotangent))
        iterations = facets.iterations
        solution = self._solver.solve(load=shared)
        flux = cells.average(solution.flux)
        flux[self._fixed_dofs] = 0.0
        guess = cells.add_up(np.einsum("cij,cj->ci", cells.mass, cells.copies(flux)))[: cotangent.size]
        source = np.zeros(owned_size(cells.pressure_space))
        # The pressure mass matrices are symmetric.
        source[cells.pressure_dofs] = np.einsum("cij,cj->ci", cells.pressure_mass, solution.pressure)
        self._write_report(start, facets.iterations - iterations, solution.jumps, {})
        return guess, self._balanced(source)

    def _balanced(self, direction: np.ndarray) -> np.ndarray:
        """Return a direction for the source in which its total stays, if the prescribed flux fixes the total."""
        if not self._facets.singular:
            return direction
        cells = self._cells
        normal = np.zeros_like(direction)
        normal[cells.pressure_dofs] = np.einsum("cij,cj->ci", cells.pressure_mass, cells.constant)
        both = np.array([normal @ direction, normal @ normal])
        self.comm.Allreduce(MPI.IN_PLACE, both)
        return direction - normal * (both[0] / both[1])

    def _without_fixed(self, cotangent: np.ndarray) -> np.ndarray:
        """Return the cotangent without prescribed degrees of freedom, whose values depend on nothing."""
        result = cotangent.copy()
        result[self._fixed_dofs[self._fixed_dofs < result.size]] = 0.0
        return result

    def _check_total(self, balance: np.ndarray, boundary: np.ndarray) -> None:
        """Raise on all ranks if the sources do not add up to the prescribed flux."""
        sources = np.einsum("cm,cm->c", self._cells.constant, balance)
        values = np.zeros(self.space.dofmap.index_map.size_local + self.space.dofmap.index_map.num_ghosts)
        values[self._fixed_dofs] = boundary
        outflow = np.einsum("cm,cmn->cn", self._cells.constant, self._cells.divergence) * self._cells.copies(values)
        sums = np.array([np.sum(sources), np.sum(outflow), np.sum(np.abs(sources)), np.sum(np.abs(outflow))])
        self.comm.Allreduce(MPI.IN_PLACE, sums)
        if abs(sums[0] - sums[1]) > _IMBALANCE * (sums[2] + sums[3]):
            raise InputError(
                f"no flux exists: the source adds up to {sums[0]:.12g}, but the flux prescribed on the whole boundary "
                f"carries {sums[1]:.12g} out of the domain: change either, or leave the flux free on some facets"
            )

    def _largest(self, values: np.ndarray) -> float:
        return float(self.comm.allreduce(float(np.max(np.abs(values), initial=0.0)), op=MPI.MAX))

    def _write_report(
        self, start: float, iterations: int, jumps: tuple[float, ...], quantities: dict[str, float]
    ) -> None:
        sizes: dict[str, float | int | str] = {
            "unknowns": self.space.dofmap.index_map.size_global,
            "multipliers": self._facets.size,
        }
        element = self.space.ufl_element()
        self._report = SolveReport(
            method=f"hybridised {element.element_family.name} of degree {element.degree}, {self._facets.method}",
            reason=self._facets.reason,
            iterations=len(jumps) - 1,
            linear_iterations=iterations,
            residuals=jumps,
            seconds={"setup": self._seconds_setup, "solve": time.perf_counter() - start},
            quantities={**sizes, **quantities},
        )


def divergence_free(
    space: fem.FunctionSpace,
    *,
    inverse_permeability: Coefficient | None = None,
    prescribed: Prescribed | None = None,
    petsc_options: Mapping[str, object] | None = None,
) -> FluxProjection:
    """Return the projection onto fluxes without divergence; the arguments are those of `FluxProjection`.

    Collective: yes.
    """
    return FluxProjection(
        space,
        source=0.0,
        inverse_permeability=inverse_permeability,
        prescribed=prescribed,
        petsc_options=petsc_options,
    )
