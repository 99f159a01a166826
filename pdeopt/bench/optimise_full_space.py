"""IPOPT on control problems in the space of states and controls, from the blocks that pdeopt assembles; serial.

The variables are the free degrees of freedom of the state and all controls; the constraints are the discrete state
equation there. First and second derivatives are exact and sparse, and IPOPT is told which of them are constant.
"""

from typing import TYPE_CHECKING

from petsc4py import PETSc

import numpy as np
import numpy.typing as npt

from pdeopt.bench.harness import Row
from pdeopt.bench.rivals import GRADIENT_TOLERANCE, require_package
from pdeopt.control import ControlProblem
from pdeopt.control.kkt import Blocks
from pdeopt.report import InputError

if TYPE_CHECKING:
    import scipy.sparse

Array = npt.NDArray[np.float64]


def ipopt_full_space(problem: ControlProblem, *, limit: float = 1e6, linear_solver: str = "mumps") -> Row:
    """Minimise from the problem's present point, and set its state, controls and adjoint.

    Parameters
    ----------
    problem
        Without bounds and extra constraints, on one rank.
    limit
        Seconds of wall time.
    linear_solver
        One of IPOPT's.

    Raises
    ------
    MissingPackageError
        If cyipopt or SciPy is not installed.
    InputError
        If there is more than one rank.

    Collective: one rank only.
    """
    cyipopt = require_package("cyipopt", "rivals")
    require_package("scipy.sparse", "rivals")
    if problem.comm.size > 1:
        raise InputError(f"this rival is serial and was started on {problem.comm.size} ranks: start it on one")
    program = _FullSpace(problem)
    start = program.start
    size, constraints = start.size, program.free.size
    solver = cyipopt.Problem(
        n=size, m=constraints, problem_obj=program, lb=np.full(size, -np.inf), ub=np.full(size, np.inf),
        cl=np.zeros(constraints), cu=np.zeros(constraints),
    )  # fmt: skip
    constant = "yes" if problem.system.linear_quadratic else "no"
    options: dict[str, object] = {
        # IPOPT measures entries of the gradient, which shrink with the mesh: a fixed tolerance would be met at once.
        "tol": GRADIENT_TOLERANCE * float(np.abs(program.gradient(start)).max()),
        "acceptable_iter": 0,
        "nlp_scaling_method": "none",
        "jac_c_constant": constant,
        "hessian_constant": constant,
        "linear_solver": linear_solver,
        "mumps_mem_percent": 100,  # of the default 1000, MUMPS allocates at 350,000 unknowns what no machine has
        "max_wall_time": limit,
        "print_level": 0,
        "sb": "yes",
        "max_iter": 500,
    }
    for name, value in options.items():
        solver.add_option(name, value)
    solution, info = solver.solve(start)
    program.move(solution, info["mult_g"])
    solver.close()
    program.release()
    return {"iterations": program.iterations, "status": int(info["status"])}


class _FullSpace:
    """A control problem in the calls that cyipopt makes."""

    def __init__(self, problem: ControlProblem) -> None:
        self._system = system = problem.system
        system.impose_dirichlet()
        self._layout = system.layout
        self.free = np.flatnonzero(~system.dirichlet_mask())
        self._point, self._residual = self._layout.create_vector(), self._layout.create_vector()
        self._controls = slice(self._layout.offsets[1], self._layout.offsets[system.adjoint_field])
        system.get_unknowns(self._point)
        self.start = np.concatenate([self._point.array_r[self.free], self._point.array_r[self._controls]])
        self.iterations = 0
        self._constant = system.linear_quadratic
        self._jacobian: Array | None = None
        self._hessian: Array | None = None

    def move(self, z: Array, multipliers: Array | None = None) -> None:
        """Set state, controls and adjoint; the latter to zero for None."""
        point = self._point
        point.array[self.free] = z[: self.free.size]
        point.array[self._controls] = z[self.free.size :]
        point.array[self._controls.stop :] = 0.0
        if multipliers is not None:
            point.array[self._controls.stop + self.free] = multipliers
        self._system.set_unknowns(point)

    def objective(self, z: Array) -> float:
        self.move(z)
        return self._system.objective()

    def gradient(self, z: Array) -> Array:
        self.move(z)
        self._system.residual(self._residual)
        values = self._residual.array_r
        return np.concatenate([values[self.free], values[self._controls]])

    def constraints(self, z: Array) -> Array:
        self.move(z)
        system = self._system
        system.assemble_derivative(system.adjoint_field, self._residual)
        return np.array(self._residual.array_r[self._controls.stop + self.free])

    def _blocks(self) -> Blocks:
        return self._system.assemble_blocks()

    def _assemble_jacobian(self) -> "scipy.sparse.coo_array":
        import scipy.sparse as sparse

        system = self._system
        state = system.assemble_state_operator()
        parts = [_scipy(state)[self.free][:, self.free]]
        state.destroy()
        for j in range(1, system.adjoint_field):
            block = system.assemble_block(system.adjoint_field, j)
            assert block is not None
            parts.append(_scipy(block)[self.free])
            block.destroy()
        return sparse.hstack(parts, format="coo")

    def _assemble_hessian(self) -> "scipy.sparse.coo_array":
        import scipy.sparse as sparse

        blocks = self._blocks()
        count = len(self._system.controls)
        table: list[list[object]] = [[None] * (count + 1) for _ in range(count + 1)]
        if blocks.state_state is not None:
            table[0][0] = _scipy(blocks.state_state)[self.free][:, self.free]
        else:
            table[0][0] = sparse.csr_array((self.free.size, self.free.size))
        for j, block in enumerate(blocks.state_control):
            if block is not None:
                table[j + 1][0] = _scipy(block)[self.free].T
        for i, row in enumerate(blocks.control_control):
            for j, block in enumerate(row):
                if block is not None:
                    table[j + 1][i + 1] = _scipy(block).T
        blocks.destroy()
        return sparse.tril(sparse.block_array(table, format="csr"), format="coo")

    def jacobianstructure(self) -> tuple[Array, Array]:
        matrix = self._assemble_jacobian()
        self._jacobian = matrix.data if self._constant else None
        return matrix.row, matrix.col

    def jacobian(self, z: Array) -> Array:
        if self._jacobian is not None:
            return self._jacobian
        self.move(z)
        return np.asarray(self._assemble_jacobian().data)

    def hessianstructure(self) -> tuple[Array, Array]:
        matrix = self._assemble_hessian()
        self._hessian = matrix.data if self._constant else None
        return matrix.row, matrix.col

    def hessian(self, z: Array, multipliers: Array, factor: float) -> Array:
        if self._hessian is not None:
            return np.asarray(factor * self._hessian)
        if factor == 0.0:
            return self._hessian_at(z, multipliers) - self._hessian_at(z, np.zeros_like(multipliers))
        return factor * self._hessian_at(z, multipliers / factor)

    def _hessian_at(self, z: Array, multipliers: Array) -> Array:
        self.move(z, multipliers)
        return np.asarray(self._assemble_hessian().data)

    def intermediate(self, mode: int, iteration: int, *numbers: float) -> bool:
        self.iterations = iteration
        return True

    def release(self) -> None:
        """Free the vectors."""
        self._point.destroy()
        self._residual.destroy()


def _scipy(matrix: PETSc.Mat) -> "scipy.sparse.csr_array":
    import scipy.sparse as sparse

    pointers, columns, values = matrix.getValuesCSR()
    return sparse.csr_array((values, columns, pointers), shape=matrix.getSize())
