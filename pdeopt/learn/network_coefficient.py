"""A torch network as a coefficient of a UFL form."""

from collections.abc import Iterable, Sequence
from typing import Any

import basix.ufl
import dolfinx
import numpy as np
import numpy.typing as npt
import ufl
from ufl.algorithms import expand_derivatives, extract_coefficients

from pdeopt.learn._torch import torch
from pdeopt.report import ConvergenceError, InputError

Array = npt.NDArray[np.float64]


class NetworkCoefficient(dolfinx.fem.Function):
    """k(x) = network(o_1(x), o_2(x), ...): a coefficient that a torch network computes from UFL expressions.

    It stands in a form like any other function, in integrals over cells whose quadrature degree is the one given here.
    Its values at the quadrature points, and its derivatives by the operands, come from torch; `PDELayer` uses them in
    Newton's method, in the adjoint equation, and for the gradient by the network's parameters. It has no ghosts of its
    own: each rank evaluates the network in all cells that it sees.

    Parameters
    ----------
    network
        A module that maps inputs of shape (points, n), n the number of components of all operands, to values of shape
        (points, m), m the number of components of the coefficient. Its parameters must be equal on all ranks.
    operands
        One expression or several: functions, their gradients, coordinates; scalars, vectors or tensors.
    quadrature_degree
        Degree of the quadrature rule, that of the measure where the coefficient stands, >= 1.
    mesh
        The mesh; needed only if no operand has a function in it.
    shape
        () for a scalar coefficient, (m,) or (m, p) for a vector or a tensor.
    name
        Name in output files and messages.

    Attributes
    ----------
    network, operands, quadrature_degree
        As given.

    Raises
    ------
    InputError
        If an argument does not fit.

    Collective: yes.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        operands: Any,
        quadrature_degree: int,
        *,
        mesh: dolfinx.mesh.Mesh | None = None,
        shape: tuple[int, ...] = (),
        name: str = "network coefficient",
    ) -> None:
        given = list(operands) if isinstance(operands, list | tuple) else [operands]
        self.network, self.quadrature_degree = network, quadrature_degree
        if quadrature_degree < 1:
            raise InputError(f"quadrature_degree is {quadrature_degree}: give the degree of the measure, at least 1")
        functions = [one for expr in given for one in extract_coefficients(ufl.as_ufl(expr))]
        if any(isinstance(one, NetworkCoefficient) for one in functions):
            raise InputError("an operand is a network coefficient itself: make one network of both")
        if mesh is None:
            meshes = [one.function_space.mesh for one in functions if isinstance(one, dolfinx.fem.Function)]
            if not meshes:
                raise InputError("no operand has a function in it: name the mesh of the coefficient, mesh=...")
            mesh = meshes[0]
        space = _quadrature_space(mesh, quadrature_degree, shape)
        super().__init__(space, name=name)
        self.operands = tuple(given)
        self._components = int(np.prod(shape, dtype=int)) if shape else 1
        flat = [scalar for expr in given for scalar in _scalars(expr)]
        self._inputs = len(flat)
        self.derivative = dolfinx.fem.Function(
            _quadrature_space(mesh, quadrature_degree, (self._components * len(flat),))
        )
        self._points = space.element.interpolation_points
        self._flat = flat
        self._expression: dolfinx.fem.Expression | None = None
        cells = mesh.topology.index_map(mesh.topology.dim)
        self._cells = np.arange(cells.size_local + cells.num_ghosts, dtype=np.int32)
        self._owned_cells = cells.size_local
        self._placeholder = dolfinx.fem.Function(space)

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """The network's parameters that are learned."""
        return [parameter for parameter in self.network.parameters() if parameter.requires_grad]

    def update(self, derivative: bool = False) -> None:
        """Evaluate the network at the quadrature points of this rank's cells, ghosts included.

        Parameters
        ----------
        derivative
            Whether the derivatives by the operands are wanted too.

        Raises
        ------
        ConvergenceError
            If the network returns NaN or infinity.

        Collective: no.
        """
        inputs = self._evaluate_operands()
        with torch.set_grad_enabled(derivative):
            tensor = inputs.requires_grad_(derivative)
            values = self._call(tensor)
            self._write(self, values.detach().numpy())
            if not derivative:
                return
            columns = []
            for component in range(self._components):
                if not values.requires_grad:  # a network that ignores its inputs
                    columns.append(torch.zeros_like(tensor))
                    continue
                (gradient,) = torch.autograd.grad(
                    values[:, component].sum(), tensor, retain_graph=component + 1 < self._components, allow_unused=True
                )
                columns.append(torch.zeros_like(tensor) if gradient is None else gradient)
        self._write(self.derivative, torch.cat(columns, dim=1).detach().numpy())

    def parameter_gradient(self, covector: Array) -> list[torch.Tensor]:
        """Return this rank's part of the gradient by the parameters, from the derivative by the values.

        Parameters
        ----------
        covector
            Derivative of something by the coefficient's values at quadrature points of owned cells, shape (owned,).

        Collective: no.
        """
        parameters = self.parameters
        if not parameters:
            return []
        inputs = self._evaluate_operands()
        count = self._owned_cells * len(self._points)
        dofs = self._dofs()[: self._owned_cells].ravel()
        weights = torch.from_numpy(np.ascontiguousarray(covector.reshape(-1, self._components)[dofs]))
        with torch.enable_grad():
            values = self._call(inputs[:count])
            if not values.requires_grad:
                return [torch.zeros_like(parameter) for parameter in parameters]
            gradients = torch.autograd.grad(values, parameters, weights, allow_unused=True)
        return [
            torch.zeros_like(parameter) if gradient is None else gradient
            for parameter, gradient in zip(parameters, gradients, strict=True)
        ]

    def direction(self, function: ufl.Coefficient, direction: Any) -> Any:
        """Return the change along a change of a function as a UFL expression, None if there is none. Collective: no."""
        changes = [expand_derivatives(ufl.derivative(scalar, function, direction)) for scalar in self._flat]
        moving = [(j, change) for j, change in enumerate(changes) if not isinstance(change, ufl.constantvalue.Zero)]
        if not moving:
            return None
        parts = [
            sum((self.derivative[i * self._inputs + j] * change for j, change in moving[1:]),
                self.derivative[i * self._inputs + moving[0][0]] * moving[0][1])
            for i in range(self._components)
        ]  # fmt: skip
        return (
            ufl.as_tensor(np.reshape(np.array(parts, dtype=object), self.ufl_shape).tolist())
            if self.ufl_shape
            else parts[0]
        )

    def replace_operands(self, mapping: dict[Any, Any]) -> None:
        """Let other functions stand for some of those in the operands. Collective: no."""
        self._flat = [ufl.replace(scalar, mapping) for scalar in self._flat]
        self._expression = None

    def _evaluate_operands(self) -> torch.Tensor:
        """Return the operands at all points, shape (cells * points, n), in the order of the cells."""
        mesh = self.function_space.mesh
        if self._expression is None:
            self._expression = dolfinx.fem.Expression(ufl.as_vector(self._flat), self._points, comm=mesh.comm)
        values = self._expression.eval(mesh, self._cells)
        return torch.from_numpy(np.ascontiguousarray(values.reshape(-1, self._inputs)))

    def _call(self, inputs: torch.Tensor) -> torch.Tensor:
        first = next(self.network.parameters(), None)
        like = inputs if first is None else inputs.to(dtype=first.dtype, device=first.device)
        values = self.network(like)
        expected = (inputs.shape[0], self._components)
        if tuple(values.shape) != expected:
            raise InputError(
                f"the network of {self.name!r} returned shape {tuple(values.shape)} for inputs of shape "
                f"{tuple(inputs.shape)}: it has to be {expected}"
            )
        values = values.to(dtype=torch.float64, device="cpu")
        if not bool(torch.isfinite(values).all()):
            raise ConvergenceError(
                f"the network of {self.name!r} returned NaN or infinity for inputs between "
                f"{inputs.min().item():.3g} and {inputs.max().item():.3g}: check its weights, or bound its output"
            )
        return values

    def _dofs(self) -> npt.NDArray[np.int32]:
        return np.asarray(self.function_space.dofmap.list)

    def _write(self, function: dolfinx.fem.Function, values: Array) -> None:
        block = function.function_space.dofmap.bs
        function.x.array.reshape(-1, block)[self._dofs().ravel()] = values


