"""UFL forms to PETSc objects: fixed quadrature, compiled forms, matrices, vectors, blocks of unknowns."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from mpi4py import MPI
from petsc4py import PETSc

import dolfinx
import numpy as np
import ufl
from dolfinx.fem import petsc as fem_petsc
from ufl.algorithms import expand_derivatives, extract_coefficients
from ufl.algorithms.apply_algebra_lowering import apply_algebra_lowering
from ufl.algorithms.estimate_degrees import estimate_total_polynomial_degree

from pdeopt.report import InputError


def fix_quadrature_degree(form: ufl.Form) -> ufl.Form:
    """Write the estimated quadrature degree into every measure that has none.

    The automatic degree of a derivative is lower than that of the form it came from, so a form and its derivative
    would be integrated by different rules, and an adjoint gradient would be wrong by the quadrature error.
    """
    integrals = []
    for integral in form.integrals():
        metadata = dict(integral.metadata())
        if metadata.get("quadrature_degree", -1) in (-1, None):
            integrand = expand_derivatives(apply_algebra_lowering(integral.integrand()))
            degree = estimate_total_polynomial_degree(integrand)
            metadata["quadrature_degree"] = int(np.max(degree))
        integrals.append(integral.reconstruct(metadata=metadata))
    return ufl.Form(integrals)


def is_zero(form: ufl.Form) -> bool:
    """Whether a form vanishes identically once its derivatives are carried out."""
    return bool(expand_derivatives(form).empty())


def depends_on(form: ufl.Form, coefficients: Sequence[ufl.Coefficient]) -> bool:
    """Whether a form contains any of the given coefficients once its derivatives are carried out."""
    present = extract_coefficients(expand_derivatives(form))
    return any(coefficient in present for coefficient in coefficients)


def compile_form(form: ufl.Form, entity_maps: Sequence[dolfinx.mesh.EntityMap] | None = None) -> dolfinx.fem.Form:
    """Compile a UFL form. Collective: yes (rank 0 compiles, the others load)."""
    return dolfinx.fem.form(form, entity_maps=entity_maps)


def assemble_matrix(
    form: dolfinx.fem.Form, bcs: Sequence[dolfinx.fem.DirichletBC] = (), diag: float = 1.0
) -> PETSc.Mat:
    """Assemble a bilinear form into a new AIJ matrix, rows and columns of ``bcs`` zeroed. Collective: yes."""
    matrix = fem_petsc.assemble_matrix(form, bcs=list(bcs), diag=diag)
    matrix.assemble()
    return matrix


def reassemble_matrix(
    matrix: PETSc.Mat, form: dolfinx.fem.Form, bcs: Sequence[dolfinx.fem.DirichletBC] = (), diag: float = 1.0
) -> None:
    """Assemble a bilinear form into an existing matrix of the same sparsity. Collective: yes."""
    matrix.zeroEntries()
    fem_petsc.assemble_matrix(matrix, form, bcs=list(bcs), diag=diag)  # type: ignore[misc,arg-type]
    matrix.assemble()


def assemble_vector(form: dolfinx.fem.Form) -> PETSc.Vec:
    """Assemble a linear form, contributions of ghosts added to their owners. Collective: yes."""
    vector = fem_petsc.assemble_vector(form)
    vector.ghostUpdate(addv=PETSc.InsertMode.ADD, mode=PETSc.ScatterMode.REVERSE)
    return vector


def assemble_scalar(form: dolfinx.fem.Form) -> float:
    """Assemble a functional over all ranks. Collective: yes."""
    return float(form.mesh.comm.allreduce(dolfinx.fem.assemble_scalar(form), op=MPI.SUM))


def owned_size(space: dolfinx.fem.FunctionSpace) -> int:
    """Return the number of degrees of freedom (block size included) that this rank owns."""
    return int(space.dofmap.index_map.size_local * space.dofmap.index_map_bs)


def owned_dirichlet_dofs(bcs: Sequence[dolfinx.fem.DirichletBC]) -> np.ndarray:
    """Return the sorted local indices of the owned degrees of freedom that Dirichlet conditions fix."""
    owned = [np.asarray(indices[:first_ghost]) for indices, first_ghost in (bc.dof_indices() for bc in bcs)]
    return np.unique(np.concatenate(owned)) if owned else np.empty(0, dtype=np.int32)


class BlockLayout:
    """How several distributed fields share one PETSc vector: each rank holds its part of every field in turn.

    This is the layout of `Mat.createNest`, so that nested matrices and plain vectors work together and every KSP type
    can be used, which PETSc's nested vectors do not allow.

    Parameters
    ----------
    comm
        Communicator.
    sizes
        Owned size of each field on this rank.
    """

    def __init__(self, comm: MPI.Comm, sizes: Sequence[int]) -> None:
        self.comm = comm
        self.sizes = tuple(sizes)
        self.offsets = tuple(int(offset) for offset in np.concatenate([[0], np.cumsum(sizes)]))
        total = comm.allreduce(self.offsets[-1])
        if total >= np.iinfo(PETSc.IntType).max:
            raise InputError(f"{total} unknowns exceed PETSc's {PETSc.IntType.__name__} indices: coarsen the mesh")
        self.global_size = int(total)

    def create_vector(self) -> PETSc.Vec:
        """Return a zero vector over all fields. Collective: yes."""
        vector = PETSc.Vec().createMPI((self.offsets[-1], self.global_size), comm=self.comm)
        vector.set(0.0)
        return vector

    def slice(self, field: int) -> slice:
        """Return the local range of one field."""
        return slice(self.offsets[field], self.offsets[field + 1])

    def read(self, vector: PETSc.Vec, field: int) -> np.ndarray:
        """Return this rank's values of one field, read only, shape (owned,)."""
        return np.asarray(vector.array_r[self.slice(field)])

    def write(self, vector: PETSc.Vec, field: int, values: np.ndarray) -> None:
        """Set this rank's values of one field from an array of shape (owned,)."""
        vector.array[self.slice(field)] = values


