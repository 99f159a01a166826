"""Values and derivatives of S2MPJ's group partially separable functions, assembled sparse.

A group is g(a'x - b + sum of w_i e_i(x_i)) / s: g the group's function (the identity, where it has none), e_i nonlinear
elements of a few variables each. The collection's own evaluation sums dense rows and sparse matrices of the full size
group by group; here the patterns are found once, and only values are computed afterwards.
"""

import contextlib
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import scipy.sparse

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]


_UNDEFINED = (OverflowError, ZeroDivisionError, ValueError)
"""What Python's floats raise where NumPy's give Inf or NaN."""


class _Element:
    """One weighted element of a group."""

    def __init__(self, problem: Any, index: int, weight: float) -> None:
        self._function = getattr(problem, problem.elftype[index])
        self._problem, self._index, self.weight = problem, index, weight
        self.variables = np.array([int(variable) for variable in problem.elvar[index]], dtype=np.intp)

    def __call__(self, level: int, x: Array) -> tuple[float, Array, Array]:
        """Return the weighted value, gradient and Hessian up to the level: 1, 2 or 3 of them."""
        size = self.variables.size
        try:
            result = self._function(self._problem, level, x[self.variables].reshape(-1, 1), self._index)
        except _UNDEFINED:
            return math.nan, np.full(size, math.nan), np.full((size, size), math.nan)
        parts: Sequence[Any] = result if level > 1 else (result,)
        value = self.weight * _scalar(parts[0])
        gradient = self.weight * np.asarray(parts[1], dtype=float).reshape(-1) if level > 1 else np.empty(0)
        hessian = self.weight * np.asarray(parts[2], dtype=float) if level > 2 else np.empty((0, 0))
        return value, gradient, hessian


class _Group:
    """One group, with the columns that it touches and the entries of its Hessian."""

    def __init__(self, problem: Any, group: int) -> None:
        self._problem, self._group = problem, group
        scale = _entry(problem, "gscale", group)
        self._scale = float(scale) if scale is not None and abs(float(scale)) > 1e-15 else 1.0
        constant = _entry(problem, "gconst", group)
        self._constant = 0.0 if constant is None else _scalar(constant)
        name = _entry(problem, "grftype", group)
        self._function = None if name in (None, "TRIVIAL") else getattr(problem, name)
        numbers = _entry(problem, "grelt", group)
        weights = _entry(problem, "grelw", group)
        self._elements = [
            _Element(problem, int(number), 1.0 if weights is None else _scalar(weights[place]))
            for place, number in enumerate(() if numbers is None else numbers)
        ]
        linear = problem.A[[group]].tocoo() if hasattr(problem, "A") and group < problem.A.shape[0] else None
        own = [element.variables for element in self._elements]
        touched = own + ([] if linear is None else [linear.col.astype(np.intp)])
        self.columns = np.unique(np.concatenate(touched)) if touched else np.empty(0, np.intp)
        self._linear = np.zeros(self.columns.size)
        if linear is not None:
            np.add.at(self._linear, np.searchsorted(self.columns, linear.col), linear.data)
        self._places = [np.searchsorted(self.columns, variables) for variables in own]
        pairs = [(np.repeat(part, part.size), np.tile(part, part.size)) for part in own]
        if self._function is not None:
            pairs.append((np.repeat(self.columns, self.columns.size), np.tile(self.columns, self.columns.size)))
        self.hessian_rows = np.concatenate([pair[0] for pair in pairs]) if pairs else np.empty(0, np.intp)
        self.hessian_columns = np.concatenate([pair[1] for pair in pairs]) if pairs else np.empty(0, np.intp)

    def value(self, x: Array) -> float:
        inner = float(self._linear @ x[self.columns]) - self._constant
        for element in self._elements:
            inner += element(1, x)[0]
        return self._outer(1, inner)[0] / self._scale

    def gradient(self, x: Array) -> tuple[float, Array]:
        inner, gradient, _ = self._inner(2, x)
        value, slope, _ = self._outer(2, inner)
        return value / self._scale, (slope / self._scale) * gradient

    def hessian(self, x: Array) -> Array:
        """Return the values of the entries at ``hessian_rows`` and ``hessian_columns``."""
        inner, gradient, hessians = self._inner(3, x)
        _, slope, curvature = self._outer(3, inner)
        values = [(slope / self._scale) * hessian.reshape(-1) for hessian in hessians]
        if self._function is not None:
            values.append((curvature / self._scale) * np.outer(gradient, gradient).reshape(-1))
        return np.concatenate(values) if values else np.empty(0)

    def _inner(self, level: int, x: Array) -> tuple[float, Array, list[Array]]:
        value = float(self._linear @ x[self.columns]) - self._constant
        gradient, hessians = self._linear.copy(), []
        for element, places in zip(self._elements, self._places, strict=True):
            part, slope, hessian = element(level, x)
            value += part
            np.add.at(gradient, places, slope)
            hessians.append(hessian)
        return value, gradient, hessians

    def _outer(self, level: int, inner: float) -> tuple[float, float, float]:
        if self._function is None:
            return inner, 1.0, 0.0
        try:
            # NumPy's number, not Python's: it overflows to Inf.
            result = self._function(self._problem, level, np.float64(inner), self._group)
        except _UNDEFINED:
            return math.nan, math.nan, math.nan
        parts = [_scalar(part) for part in (result if level > 1 else (result,))] + [0.0, 0.0]
        return parts[0], parts[1], parts[2]


