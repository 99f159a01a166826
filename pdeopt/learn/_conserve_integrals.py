"""Projections onto given integrals: linear functionals of a field, and its mass together with its energy."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mpi4py import MPI
from petsc4py import PETSc

import dolfinx
import numpy as np
import ufl
from dolfinx import fem

from pdeopt.fem.forms import assemble_matrix, assemble_scalar, default_options, owned_size, set_function
from pdeopt.learn._conserve_input import check_values
from pdeopt.report import KSP_ADVICE, ConvergenceError, InputError

if TYPE_CHECKING:
    from pdeopt.learn._torch import torch

_OPTIONS: dict[str, object] = {"ksp_type": "cg", "ksp_rtol": 1e-14, "ksp_max_it": 2000, "pc_type": "jacobi"}


class _FieldProjection:
    """What projections of a field share: their faces for functions and for torch.

    Parameters
    ----------
    space
        Space of the fields.
    """

    def __init__(self, space: fem.FunctionSpace) -> None:
        self.space = space
        self.comm = space.mesh.comm
        self._owned = owned_size(space)

    def project(self, u_hat: fem.Function, out: fem.Function | None = None) -> fem.Function:
        """Return the nearest field that satisfies the constraints.

        Parameters
        ----------
        u_hat
            Function of the space.
        out
            Where to put the result; may be ``u_hat`` itself. None makes a new function.

        Raises
        ------
        InputError
            If a value is NaN or Inf.

        Collective: yes.
        """
        check_values(self.comm, "u_hat", u_hat.x.array[: self._owned], self._owned)
        values = self._on_array(u_hat.x.array[: self._owned])
        result = fem.Function(self.space) if out is None else out
        set_function(result, values)
        return result

    def __call__(self, u_hat: "torch.Tensor") -> "torch.Tensor":
        """Project owned values, shape (owned,) or (batch, owned), in double precision. Collective: yes."""
        from pdeopt.learn._torch import torch

        for one in u_hat.detach().reshape(-1, u_hat.shape[-1]):
            check_values(self.comm, "u_hat", one.cpu().numpy(), self._owned)
        return self._on_tensor(u_hat.to(torch.float64))

    def layer(self) -> "torch.nn.Module":
        """Return the projection as a torch module, to stand behind a network. It has no parameters."""
        from pdeopt.learn._conserve_layer import ProjectionLayer

        return ProjectionLayer(self)

    def _on_array(self, values: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def _on_tensor(self, values: "torch.Tensor") -> "torch.Tensor":
        raise NotImplementedError


class LinearConstraints(_FieldProjection):
    r"""The nearest field with given values of linear functionals: mass, moments, means.

    .. math::

        u = \hat u - M^{-1} C^T (C M^{-1} C^T)^{-1} (C \hat u - b)

    Parameters
    ----------
    space
        Space of the fields.
    functionals
        Linear forms in one test function of the space, such as ``v * ufl.dx`` for the mass.
    values
        Their values b, one a form.
    inner_product
        Symmetric positive definite bilinear form in whose norm the field is the nearest; None is that of L2.
    petsc_options
        Options of the KSP that solves with M, once a functional, without prefix.

    Raises
    ------
    InputError
        If the functionals depend on each other, or their number differs from that of the values.
    ConvergenceError
        If M is not solved with.

    Collective: yes, as are all methods.
    """

    def __init__(
        self,
        space: fem.FunctionSpace,
        functionals: Sequence[ufl.Form],
        values: Sequence[float],
        *,
        inner_product: ufl.Form | None = None,
        petsc_options: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(space)
        if not functionals or len(functionals) != len(values):
            raise InputError(f"{len(functionals)} functionals and {len(values)} values: give one value a functional")
        self.values = np.array(values, dtype=np.float64)
        if inner_product is None:
            inner_product = ufl.inner(ufl.TrialFunction(space), ufl.TestFunction(space)) * ufl.dx
        self._rows = np.array([_owned_vector(form, self._owned) for form in functionals])
        self._columns = self._solve_with(fem.form(inner_product), dict(petsc_options or {}))
        gram = self._sum(self._rows @ self._columns.T)
        scale = np.sqrt(np.abs(np.diagonal(gram)))
        scaled = gram / np.outer(scale, scale) if np.all(scale > 0.0) else np.zeros_like(gram)
        if np.linalg.cond(scaled) > 1e12:
            raise InputError(
                f"the {len(values)} functionals depend on each other (the condition number of their Gram matrix is "
                f"{np.linalg.cond(scaled):.2g}): leave out those that follow from the others"
            )
        self._inverse_gram = np.linalg.inv(scaled) / np.outer(scale, scale)

    def evaluate(self, u: fem.Function) -> np.ndarray:
        """Return the values of the functionals, shape (functionals,). Collective: yes."""
        return self._sum(self._rows @ u.x.array[: self._owned])

    def _sum(self, local: np.ndarray) -> np.ndarray:
        total = np.empty_like(local)
        self.comm.Allreduce(np.ascontiguousarray(local), total)
        return total

    def _solve_with(self, form: fem.Form, overrides: dict[str, object]) -> np.ndarray:
        """Return M^{-1} C^T, shape (functionals, owned)."""
        matrix = assemble_matrix(form)
        matrix.setOption(PETSc.Mat.Option.SPD, True)
        ksp = PETSc.KSP().create(self.comm)
        prefix = "pdeopt_constraints_"
        ksp.setOptionsPrefix(prefix)
        ksp.setOperators(matrix)
        result = np.empty_like(self._rows)
        x, b = matrix.createVecs()
        with default_options(prefix, _OPTIONS | overrides):
            ksp.setFromOptions()
            for row, column in zip(self._rows, result, strict=True):
                b.array[:] = row
                ksp.solve(b, x)
                column[:] = x.array_r
                reason = ksp.getConvergedReason()
                if reason <= 0:
                    break
        for thing in (ksp, matrix, x, b):
            thing.destroy()
        if reason <= 0:
            raise ConvergenceError(
                f"the inner product was not solved with (reason {reason}): {KSP_ADVICE.get(reason, 'is it definite?')}"
            )
        return result

    def _on_array(self, values: np.ndarray) -> np.ndarray:
        for _ in range(2):  # the second time for what rounding left
            missing = self.values - self._sum(self._rows @ values)
            values = values + (self._inverse_gram @ missing) @ self._columns
        return values

    def _on_tensor(self, values: "torch.Tensor") -> "torch.Tensor":
        from pdeopt.learn._conserve_torch import sum_of_parts
        from pdeopt.learn._torch import torch

        rows, columns, inverse, wanted = (
            torch.from_numpy(array).to(values.device)
            for array in (self._rows, self._columns, self._inverse_gram, self.values)
        )
        for _ in range(2):
            missing = wanted - sum_of_parts(values @ rows.T, self.comm)
            values = values + (missing @ inverse.T) @ columns
        return values


class MassAndEnergy(_FieldProjection):
    r"""The nearest field, in L2, with a given integral and a given integral of half its square.

    With m the mean that belongs to the mass, the fluctuation of the field about its own mean is scaled:

    .. math::

        u = m + \alpha (\hat u - \bar u), \qquad
        \alpha = \sqrt{\frac{2 E - m^2 |\Omega|}{\int_\Omega (\hat u - \bar u)^2 \, dx}}

    Parameters
    ----------
    space
        Scalar space that contains the constants.
    mass
        Integral of the field.
    energy
        Integral of half its square; at least mass^2 / (2 |domain|), which a constant field has.

    Raises
    ------
    InputError
        If no field has this mass and energy, the space has no constants, or the field to be projected is constant and
        the energy is not, so that there is no nearest one.

    Collective: yes, as are all methods.
    """

    def __init__(self, space: fem.FunctionSpace, *, mass: float, energy: float) -> None:
        super().__init__(space)
        if space.value_size != 1:
            raise InputError(f"fields have {space.value_size} components: mass and energy are those of a scalar field")
        self.mass = float(mass)
        self.energy = float(energy)
        matrix = assemble_matrix(fem.form(ufl.TrialFunction(space) * ufl.TestFunction(space) * ufl.dx))
        self._matrix = matrix
        self._x, self._b = matrix.createVecs()
        one = fem.Function(space)
        one.interpolate(lambda x: np.ones(x.shape[1]))
        self._one = one.x.array[: self._owned].copy()
        self._row = _owned_vector(ufl.TestFunction(space) * ufl.dx, self._owned)
        self.measure = assemble_scalar(fem.form(fem.Constant(space.mesh, 1.0) * ufl.dx))
        if abs(self._sum(float(self._row @ self._one)) - self.measure) > 1e-10 * self.measure:
            raise InputError("the space does not contain the constants, so it has no field of a given mean")
        least = self.mass**2 / (2.0 * self.measure)
        # The constant field itself may be asked for, with an energy that was computed.
        self._fluctuation = 2.0 * (self.energy - least)
        if abs(self._fluctuation) <= 1e-14 * least:
            self._fluctuation = 0.0
        if not (np.isfinite(self.mass) and np.isfinite(self.energy) and self._fluctuation >= 0.0):
            raise InputError(
                f"no field has mass {self.mass:.8g} and energy {self.energy:.8g}: the least energy is that of the "
                f"constant field, mass^2 / (2 |domain|) = {least:.8g}"
            )

    def destroy(self) -> None:
        """Free PETSc's objects. Collective: yes."""
        for thing in (self._matrix, self._x, self._b):
            thing.destroy()

    def evaluate(self, u: fem.Function) -> tuple[float, float]:
        """Return mass and energy of a field. Collective: yes."""
        values = u.x.array[: self._owned]
        return self._sum(self._row @ values), 0.5 * self._sum(values @ self._multiply(values))

    def _sum(self, local: float) -> float:
        return float(self.comm.allreduce(float(local), op=MPI.SUM))

    def _multiply(self, values: np.ndarray) -> np.ndarray:
        self._x.array[:] = values
        self._matrix.mult(self._x, self._b)
        return np.array(self._b.array_r)

    def _check_fluctuation(self, smallest: float, scale: float) -> None:
        if self._fluctuation > 0.0 and not smallest > 1e-28 * scale:
            raise InputError(
                f"the field to be projected is constant, but energy {self.energy:.8g} is more than a constant field "
                "has: every fluctuation is as near as any other"
            )

    def _on_array(self, values: np.ndarray) -> np.ndarray:
        for _ in range(2):  # the second time for what rounding left
            rough = values - self._one * (self._sum(self._row @ values) / self.measure)
            variance = self._sum(float(rough @ self._multiply(rough)))
            self._check_fluctuation(variance, self._sum(values @ self._multiply(values)))
            factor = np.sqrt(self._fluctuation / variance) if variance > 0.0 else 0.0
            values = self._one * (self.mass / self.measure) + factor * rough
            if factor == 0.0:
                break
        return values

    def _on_tensor(self, values: "torch.Tensor") -> "torch.Tensor":
        from pdeopt.learn._conserve_torch import sum_of_parts, symmetric_map
        from pdeopt.learn._torch import torch

        row, one = (torch.from_numpy(array).to(values.device) for array in (self._row, self._one))
        for _ in range(2):
            mean = sum_of_parts((values * row).sum(-1, keepdim=True), self.comm) / self.measure
            rough = values - one * mean
            parts = (rough * symmetric_map(rough, self._multiply)).sum(-1, keepdim=True)
            variance = sum_of_parts(parts, self.comm)
            smallest = float(variance.detach().min())
            self._check_fluctuation(smallest, smallest + float((mean.detach() ** 2).max()) * self.measure)
            if self._fluctuation == 0.0:
                return one * (self.mass / self.measure) + 0.0 * rough
            values = one * (self.mass / self.measure) + torch.sqrt(self._fluctuation / variance) * rough
        return values


def _owned_vector(form: ufl.Form, owned: int) -> np.ndarray:
    """Assemble a linear form into the owned entries, shape (owned,). Collective: yes."""
    vector = fem.assemble_vector(fem.form(form))
    vector.scatter_reverse(dolfinx.la.InsertMode.add)
    return vector.array[:owned].copy()
