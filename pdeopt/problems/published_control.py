"""The Poisson control example with which AdaSketch-Newton was published.

References
----------
I. Hong, S. Na, M. W. Mahoney and M. Kolar, Constrained optimization via exact augmented Lagrangian and randomized
iterative sketching, ICML 2023, PMLR 202:13174-13198; the data are those of the authors' program.
"""

import numpy as np
import numpy.typing as npt

from pdeopt.problems.linear import check_range
from pdeopt.problems.nonlinear_program import NonlinearProgram

Array = npt.NDArray[np.float64]

_WEIGHT = 0.1
"""Of half the square of the control, in the Euclidean norm of the nodal values: no mesh size enters."""
_STEP = 0.1 / 15.0**0.5
"""From node to node in the arguments of the target, whatever the mesh."""


class PublishedPoissonControl:
    """Minimise |y - d|^2/2 + 0.1 |u|^2/2 subject to L y + u = 0, norms and unknowns those of nodal values.

    L is the five-point Laplacian (negative definite) on the interior nodes of the square (-1, 1)^2 with mesh size
    2/(cells + 1) and y = 0 on the boundary. The target is d_ij = sin(4 + s (i - k)) + cos(3 + s (j - k)) with
    i, j = 1, ..., cells, k = (cells + 1)/2 and s = 0.1/sqrt(15). Unknowns are x = (y, u), node (i, j) at place
    i - 1 + cells (j - 1); x = 1 and p = 1 at the start.

    Parameters
    ----------
    cells
        Interior nodes a side, >= 1; 3 in the publication: 18 unknowns and 9 multipliers.

    Raises
    ------
    InputError
        If there is no interior node.
    """

    def __init__(self, cells: int = 3) -> None:
        import scipy.sparse as sparse

        check_range("cells", cells, 0)
        self.cells = cells
        nodes = cells**2
        width = 2.0 / (cells + 1)
        line = sparse.diags_array([1.0, -2.0, 1.0], offsets=[-1, 0, 1], shape=(cells, cells)) / width**2
        unit = sparse.eye_array(cells)
        laplacian = sparse.kron(unit, line) + sparse.kron(line, unit)
        self.jacobian = sparse.csr_array(sparse.hstack([laplacian, sparse.eye_array(nodes)]))
        """c'(x), constant, of shape (cells^2, 2 cells^2)."""
        self.hessian = sparse.csr_array(sparse.diags_array(np.repeat([1.0, _WEIGHT], nodes)))
        """f''(x), constant and diagonal."""
        shifts = _STEP * (np.arange(1, cells + 1) - 0.5 * (cells + 1))
        self.target: Array = (np.cos(3.0 + shifts)[:, None] + np.sin(4.0 + shifts)[None, :]).reshape(-1)
        """d, shape (cells^2,)."""

    def objective(self, x: Array) -> float:
        """Return f(x). Collective: no."""
        state, control = np.split(x, 2)
        return float(0.5 * (state - self.target) @ (state - self.target) + 0.5 * _WEIGHT * control @ control)

    def gradient(self, x: Array) -> Array:
        """Return f'(x). Collective: no."""
        state, control = np.split(x, 2)
        return np.concatenate([state - self.target, _WEIGHT * control])

    def program(self) -> NonlinearProgram:
        """Return the example as a nonlinear program; its known value is that of the exact solution. Collective: no."""
        nodes = self.cells**2
        unbounded = np.full(2 * nodes, np.inf)
        return NonlinearProgram(
            name=f"published Poisson control, {self.cells} x {self.cells} nodes",
            start=np.ones(2 * nodes),
            lower=-unbounded,
            upper=unbounded,
            constraint_lower=np.zeros(nodes),
            constraint_upper=np.zeros(nodes),
            objective=self.objective,
            gradient=self.gradient,
            constraints=lambda x: np.asarray(self.jacobian @ x),
            jacobian=lambda x: self.jacobian,
            hessian=lambda x, multipliers: self.hessian,
            start_multipliers=np.ones(nodes),
            known_value=self.objective(self.solution()[: 2 * nodes]),
        )

    def solution(self) -> Array:
        """Return (y, u, p) of the optimality system, which is linear. Collective: no."""
        import scipy.sparse as sparse
        import scipy.sparse.linalg

        matrix = sparse.block_array([[self.hessian, self.jacobian.T], [self.jacobian, None]], format="csc")
        right = np.concatenate([self.target, np.zeros(2 * self.cells**2)])
        return np.asarray(scipy.sparse.linalg.spsolve(matrix, right))
