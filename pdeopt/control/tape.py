"""Objectives recorded by pyadjoint's tape, as functionals that pdeopt's optimisers and checks take."""

import contextlib
import gc
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from mpi4py import MPI
from petsc4py import PETSc

import dolfinx
import numpy as np
import ufl

from pdeopt import parallel
from pdeopt.control import checks
from pdeopt.control.controls import FieldControl, default_inner_product
from pdeopt.fem import forms
from pdeopt.fem._traversers import forget_traversers
from pdeopt.report import MissingPackageError, ProblemError

if TYPE_CHECKING:
    import pyadjoint

_INSTALL = (
    "run `python -m pip install pdeopt[adjoint]`, then `python -m pip install --no-deps -r requirements-nodeps.txt` "
    "in the sources of pdeopt"
)
# Sweeps over the tape between two collections of garbage. What a sweep leaves is cyclic and holds MPI communicators, of
# which there are about 2000: left to Python's own schedule, a few hundred sweeps on two ranks end in MPI_Abort.
_SWEEPS_BETWEEN_COLLECTIONS = 20


class TapedFunctional:
    """A pyadjoint ReducedFunctional over dolfinx-adjoint functions, as a `Functional`.

    So a model written with dolfinx-adjoint is optimised by `minimise` and tested by `taylor_test` and
    `check_symmetry` on any number of ranks. The coordinates are the owned degrees of freedom of the controls in turn.
    The tape is replayed only when the control has moved; data that the model reads must not change meanwhile.

    Parameters
    ----------
    reduced_functional
        Its controls are `dolfinx_adjoint.Function` or `dolfinx_adjoint.Constant`, its functional one number.
    bounds
        (lower, upper) for one control, or one such pair or None per control; each bound a number, a function of the
        control's space, or None.
    inner_product
        Bilinear form that measures a control, one per control; the L2 product over the cells and facets where the
        taped forms contain the control if None, or over all cells if none of them does.

    Attributes
    ----------
    comm
        Communicator of the first control's mesh.
    evaluations, derivatives, hessian_actions
        Replays of the tape, adjoint sweeps and Hessian sweeps so far.

    Raises
    ------
    MissingPackageError
        If pyadjoint or dolfinx-adjoint is not installed.
    ProblemError
        If the object, a control, a bound or an inner product is of the wrong kind or shape.

    Collective: yes.
    """

    def __init__(
        self,
        reduced_functional: "pyadjoint.ReducedFunctional",
        bounds: object = None,
        inner_product: ufl.Form | Sequence[ufl.Form | None] | None = None,
    ) -> None:
        _check_kinds(reduced_functional)
        self._functional = reduced_functional
        self._controls = list(reduced_functional.controls)
        self._fields = [FieldControl(control.control) for control in self._controls]
        functions = [field.function for field in self._fields]
        self.comm: MPI.Comm = functions[0].function_space.mesh.comm
        self.evaluations = self.derivatives = self.hessian_actions = 0
        self._directions = [control.control._ad_copy() for control in self._controls]
        self._bounds = checks.check_bounds(bounds, functions, self._fields, self.comm)
        self._products = _inner_products(inner_product, self._controls, reduced_functional.tape)
        self._layout = forms.BlockLayout(self.comm, [field.size for field in self._fields])
        self._callbacks = parallel.CallbackErrors(self.comm)
        self._control, self._covector = self.create_vector(), self.create_vector()
        self._value, self._sweeps = 0.0, 0
        # What the tape holds for the controls at `_control`; anything else there means that others have replayed it.
        self._replayed: list[object] | None = None
        self._adjoint_solved = False
        self._inner_product: PETSc.Mat | None = None

    # Coordinates -----------------------------------------------------------------------------------------------------

    def create_vector(self) -> PETSc.Vec:
        """Return a zero vector of control coordinates. Collective: yes."""
        return self._layout.create_vector()

    def get_control(self, out: PETSc.Vec) -> None:
        """Copy the control at which the tape stands into a vector. Collective: no."""
        for j, (control, field) in enumerate(zip(self._controls, self._fields, strict=True)):
            self._layout.write(out, j, control.tape_value().x.array[: field.size])

    def set_control(self, control: PETSc.Vec) -> None:
        """Replay the tape at a control, and write it into the user's control functions. Collective: yes."""
        self._replay(control)
        for j, field in enumerate(self._fields):
            field.set_coordinates(self._layout.read(control, j))

    def bounds(self) -> tuple[PETSc.Vec, PETSc.Vec] | None:
        """Return lower and upper bounds by coordinates, or None if all are infinite. Collective: yes."""
        finite = any(np.isfinite([*pair.lower, *pair.upper]).any() for pair in self._bounds)
        if not self.comm.allreduce(finite, op=MPI.LOR):
            return None
        lower, upper = self.create_vector(), self.create_vector()
        for j, pair in enumerate(self._bounds):
            self._layout.write(lower, j, pair.lower)
            self._layout.write(upper, j, pair.upper)
        return lower, upper

    def inner_product(self) -> PETSc.Mat:
        """Return the block diagonal matrix of the controls' inner products, owned by this object. Collective: yes.

        Where a control acts nowhere the diagonal is one.
        """
        if self._inner_product is None:
            matrices = [_assemble_product(form, field.function)
                        for form, field in zip(self._products, self._fields, strict=True)]  # fmt: skip
            self._inner_product = matrices[0]
            if len(matrices) > 1:
                table = [[m if i == j else None for j in range(len(matrices))] for i, m in enumerate(matrices)]
                nest = PETSc.Mat().createNest(table, comm=self.comm)
                self._inner_product = nest.convert("aij", PETSc.Mat())
                for matrix in (nest, *matrices):
                    matrix.destroy()
            self._inner_product.setOption(PETSc.Mat.Option.SPD, True)
        return self._inner_product

    # Values and derivatives ------------------------------------------------------------------------------------------

    def value(self, control: PETSc.Vec) -> float:
        """Return j(u); replays the tape unless it stands at this control. Collective: yes."""
        self._replay(control)
        return self._value

    def derivative(self, control: PETSc.Vec, out: PETSc.Vec) -> None:
        """Set the covector j'(u); one adjoint sweep over the tape. Collective: yes."""
        self._replay(control)
        if not self._adjoint_solved:
            self._read(self._run(self._functional.derivative), self._covector)
            self.derivatives += 1
            self._adjoint_solved = True
        self._covector.copy(out)

    def hessian_action(self, control: PETSc.Vec, direction: PETSc.Vec, out: PETSc.Vec) -> None:
        """Set the covector j''(u) d; a tangent and a second adjoint sweep over the tape. Collective: yes.

        Raises
        ------
        NotImplementedError
            From dolfinx-adjoint, where a step of the model has no second derivative there.
        """
        self.derivative(control, out)  # the sweeps of second order read the adjoints that this leaves on the tape
        self._write(direction, self._directions)
        with _ghosts_counted_once():
            self._read(self._run(lambda: self._functional.hessian(self._directions)), out)
        self.hessian_actions += 1

    def _write(self, vector: PETSc.Vec, functions: Sequence[dolfinx.fem.Function]) -> None:
        """Set functions from a vector of coordinates. Collective: yes."""
        for j, function in enumerate(functions):
            forms.set_function(function, self._layout.read(vector, j))

    def _read(self, result: object, out: PETSc.Vec) -> None:
        """Copy what pyadjoint returns, one function or a list of them, into a vector. Collective: no."""
        functions = result if isinstance(result, list | tuple) else [result]
        for j, (function, field) in enumerate(zip(functions, self._fields, strict=True)):
            self._layout.write(out, j, function.x.array[: field.size])

    def _run[Result](self, function: Callable[[], Result]) -> Result:
        """Call pyadjoint; an exception of a user's callback on one rank is raised on all. Collective: yes."""
        self._sweeps += 1
        if self._sweeps % _SWEEPS_BETWEEN_COLLECTIONS == 0:
            _collect_garbage()
        result: list[Result] = []
        with self._callbacks.guard():
            result.append(function())
        self._callbacks.raise_stored()
        return result[0]

    def _replay(self, control: PETSc.Vec) -> None:
        held = [item.block_variable.checkpoint for item in self._controls]
        untouched = self._replayed is not None and all(map(operator.is_, held, self._replayed))
        if untouched and control.equal(self._control):
            return
        self._replayed, self._adjoint_solved = None, False
        control.copy(self._control)
        values = [item.control._ad_copy() for item in self._controls]
        self._write(control, values)
        self._value = float(self._run(lambda: self._functional(values)))
        self.evaluations += 1
        self._replayed = [item.block_variable.checkpoint for item in self._controls]

    def destroy(self) -> None:
        """Free the PETSc objects; the tape stays. Collective: yes."""
        self._control.destroy()
        self._covector.destroy()
        if self._inner_product is not None:
            self._inner_product.destroy()


