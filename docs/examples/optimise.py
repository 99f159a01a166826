"""The examples of the page on the optimiser: a control problem, a TAO, NumPy functions, problems without an answer."""

import types

from mpi4py import MPI
from petsc4py import PETSc

import dolfinx
import numpy as np
import scipy.sparse

import pdeopt
from pdeopt.optimise import minimise
from pdeopt.parallel import print_root
from pdeopt.problems import NonlinearProgram, SemilinearControl

comm = MPI.COMM_WORLD

# [control]
case = SemilinearControl(dolfinx.mesh.create_unit_square(comm, 32, 32))
report = minimise(case.problem)  # state, control and adjoint are set
print_root(comm, f"control problem\n{report}\n")
# [end]


# [tao]
def vector(size):
    """Return a vector whose entries lie on rank 0: this example is too small to share."""
    return PETSc.Vec().createMPI((size if comm.rank == 0 else 0, size), comm=comm)


def fill(tao, target, rows):
    """Set a matrix from rows of numbers."""
    target.zeroEntries()
    if comm.rank == 0:
        for i, row in enumerate(rows):
            target.setValues([i], range(len(row)), row)
    target.assemble()


def matrix(rows, columns):
    """Return a dense matrix, stored by rank 0."""
    own = (rows, columns) if comm.rank == 0 else (0, 0)
    return PETSc.Mat().createAIJ(((own[0], rows), (own[1], columns)), nnz=columns, comm=comm)


def everywhere(x):
    """Return all entries on all ranks."""
    return np.concatenate(comm.allgather(x.array_r.copy()))


def objective(tao, x, gradient):
    """Return (x0 - 1)^2 + (x1 - 2)^2 + x2^2, and set its gradient."""
    difference = everywhere(x) - [1.0, 2.0, 0.0]
    gradient.array[:] = 2.0 * difference[: gradient.getLocalSize()]
    return float(difference @ difference)


def constraints(tao, x, out):
    """Set x0^2 + x1^2 + x2^2 - 1."""
    out.array[:] = (everywhere(x) @ everywhere(x) - 1.0) * np.ones(out.getLocalSize())


def jacobian(tao, x, J, P):
    """Set its derivative."""
    fill(tao, J, [2.0 * everywhere(x)])


def hessian(tao, x, H, P):
    """Set the second derivative of objective + p * constraint."""
    p = everywhere(tao.getPythonContext().multipliers)[0]
    fill(tao, H, (2.0 + 2.0 * p) * np.eye(3))


tao = PETSc.TAO().create(comm)
tao.setType("python")
tao.setPythonType("pdeopt.AdaSketchNewton")  # or -tao_type python -tao_python_type pdeopt.AdaSketchNewton
x = vector(3)
x.set(1.0)
tao.setObjectiveGradient(objective, None)
tao.setHessian(hessian, matrix(3, 3))
tao.setEqualityConstraints(constraints, vector(1))
tao.setJacobianEquality(jacobian, matrix(1, 3))
tao.setFromOptions()
tao.solve(x)
context = tao.getPythonContext()
print_root(comm, f"the point of the sphere nearest to (1, 2, 0): {np.round(everywhere(x), 6)}")
print_root(comm, f"multiplier {everywhere(context.multipliers)[0]:.6f}, {context.report.iterations} steps\n")
# [end]


# [numpy]
def program(objective, gradient, hessian, lowest=-np.inf, level=1.0):
    """Return min f(x) subject to |x|^2 = level in the plane, and x1 >= lowest."""
    return NonlinearProgram(
        name="on a circle",
        start=np.array([0.0, 1.0]),
        lower=np.array([-np.inf, lowest]),
        upper=np.full(2, np.inf),
        constraint_lower=np.zeros(1),
        constraint_upper=np.zeros(1),
        objective=objective,
        gradient=gradient,
        constraints=lambda x: np.array([x @ x - level]),
        jacobian=lambda x: scipy.sparse.csr_array(2.0 * x[None, :]),
        hessian=lambda x, p: scipy.sparse.csr_array(hessian(x) + 2.0 * p[0] * np.eye(2)),
    )


linear = types.SimpleNamespace(
    objective=lambda x: x[0] + 2.0 * x[1], gradient=lambda x: np.array([1.0, 2.0]), hessian=lambda x: np.zeros((2, 2))
)
free = minimise(program(**vars(linear)))
bounded = minimise(program(**vars(linear), lowest=0.0))  # by the interior point method
for name, report in (("free", free), ("x1 >= 0", bounded)):
    print_root(comm, f"x0 + 2 x1 on the circle, {name}: {report.quantities['objective']:.6f}, {report.method}")
# [end]


# [failures]
broken = vars(linear) | {"objective": lambda x: np.nan}
for name, hopeless in (("|x|^2 = -1", program(**vars(linear), level=-1.0)), ("f = NaN", program(**broken))):
    try:
        minimise(hopeless)
    except pdeopt.report.ConvergenceError as error:
        print_root(comm, f"{name}: {error}")
# [end]