def network_coefficients(form: ufl.Form) -> list[NetworkCoefficient]:
    """Return the network coefficients of a form. Collective: no."""
    return [one for one in extract_coefficients(form) if isinstance(one, NetworkCoefficient)]


def total_derivative(
    form: ufl.Form, function: ufl.Coefficient, direction: Any, networks: Iterable[NetworkCoefficient]
) -> ufl.Form:
    """Return the derivative of a form by a function, also through the operands of network coefficients.

    Collective: no.
    """
    total = expand_derivatives(ufl.derivative(form, function, direction))
    for network in networks:
        change = network.direction(function, direction)
        if change is None:
            continue
        partial = expand_derivatives(ufl.derivative(form, network, network._placeholder))
        if not partial.empty():
            total += ufl.replace(partial, {network._placeholder: change})
    return total


def _quadrature_space(mesh: dolfinx.mesh.Mesh, degree: int, shape: Sequence[int]) -> dolfinx.fem.FunctionSpace:
    element = basix.ufl.quadrature_element(mesh.basix_cell(), value_shape=tuple(shape), degree=degree)
    return dolfinx.fem.functionspace(mesh, element)


def _scalars(expression: Any) -> list[Any]:
    """Return the components of an expression, row by row."""
    expression = ufl.as_ufl(expression)
    return [expression[index] if index else expression for index in np.ndindex(*expression.ufl_shape)]