def _collect_garbage() -> None:
    """Free what past sweeps left, MPI communicators among it. Collective: no, but call it on all ranks alike."""
    forget_traversers()  # dolfinx-adjoint may have brought new ones
    gc.collect()


@contextlib.contextmanager
def _ghosts_counted_once() -> Iterator[None]:
    """Let the second-order sweep of dolfinx-adjoint 0.4 add several forms into one vector on several ranks.

    It does so without clearing the ghosts, which hold their owners' sums after the first form, so that these are added
    again with each further one: where the equation is not linear in a control, Hessian actions would be wrong on two
    ranks and right on one.
    """
    from dolfinx_adjoint.blocks import solvers

    original = solvers.assemble_compiled_form

    def assemble(form: dolfinx.fem.Form, tensor: dolfinx.la.Vector | None = None) -> dolfinx.la.Vector | float:
        if tensor is not None:
            tensor.array[tensor.index_map.size_local * tensor.block_size :] = 0.0
        return original(form, tensor)

    solvers.assemble_compiled_form = assemble
    try:
        yield
    finally:
        solvers.assemble_compiled_form = original


def _check_kinds(reduced_functional: object) -> None:
    """Check that this is a ReducedFunctional that a vector of coordinates can stand for."""
    try:
        import pyadjoint
    except ImportError as error:
        raise MissingPackageError(f"functionals of pyadjoint need {error.name}: {_INSTALL}") from error
    if not isinstance(reduced_functional, pyadjoint.ReducedFunctional):
        raise ProblemError(
            f"reduced_functional is a {type(reduced_functional).__name__}, not a pyadjoint.ReducedFunctional: "
            "make one from the taped objective and its controls"
        )
    try:
        import dolfinx_adjoint
    except ImportError as error:
        raise MissingPackageError(f"controls on finite elements need {error.name}: {_INSTALL}") from error
    if not isinstance(reduced_functional.functional, pyadjoint.AdjFloat):
        raise ProblemError(
            f"the taped functional is a {type(reduced_functional.functional).__name__}, not one number: "
            "assemble it with dolfinx_adjoint.assemble_scalar"
        )
    if reduced_functional.derivative_components:
        raise ProblemError("derivative_components leaves controls out of the derivative: list only the others instead")
    for index, control in enumerate(reduced_functional.controls):
        if not isinstance(control.control, dolfinx_adjoint.Function):
            raise ProblemError(
                f"control {index} is a {type(control.control).__name__}: make it a dolfinx_adjoint.Function or a "
                "dolfinx_adjoint.Constant"
            )


