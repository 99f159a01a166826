"""What kind of control problem this is, read off its assembled blocks, and which solver suits it."""

import dataclasses
import math

from mpi4py import MPI
from petsc4py import PETSc

import numpy as np
import ufl
from ufl.algorithms import expand_derivatives
from ufl.corealg.traversal import unique_pre_traversal

from pdeopt.control.kkt import Blocks, KKTSystem
from pdeopt.control.riesz import trace_ratio
from pdeopt.fem import forms

# Largest KKT system that is factorised by default, by topological dimension. Up to here the factors of MUMPS fit in a
# few GB and cost less than the many state solves of the reduced Hessian.
DIRECT_LIMIT = {1: 1_000_000, 2: 200_000, 3: 40_000}
_SAME = 1e-8  # relative Frobenius distance up to which two assembled matrices count as the same


@dataclasses.dataclass(frozen=True)
class Structure:
    """The numbers that the preconditioners need, and what was recognised.

    Parameters
    ----------
    kind
        "distributed" (mass-like observation of the whole state, control in the whole domain), "partial observation"
        (control in the whole domain, the state seen in a part), or "general".
    observation
        w, where L_yy = w M on what is observed.
    regularisation
        The a_j of L_u_j u_j = a_j M_u_j.
    gains
        The g_j of B_j = g_j times the mass between state and control space.
    """

    kind: str
    observation: float
    regularisation: tuple[float, ...] = ()
    gains: tuple[float, ...] = ()

    @property
    def coupling(self) -> float:
        """C = sqrt(sum_j g_j^2 / a_j)."""
        return math.sqrt(sum(gain**2 / weight for gain, weight in zip(self.gains, self.regularisation, strict=True)))


def relative_difference(matrix: PETSc.Mat, reference: PETSc.Mat, factor: float) -> float:
    """Return |matrix - factor reference| / |matrix| in the Frobenius norm. Collective: yes."""
    size = matrix.norm(PETSc.NormType.FROBENIUS)
    if size == 0.0:
        return math.inf
    difference = matrix.copy()
    difference.axpy(-factor, reference, structure=PETSc.Mat.Structure.DIFFERENT_NONZERO_PATTERN)
    result = float(difference.norm(PETSc.NormType.FROBENIUS)) / size
    difference.destroy()
    return result


def _derivative_free(form: ufl.Form) -> bool:
    """Whether the arguments of a form appear without derivatives and only in cell integrals."""
    for integral in expand_derivatives(form).integrals():
        if integral.integral_type() != "cell":
            return False
        for node in unique_pre_traversal(integral.integrand()):
            if isinstance(node, ufl.classes.Derivative) and ufl.algorithms.extract_arguments(node):
                return False
    return True


def _distributed_control(system: KKTSystem, blocks: Blocks, index: int) -> tuple[float, float] | None:
    """Return (a, g) of a control that acts as g u on the whole domain with regularisation a M_u, or None."""
    block, operator = blocks.control_control[index][index], blocks.control_operators[index]
    control_space = system.controls[index].function.function_space
    state_space = system.lagrangian.state.function_space
    if block is None or operator is None or control_space.mesh is not state_space.mesh or _any_idle(system, index):
        return None
    if control_space.value_shape != state_space.value_shape or system.controls[index].size != forms.owned_size(
        control_space
    ):
        return None
    product = system.control_products[index]
    regularisation = trace_ratio(block, product)
    if regularisation <= 0.0 or relative_difference(block, product, regularisation) > _SAME:
        return None
    mass = ufl.inner(ufl.TrialFunction(control_space), ufl.TestFunction(state_space)) * ufl.dx
    mixed = forms.assemble_matrix(forms.compile_form(mass))
    system._fix(mixed, system.dirichlet_mask(), system.idle[index])
    squared = mixed.norm(PETSc.NormType.FROBENIUS) ** 2
    inner = mixed.copy()
    inner.axpy(1.0, operator, structure=PETSc.Mat.Structure.DIFFERENT_NONZERO_PATTERN)
    plus = inner.norm(PETSc.NormType.FROBENIUS) ** 2
    gain = (plus - squared - operator.norm(PETSc.NormType.FROBENIUS) ** 2) / (
        2.0 * squared
    )  # <operator, mixed> / |mixed|^2
    same = gain != 0.0 and relative_difference(operator, mixed, gain) <= _SAME
    for matrix in (mixed, inner):
        matrix.destroy()
    return (regularisation, gain) if same else None


def _any_idle(system: KKTSystem, index: int) -> bool:
    return bool(system.comm.allreduce(bool(np.any(system.idle[index])), op=MPI.LOR))


def recognise(system: KKTSystem, blocks: Blocks, state_mass: PETSc.Mat) -> Structure:
    """Read the structure off the blocks, before bounds fix any control. Collective: yes.

    Parameters
    ----------
    state_mass
        Mass matrix of the state space, Dirichlet rows and columns zero.
    """
    found = [_distributed_control(system, blocks, j) for j in range(len(system.controls))]
    observation = 0.0
    if blocks.state_state is not None:
        observation = _largest_ratio(system.comm, blocks.state_state, state_mass)
    if any(entry is None for entry in found) or observation <= 0.0 or len(system.lagrangian.constraints) > 0:
        return Structure("general", max(observation, 0.0))
    entries = [entry for entry in found if entry is not None]
    regularisations, gains = zip(*entries, strict=True)
    mean = trace_ratio(blocks.state_state, state_mass)
    # The Hessian of a nonlinear state equation adds a small term to the observation: it stays "distributed" up to 30 %.
    tolerance = _SAME if system.linear_quadratic else 0.3
    if blocks.state_state is not None and relative_difference(blocks.state_state, state_mass, mean) <= tolerance:
        return Structure("distributed", mean, regularisations, gains)
    if _derivative_free(system.lagrangian.second(system.lagrangian.functional, 0, 0)):
        return Structure("partial observation", observation, regularisations, gains)
    return Structure("general", observation)


def _largest_ratio(comm: MPI.Comm, matrix: PETSc.Mat, reference: PETSc.Mat) -> float:
    diagonal, scale = matrix.getDiagonal().array_r, reference.getDiagonal().array_r
    mask = scale > 0.0
    local = float(np.max(diagonal[mask] / scale[mask])) if np.any(mask) else -math.inf
    return float(comm.allreduce(local, op=MPI.MAX))


def choose_method(structure: Structure, system: KKTSystem, bounded: bool) -> tuple[str, str]:
    """Return the default method for a structure, and why, in a sentence.

    The methods are those of `pdeopt.control.solvers`: "matched_schur", "direct", "reduced_hessian".
    """
    dimension = system.lagrangian.state.function_space.mesh.topology.dim
    size = system.layout.global_size
    limit = DIRECT_LIMIT[dimension]
    if structure.kind == "distributed" and not bounded:
        return "matched_schur", "control and observation act on the whole domain: the Schur complement can be matched"
    if structure.kind == "partial observation" and not bounded:
        return "matched_schur", "the control acts on the whole domain, so the roles of state and adjoint are swapped"
    kind = {"general": "boundary, low-dimensional or otherwise general control or observation"}.get(
        structure.kind, f"{structure.kind} control with bounds"
    )
    if size <= limit:
        return "direct", f"{kind}: no robust preconditioner is known, and {size} unknowns <= {limit} can be factorised"
    return (
        "reduced_hessian",
        f"{kind}: no robust preconditioner is known, and {size} unknowns > {limit} are too many to factorise",
    )