class SubVectors:
    """Work vectors, one per field, that receive and return the parts of a blocked vector."""

    def __init__(self, layout: BlockLayout, field: int) -> None:
        self._layout = layout
        self._field = field
        size = layout.sizes[field]
        self.vector = PETSc.Vec().createMPI((size, layout.comm.allreduce(size)), comm=layout.comm)

    def load(self, blocked: PETSc.Vec) -> PETSc.Vec:
        """Copy the field out of a blocked vector into the work vector."""
        self.vector.array[:] = blocked.array_r[self._layout.slice(self._field)]
        return self.vector

    def store(self, blocked: PETSc.Vec) -> None:
        """Copy the work vector into its place in a blocked vector."""
        blocked.array[self._layout.slice(self._field)] = self.vector.array_r


@contextmanager
def default_options(prefix: str, defaults: Mapping[str, object]) -> Iterator[None]:
    """Put defaults under a prefix into PETSc's options; what the user set there wins, and nothing is left behind.

    The block must contain the object's ``setFromOptions`` and ``setUp``: sub-solvers read their options late.
    """
    options = PETSc.Options()
    inserted = [name for name in defaults if not options.hasName(prefix + name)]
    for name in inserted:
        value = defaults[name]
        options[prefix + name] = "" if value is None else value
    try:
        yield
    finally:
        for name in inserted:
            options.delValue(prefix + name)


@contextmanager
def log_event(name: str) -> Iterator[None]:
    """Let ``-log_view`` list what is done in the block under a name. Collective: no."""
    event = PETSc.Log.Event(name)
    event.begin()
    try:
        yield
    finally:
        event.end()


def set_function(function: dolfinx.fem.Function, values: np.ndarray) -> None:
    """Set the owned values of a function, shape (owned,), and update its ghosts. Collective: yes."""
    function.x.array[: values.size] = values
    function.x.scatter_forward()


def owned_values(function: dolfinx.fem.Function) -> np.ndarray:
    """Return a view of the values of a function that this rank owns, shape (owned,)."""
    return np.asarray(function.x.array[: owned_size(function.function_space)])