def _inner_products(given: object, controls: Sequence["pyadjoint.Control"], tape: "pyadjoint.Tape") -> list[ufl.Form]:
    """Return one bilinear form per control."""
    entries: list[object] = list(given) if isinstance(given, list | tuple) else [given] * len(controls)
    if len(entries) != len(controls) or not all(isinstance(entry, ufl.Form | None) for entry in entries):
        raise ProblemError(
            f"inner_product has {len(entries)} entries for {len(controls)} controls, or entries that are no forms: "
            "give one bilinear form (or None) per control"
        )
    products = []
    for index, (entry, control) in enumerate(zip(entries, controls, strict=True)):
        product = entry if isinstance(entry, ufl.Form) else _default_product(control, tape)
        if len(product.arguments()) != 2:
            raise ProblemError(
                f"inner_product {index} has {len(product.arguments())} arguments: give a bilinear form of the space of "
                f"control {index}"
            )
        products.append(product)
    return products


def _default_product(control: "pyadjoint.Control", tape: "pyadjoint.Tape") -> ufl.Form:
    """Return the L2 product where the forms on the tape contain the control, or over all cells if none does."""
    function = control.control
    found: list[ufl.Form] = []
    for block in tape.get_blocks():
        if not any(dependency is control.block_variable for dependency in block.get_dependencies()):
            continue
        # Objectives have `form`, solves of equations `_lhs` and `_rhs`; a Dirichlet value stands in no form.
        pending = [getattr(block, name, None) for name in ("form", "_lhs", "_rhs")]
        while pending:
            item = pending.pop()
            if isinstance(item, list | tuple):
                pending.extend(item)
            elif isinstance(item, ufl.Form):
                found.append(item)
    product = default_inner_product(sum(found, ufl.Form([])), function)
    if not product.empty():
        return product
    trial, test = ufl.TrialFunction(function.function_space), ufl.TestFunction(function.function_space)
    return ufl.inner(trial, test) * ufl.dx(function.function_space.mesh)


def _assemble_product(form: ufl.Form, function: dolfinx.fem.Function) -> PETSc.Mat:
    """Assemble an inner product; ones on the diagonal where it vanishes. Collective: yes."""
    space = function.function_space
    zero = dolfinx.fem.Constant(space.mesh, 0.0)
    pattern = zero * ufl.inner(ufl.TrialFunction(space), ufl.TestFunction(space)) * ufl.dx(space.mesh)
    matrix = forms.assemble_matrix(forms.compile_form(form + pattern))
    diagonal = matrix.getDiagonal()
    diagonal.array[diagonal.array_r <= 0.0] = 1.0
    matrix.setDiagonal(diagonal)
    return matrix