class Groups:
    """Objective and constraints of one problem of the collection."""

    def __init__(self, problem: Any) -> None:
        for name in ("e_globs", "g_globs"):  # constants that elements and groups share
            if hasattr(problem, name):
                with contextlib.suppress(NameError):  # the translator's slip: it ends in `return pbm`, an unknown name
                    getattr(problem, name)(problem)
        self.size = int(problem.n)
        self._objective = [_Group(problem, int(group)) for group in getattr(problem, "objgrps", ())]
        self._constraints = [_Group(problem, int(group)) for group in getattr(problem, "congrps", ())]
        self._quadratic = problem.H.tocoo() if hasattr(problem, "H") else None
        self.has_objective = bool(self._objective) or self._quadratic is not None
        counts = [group.columns.size for group in self._constraints]
        self._jacobian_rows = np.repeat(np.arange(len(counts)), counts)
        self._jacobian_columns = _join([group.columns for group in self._constraints])
        every = self._objective + self._constraints
        self._hessian_rows = _join([group.hessian_rows for group in every])
        self._hessian_columns = _join([group.hessian_columns for group in every])

    def objective(self, x: Array) -> float:
        with np.errstate(all="ignore"):
            value = sum(group.value(x) for group in self._objective)
            if self._quadratic is not None:
                value += 0.5 * float(x @ (self._quadratic @ x))
        return float(value)

    def gradient(self, x: Array) -> Array:
        out = np.zeros(self.size)
        with np.errstate(all="ignore"):
            for group in self._objective:
                out[group.columns] += group.gradient(x)[1]
            if self._quadratic is not None:
                out += self._quadratic @ x
        return out

    def constraints(self, x: Array) -> Array:
        with np.errstate(all="ignore"):
            return np.array([group.value(x) for group in self._constraints], dtype=float)

    def jacobian(self, x: Array) -> "scipy.sparse.csr_array":
        import scipy.sparse as sparse

        with np.errstate(all="ignore"):
            values = _join([group.gradient(x)[1] for group in self._constraints], float)
        entries = (values, (self._jacobian_rows, self._jacobian_columns))
        return sparse.csr_array(entries, shape=(len(self._constraints), self.size))

    def hessian(self, x: Array, multipliers: Array) -> "scipy.sparse.csr_array":
        import scipy.sparse as sparse

        with np.errstate(all="ignore"):
            values = [group.hessian(x) for group in self._objective]
            values += [p * group.hessian(x) for p, group in zip(multipliers, self._constraints, strict=True)]
        rows, columns = self._hessian_rows, self._hessian_columns
        if self._quadratic is not None:
            rows = np.concatenate([rows, self._quadratic.row])
            columns = np.concatenate([columns, self._quadratic.col])
            values.append(self._quadratic.data)
        return sparse.csr_array((_join(values, float), (rows, columns)), shape=(self.size, self.size))


def _join(parts: Sequence[npt.NDArray[Any]], dtype: Any = np.intp) -> npt.NDArray[Any]:
    return np.concatenate(parts) if len(parts) else np.empty(0, dtype)


def _entry(problem: Any, name: str, index: int) -> Any:
    """Return an entry of a list that may be missing or too short, None then."""
    values = getattr(problem, name, None)
    return values[index] if values is not None and index < len(values) else None


def _scalar(value: Any) -> float:
    """Return the number in what may be an array of one entry; NaN for a root of a negative number."""
    number = np.asarray(value).reshape(-1)[0]
    return math.nan if isinstance(number, complex) else float(number)
