"""A nonlinear program in plain NumPy and SciPy: what collections of small test problems and published examples give."""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import scipy.sparse

Array = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True, eq=False)
class NonlinearProgram:
    """Minimise f(x) subject to l <= x <= b and L <= c(x) <= B, with exact first and second derivatives.

    The Lagrangian is f(x) + p'c(x). Numbers are dimensionless, and an equality reads c(x) = 0. The functions are pure,
    serial, and return infinite or not-a-number values where f or c is undefined, without a warning.

    Parameters
    ----------
    name
        As the problem's source calls it.
    start
        First guess of x, shape (n,).
    lower, upper
        l and b, shape (n,), infinite where there is none.
    constraint_lower, constraint_upper
        L and B, shape (m,): both zero for an equality, one infinite for a one-sided inequality.
    objective
        x -> f(x); zero for a system of equations.
    gradient
        x -> f'(x), shape (n,).
    constraints
        x -> c(x), shape (m,).
    jacobian
        x -> c'(x), sparse of shape (m, n), always with the same pattern.
    hessian
        (x, p) -> f''(x) + sum of p_i c_i''(x), sparse of shape (n, n), symmetric, always with the same pattern.
    start_multipliers
        First guess of p, shape (m,), where the source gives one.
    known_value
        f at the solution as the source prints it, None where it prints none for this size.
    has_objective
        Whether f is more than a constant.
    """

    name: str
    start: Array
    lower: Array
    upper: Array
    constraint_lower: Array
    constraint_upper: Array
    objective: Callable[[Array], float]
    gradient: Callable[[Array], Array]
    constraints: Callable[[Array], Array]
    jacobian: Callable[[Array], "scipy.sparse.csr_array"]
    hessian: Callable[[Array, Array], "scipy.sparse.csr_array"]
    start_multipliers: Array | None = None
    known_value: float | None = None
    has_objective: bool = True

    @property
    def size(self) -> int:
        """Number n of unknowns."""
        return self.start.size

    @property
    def constraint_count(self) -> int:
        """Number m of constraints, bounds not counted."""
        return self.constraint_lower.size

    @property
    def equalities(self) -> npt.NDArray[np.bool_]:
        """Which constraints are equalities, shape (m,)."""
        return self.constraint_lower == self.constraint_upper

    @property
    def has_bounds(self) -> bool:
        """Whether an unknown is bounded."""
        return bool(np.isfinite(self.lower).any() or np.isfinite(self.upper).any())

    @property
    def equalities_only(self) -> bool:
        """Whether there are equalities and nothing else: no inequality, no bound."""
        return self.constraint_count > 0 and bool(self.equalities.all()) and not self.has_bounds
